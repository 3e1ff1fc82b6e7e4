"""FP16 authored in torch: a float16 trunk in a float32 network, as one module that torch runs and the exporter traces.

Three rules, after automatic mixed precision (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior"),
but with weights that are float16 themselves:
1. Parts of the trunk take float16 and give float32; the graph's inputs and outputs keep their types.
2. Normalising, exponentiating, summing and comparing functions compute in float32 and stay there; norm layers keep float32
   parameters.
3. Where float32 meets float16 in a product with weights, float16 wins; everywhere else torch promotes to float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from posekit.export.example_feed import EXAMPLE_SIZES, example_feed
from posekit.export.precision.fold_norms import fold_norms
from posekit.export.precision.trunk import Trunk, read_trunk, tensors_in
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError

HALF_MAX = 65504.0

NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.modules.batchnorm._NormBase,
)  # fmt: skip
# Names of torch's functions and methods. In-place forms are not here: what they change must keep its type; the pass over
# the exported graph (half_graph) takes care of them.
FLOAT32_FUNCTIONS = frozenset({
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "normalize", "rms_norm",
    "cosine_similarity", "cdist", "dist", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "softmax",
    "log_softmax", "softmin", "logsumexp", "softplus", "logsigmoid", "exp", "exp2", "expm1", "log", "log2", "log10",
    "log1p", "pow", "__pow__", "__rpow__", "float_power", "square", "sqrt", "rsqrt", "reciprocal", "erfinv", "sum",
    "nansum", "mean", "nanmean", "var", "std", "var_mean", "std_mean", "prod", "cumsum", "cumprod", "logcumsumexp",
    "trace", "argmax", "argmin", "argsort", "topk", "sort", "kthvalue", "median", "grid_sample", "affine_grid",
    "cross", "linalg_cross", "det", "inverse", "linalg_inv", "svd", "linalg_svd", "sin", "cos", "tan", "asin", "acos",
    "atan", "atan2", "sinh", "cosh",
})  # fmt: skip
HALF_FUNCTIONS = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "bilinear",
    "prelu", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm", "einsum",
    "tensordot", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
})  # fmt: skip


class HalfPlan(TorchFunctionMode):
    """Rules 2 and 3 for every function of torch that is called inside. dtype: of the trunk."""

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        wanted = torch.float32 if name in FLOAT32_FUNCTIONS else self.dtype if name in HALF_FUNCTIONS else None
        if wanted is not None and any(tensor.dtype == self.dtype for tensor in tensors_in((args, named))):
            other = self.dtype if wanted == torch.float32 else torch.float32
            args, named = cast((tuple(args), named), other, wanted)
        return func(*args, **named)


class HalfNetwork(nn.Module):
    """The network with its trunk in `dtype`. Names below `network` are those of the network that was given."""

    def __init__(self, network: nn.Module, trunk: Trunk, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.trunk, self.dtype = network, trunk, dtype

    def forward(self, *feeds: Tensor) -> object:
        with HalfPlan(self.dtype):
            return self.network(*feeds)


def half_source(source: GraphSource, dtype: torch.dtype = torch.float16) -> GraphSource:
    """The same graph with `source.trunk` in float16; `source` is left as it was.

    dtype: bfloat16 has float32's range at the same places, for the overflow probe.
    Raises PrecisionError for a trunk that cannot be had: unknown or unused names, weights beyond float16, a network that
    then fails or gives other types.
    """
    trunk = read_trunk(source)
    feed = example_feed(source.inputs, EXAMPLE_SIZES)
    feeds = [torch.from_numpy(feed[spec.name]) for spec in source.inputs]
    network = copy.deepcopy(source.module).eval()
    with torch.inference_mode():
        expected, called = _outputs_and_called(source, network, trunk, feeds)
    unused = sorted(set(trunk.parts) - called)
    if unused:
        raise _wrong(
            source,
            f"{unused[0]!r}, which forward never calls",
            "parts that are called as modules",
            "Name the submodules that forward calls.",
        )
    fold_norms(network, trunk.has, feeds)
    if dtype == torch.float16:
        _check_range(source, network, trunk)
    half = HalfNetwork(_halved(network, trunk, dtype), trunk, dtype).eval()
    try:
        with torch.inference_mode():
            found = tensors_in(half(*feeds))
    except Exception as error:  # the user's forward may raise anything on other types
        lines = str(error).strip().splitlines()
        raise _wrong(
            source,
            f"{type(error).__name__}: {lines[0][:200] if lines else ''}",
            "a network that runs with a float16 trunk",
            "Keep the submodule that fails out of the trunk.",
        ) from error
    if [t.dtype for t in found] != [t.dtype for t in expected]:
        got, wanted = (", ".join(str(t.dtype).removeprefix("torch.") for t in ts) for ts in (found, expected))
        raise _wrong(source, f"outputs of types {got}", wanted, "Name submodules, not the functions between them.")
    return replace(source, module=half, precision="fp16")


def cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """All tensors of one type in nested containers to another; the rest as it is."""
    return pytree.tree_map(lambda x: x.to(target) if isinstance(x, Tensor) and x.dtype == source else x, value)


def _halved(network: nn.Module, trunk: Trunk, dtype: torch.dtype) -> nn.Module:
    """In place: weights of the trunk to `dtype`, except those of norms; casts where tensors enter and leave its parts."""
    kept = [name for name, module in network.named_modules() if name in trunk.kept or isinstance(module, NORMS)]
    original = {name: copy.deepcopy(network.get_submodule(name)) for name in kept}
    for name in sorted((*trunk.parts, *kept), key=lambda name: (name.count("."), name in original)):  # outermost first
        if name in original:
            network.set_submodule(name, original[name])
        else:
            network.get_submodule(name).to(dtype)
    for name in trunk.parts:
        part = network.get_submodule(name)
        part.register_forward_pre_hook(_entering(torch.float32, dtype), with_kwargs=True)
        part.register_forward_hook(_leaving(dtype))
    for name in trunk.kept:
        network.get_submodule(name).register_forward_pre_hook(_entering(dtype, torch.float32), with_kwargs=True)
    return network


def _entering(source: torch.dtype, target: torch.dtype) -> Callable[..., Any]:
    return lambda module, args, kwargs: (cast(args, source, target), cast(kwargs, source, target))


def _leaving(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda module, args, out: cast(out, dtype, torch.float32)


def _outputs_and_called(
    source: GraphSource, network: nn.Module, trunk: Trunk, feeds: Sequence[Tensor]
) -> tuple[list[Tensor], set[str]]:
    called: set[str] = set()
    with called_modules(network, trunk.parts, called.add):
        outputs = tensors_in(network(*feeds))
    return outputs, called


@contextmanager
def called_modules(network: nn.Module, names: Sequence[str], tell: Callable[[str], object]) -> Iterator[None]:
    """While inside, `tell` hears the name of every listed submodule that is called."""
    handles = [network.get_submodule(name).register_forward_pre_hook(_telling(tell, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _telling(tell: Callable[[str], object], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: object) -> None:  # what it returned would replace the arguments
        tell(name)

    return hook


def largest_weights(network: nn.Module, trunk: Trunk) -> Iterator[tuple[str, str, float]]:
    """(submodule, weight, |weight| at most) of all that the trunk has in lower precision."""
    for owner, module in network.named_modules():
        if isinstance(module, NORMS) or not trunk.has(owner):
            continue
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.numel():
                yield owner, name, float(tensor.detach().abs().max())


def _check_range(source: GraphSource, network: nn.Module, trunk: Trunk) -> None:
    for owner, name, largest in largest_weights(network, trunk):
        if not largest <= HALF_MAX:
            raise _wrong(
                source,
                f"|{owner}.{name}| up to {largest:.4g}",
                f"weights within {HALF_MAX:.0f}, what float16 holds",
                f'Keep it in float32: add "-{owner}" to the trunk.',
            )


def _wrong(source: GraphSource, got: object, expected: str, remedy: str) -> PrecisionError:
    return PrecisionError(f"float16 {source.role} graph", got=got, expected=expected, remedy=remedy)
