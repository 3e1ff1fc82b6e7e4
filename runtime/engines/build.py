"""From an ONNX graph to a plan: one builder for TensorRT 10.3 to 11.x and TensorRT-RTX, always strongly typed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from posekit.runtime.atomic import write_whole
from posekit.runtime.engines.api import FLAVOURS, Log, listening, tensorrt_module
from posekit.runtime.engines.causes import remedy_for
from posekit.runtime.engines.kernels import Kernel, kernels_from_log, kernels_of
from posekit.runtime.engines.options import BuildOptions, profile_shapes
from posekit.runtime.engines.plan import engine_from_plan
from posekit.runtime.engines.progress import Phases, Progress, monitor_class, watcher
from posekit.runtime.errors import EngineError
from posekit.runtime.tensor import TensorSpec

T = TypeVar("T")
POLL_S = 0.1
_one_build = threading.Lock()  # of kernels that are timed at the same time, and of lists of layers that are mixed up


@dataclass(frozen=True)
class BuildReport:
    """One build. seconds: of wall clock.  kernels: what was compiled, in order.  warnings: verbatim.

    timing_cache_sha256: of the timing cache after the build; None without one.
    """

    title: str
    version: str
    seconds: float
    size: int
    sha256: str
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...] = ()
    timing_cache_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class BuiltPlan:
    """plan: as TensorRT serialised it, nothing added: any other tool reads it."""

    plan: bytes
    report: BuildReport


def build_plan(
    onnx: bytes | memoryview,
    inputs: tuple[TensorSpec, ...],
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Parse, compile, and read back what was compiled.

    inputs: the graph's, as the manifest lists them; a dynamic axis is a name.  timing_cache: read where it exists and
    written after the build, except where the options pin its content.  progress: called in the caller's thread, at the
    start, about ten times a second, and at the end; left out: who watches builds (progress.builds_watched). Interrupted at any time, nothing is left behind. Equal input does not give equal bytes.
    Raises EngineError: no TensorRT, no GPU, an operator it cannot do (named), a foreign timing cache.
    """
    row, module = FLAVOURS[options.flavour], tensorrt_module(options.flavour)
    timings = _pinned(timing_cache, options)
    start = time.perf_counter()
    with _one_build, listening(module) as log:
        builder = _builder(module, log, row.title)
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = _parsed(module, network, onnx, log, row.title)
        config = builder.create_builder_config()
        _configure(module, config, options)
        _add_profiles(builder, config, inputs, options)
        cache = _use_timings(config, timings, timing_cache, log) if timing_cache else None
        plan = _compiled(module, builder, network, config, progress or watcher(), log, row.title)
        if timing_cache and cache is not None and options.timing_cache_sha256 is None:
            timings = bytes(cache.serialize())
            write_whole(timing_cache, timings)
        del parser  # not before: the parsed weights belong to it
        listed = kernels_from_log(log.texts("VERBOSE"))
        warnings = log.texts("WARNING")
    kernels = listed if row.ahead_of_time else kernels_of(module, engine_from_plan(options.flavour, plan))
    seconds = time.perf_counter() - start
    report = BuildReport(
        row.title,
        module.__version__,
        seconds,
        len(plan),
        hashlib.sha256(plan).hexdigest(),
        kernels,
        warnings,
        hashlib.sha256(timings).hexdigest() if timing_cache else None,
    )
    return BuiltPlan(plan, report)


def _builder(module: Any, log: Log, title: str) -> Any:
    try:
        return module.Builder(log.logger)
    except (TypeError, RuntimeError) as error:  # the bindings' way of saying that there is none
        raise EngineError(
            f"{title} builder", got=log.errors, expected="a builder on this machine", remedy=remedy_for(log.errors)
        ) from error


def _parsed(module: Any, network: Any, onnx: bytes | memoryview, log: Log, title: str) -> Any:
    """The parser, which must outlive the build. EngineError names every node that was refused, in TensorRT's words."""
    parser = module.OnnxParser(network, log.logger)
    if len(onnx) and parser.parse(onnx):
        return parser
    problems = [_parser_problem(parser.get_error(i)) for i in range(parser.num_errors)]
    raise EngineError(
        f"{title} parser",
        got="; ".join(problems) or "an empty graph",
        expected="a graph of operators that it has",
        remedy="`posekit lint` names the rule and the way round it.",
    )


def _parser_problem(error: Any) -> str:
    """Node -1 is the file itself."""
    where = f"node {error.node()} {error.node_operator()} {error.node_name()!r}: " if error.node() >= 0 else ""
    return f"{where}{error.desc()} ({error.code().name})"


def _configure(module: Any, config: Any, options: BuildOptions) -> None:
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # else there is nothing to read back
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.compute_capabilities:
        known = {name: value for name, value in vars(module.ComputeCapability).items() if name.startswith("SM")}
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, number in enumerate(options.compute_capabilities):
            if f"SM{number}" not in known:
                raise EngineError(
                    f"compute capability {number}",
                    got="one that TensorRT-RTX does not compile for",
                    expected=f"one of {', '.join(known)}",
                    remedy="Jetson (SM87, SM110) and H100/H200 (SM90) are served by TensorRT: build on the device.",
                )
            config.set_compute_capability(known[f"SM{number}"], index)


def _add_profiles(builder: Any, config: Any, inputs: tuple[TensorSpec, ...], options: BuildOptions) -> None:
    for ranges in options.profiles or ({},):
        shapes = profile_shapes(inputs, ranges)
        if not shapes:
            continue
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                "optimisation profile", got=ranges, expected="one that fits the graph", remedy="Correct its ranges."
            )


def _pinned(path: Path | None, options: BuildOptions) -> bytes:
    """The content of the timing cache, empty where there is none yet. EngineError unless it is the pinned one."""
    pin, content = options.timing_cache_sha256, None
    if path is not None and FLAVOURS[options.flavour].ahead_of_time:
        title = FLAVOURS[options.flavour].title
        raise EngineError(
            f"{title} build", got="a timing cache", expected="none: it times nothing", remedy="Leave it out."
        )
    try:
        content = path.read_bytes() if path else None
    except FileNotFoundError:
        pass  # the first build writes it
    except OSError as error:
        raise EngineError(
            f"timing cache {path}", got=error, expected="a readable file", remedy="Correct its path or its rights."
        ) from error
    found = "no file" if content is None else hashlib.sha256(content).hexdigest()
    if pin not in (None, found):
        raise EngineError(
            f"timing cache {path}", got=found, expected=f"sha256 {pin}", remedy="Restore it, or build without a pin."
        )
    return content or b""


def _use_timings(config: Any, timings: bytes, path: Path, log: Log) -> Any:
    """The cache, which must outlive the build. Timings of another GPU or another TensorRT are refused, not mixed in.

    From bytes that it cannot read TensorRT makes an empty cache and only warns.
    """
    cache = config.create_timing_cache(timings)
    fits = cache is not None and config.set_timing_cache(cache, False)
    complaints = [message.text for message in log.messages if "timing cache" in message.text.lower()]
    if not fits or complaints:
        raise EngineError(
            f"timing cache {path}",
            got=" ".join(complaints) or "one of another GPU or TensorRT",
            expected="one made by this TensorRT on this GPU",
            remedy="Remove it; the next build writes a new one.",
        )
    return cache


def _compiled(module: Any, builder: Any, network: Any, config: Any, progress: Progress, log: Log, title: str) -> bytes:
    phases, stop = Phases(), threading.Event()
    config.progress_monitor = monitor = monitor_class(module)(phases, stop)
    serialised = _in_thread(
        lambda: builder.build_serialized_network(network, config), lambda: progress(phases.now()), stop
    )
    del monitor  # TensorRT does not keep it alive
    if serialised is None:
        raise EngineError(f"{title} build", got=log.errors, expected="a plan", remedy=remedy_for(log.errors))
    return bytes(serialised)


def _in_thread(work: Callable[[], T], meanwhile: Callable[[], None], stop: threading.Event) -> T:
    """Work in a thread of its own, so that this one stays interruptible and no exception ends up inside TensorRT."""
    with ThreadPoolExecutor(1, thread_name_prefix="posekit-build") as pool:
        future = pool.submit(work)
        try:
            meanwhile()
            while not wait([future], POLL_S).done:
                meanwhile()
            meanwhile()
            return future.result()
        finally:
            stop.set()  # leaving the block waits for the thread
