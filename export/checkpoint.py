"""Weights into networks: read without pickle, matched strictly. Also the user's own `module:factory`."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from posekit.runtime.errors import CheckpointError, RecipeError
from posekit.runtime.file_hash import file_sha256

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training loops put the state dict
DATA_PARALLEL = "module."
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
LISTED = 8
SNIPPET = (
    "Convert it once, where you trust it:\n"
    "  import torch, safetensors.torch\n"
    "  safetensors.torch.save_file(torch.load({path!r}, weights_only=False)['state_dict'], 'weights.safetensors')"
)


def load_state_dict(path: Path, *, key: str | None = None, prefix: str | None = None) -> StateDict:
    """Names to tensors of a .safetensors, .pt, .pth or .ckpt file, on the CPU. Nothing in the file is executed.

    key: where in the file the state dict is, "a.b" for nested tables; None looks at the top and at WRAPPERS.
    prefix: take the names that start with it, without it; None removes "module." of DataParallel where all have it.
    Raises CheckpointError.
    """
    content = _read(path)
    state = _unwrapped(path, content, key)
    if prefix is None:
        prefix = DATA_PARALLEL if all(name.startswith(DATA_PARALLEL) for name in state) else ""
    chosen = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not chosen:
        raise CheckpointError(
            f"checkpoint {path}",
            got=f"no name that starts with {prefix!r}",
            expected=f"names like {', '.join(sorted(state)[:3])}",
            remedy="Correct checkpoint_prefix in the recipe.",
        )
    return chosen


def load_checkpoint(network: nn.Module, path: Path, *, key: str | None = None, prefix: str | None = None) -> str:
    """Load weights into `network`, strictly, and return the file's sha256. CheckpointError names what does not fit."""
    state = load_state_dict(path, key=key, prefix=prefix)
    wanted = network.state_dict()
    shapes = {name: (tuple(state[name].shape), tuple(wanted[name].shape)) for name in state.keys() & wanted.keys()}
    problems = (
        _listed("missing", sorted(wanted.keys() - state.keys())),
        _listed("unexpected", sorted(state.keys() - wanted.keys())),
        _listed("mis-shaped", sorted(f"{name} {a}, not {b}" for name, (a, b) in shapes.items() if a != b)),
        _listed("NaN or infinite", sorted(n for n, t in state.items() if not torch.isfinite(t.float()).all())),
    )
    if any(problems):
        raise CheckpointError(
            f"checkpoint {path}",
            got="; ".join(filter(None, problems)),
            expected=f"exactly the {len(wanted)} tensors of {type(network).__name__}",
            remedy="Check the network's options, checkpoint_key and checkpoint_prefix in the recipe.",
        )
    network.load_state_dict(state, strict=True)
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes. CheckpointError if it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"file {path}", got=error, expected="a readable file", remedy="Check the path in the recipe."
        ) from error


def network_from_factory(name: str, options: Mapping[str, Any], folder: Path) -> nn.Module:
    """Call the user's `module:factory` with keyword options -> nn.Module.

    folder: where the recipe is; it is on sys.path while the module is imported and no longer. RecipeError if any step fails.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not attribute.isidentifier():
        raise _factory_problem(name, repr(name), '"package.module:function"')
    factory: Callable[..., object] | None = getattr(_imported(name, module_name, folder), attribute, None)
    if not callable(factory):
        raise _factory_problem(name, f"no function {attribute!r} in {module_name}", "a function or class")
    try:
        network = factory(**options)
    except Exception as error:  # the user's own code, which may raise anything
        raise _factory_problem(name, f"{type(error).__name__}: {error}", f"a network for {dict(options)}") from error
    if not isinstance(network, nn.Module):
        raise _factory_problem(name, type(network).__name__, "a torch.nn.Module")
    return network


def _read(path: Path) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors}
    readers |= dict.fromkeys(TORCH_SUFFIXES, _read_torch)
    if path.suffix.lower() not in readers:
        raise CheckpointError(
            f"checkpoint {path}",
            got=f"suffix {path.suffix!r}",
            expected=f"one of {', '.join(readers)}",
            remedy="Save the weights as safetensors.",
        )
    if not os.path.isfile(path):
        raise CheckpointError(
            f"checkpoint {path}", got="no such file", expected="a file", remedy="Check the path in the recipe."
        )
    try:
        return readers[path.suffix.lower()](path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}",
            got=f"a file that runs code when it is read, or is damaged ({_why_unsafe(error)})",
            expected="tensors alone",
            remedy=SNIPPET.format(path=path.name),
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything
        raise CheckpointError(
            f"checkpoint {path}",
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            expected="a readable checkpoint",
            remedy="Copy or save it again.",
        ) from error


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders about pickles that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _why_unsafe(error: Exception) -> str:
    marked = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return (marked or str(error).strip().splitlines() or ["unpickling failed"])[0][:160]


def _unwrapped(path: Path, content: Any, key: str | None) -> StateDict:
    found = {name: content[name] for name in WRAPPERS if isinstance(content, Mapping) and _is_state(content.get(name))}
    if key is not None:
        state = content
        for part in key.split("."):
            state = state.get(part) if isinstance(state, Mapping) else None
    elif _is_state(content):
        state = content
    else:
        state = next(iter(found.values())) if len(found) == 1 else None
    if _is_state(state):
        return dict(state)
    held = ", ".join(map(str, list(content)[:LISTED])) if isinstance(content, Mapping) else type(content).__name__
    where = f"under {key!r}" if key is not None else f"at the top or under one of {', '.join(WRAPPERS)}"
    raise CheckpointError(
        f"checkpoint {path}",
        got=f"a file that holds {held or 'nothing'}",
        expected=f"named tensors {where}",
        remedy="Say in the recipe which entry it is: checkpoint_key.",
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''}"


def _imported(name: str, module_name: str, folder: Path) -> ModuleType:
    with _on_path(folder):
        try:
            module = import_module(module_name)
        except Exception as error:  # the user's own code, which may raise anything
            raise _factory_problem(name, f"{type(error).__name__}: {error}", "an importable module") from error
    own = folder.resolve().joinpath(*module_name.split("."))
    candidates = (own.with_suffix(".py"), own / "__init__.py")
    beside = next((path for path in candidates if path.is_file()), None)
    if beside and Path(module.__file__ or "").resolve() != beside:
        raise _factory_problem(name, f"{module.__file__}, imported before", f"{beside}")
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def _factory_problem(name: str, got: object, expected: object) -> RecipeError:
    return RecipeError(
        f"network {name!r}", got=got, expected=expected, remedy="Correct the recipe, or the module beside it."
    )
