"""Tries one library for real: a session of one operator, a crop, a GPU; then every variant of a bundle on it.

Each trial is a process of its own, because a broken driver or wheel may abort or hang instead of raising. The process
prints one line of JSON per result, so that what it found before it died counts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np

from posekit.runtime import cuda
from posekit.runtime.backends import BACKENDS, openvino, ort
from posekit.runtime.backends.tensorrt import key_for
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import CropPreset, crop
from posekit.runtime.cuda import cuda_python, pycuda
from posekit.runtime.cuda.driver import Device
from posekit.runtime.engines import api
from posekit.runtime.engines.api import FlavourName
from posekit.runtime.engines.cache import CacheEntry, EngineCache
from posekit.runtime.errors import BackendError, PosekitError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import GraphEntry, Manifest, Precision
from posekit.runtime.records import RecordProblem, json_from_record, record_from
from posekit.runtime.tensor import TensorSpec

Status = Literal["ok", "absent", "broken"]
EngineState = Literal["cached", "to-build", "foreign"]

# y = x + x for x float32 (1, 4), opset 19; a test makes it again with onnx.helper.
ONE_OP = bytes.fromhex(
    "08093a420a0e0a01780a0178120179220341646412066f6e655f6f705a130a0178120e0a0c080112080a0208010a0208046213"
    "0a0179120e0a0c080112080a0208010a02080442040a001013"
)
ONE_OP_ENTRY = GraphEntry(
    "pose", {"fp32": "one_op.onnx"}, (TensorSpec("x", "float32", (1, 4)),), (TensorSpec("y", "float32", (1, 4)),)
)
TIMEOUT_S, VARIANT_TIMEOUT_S = 60.0, 30.0  # a Jetson needs half a minute for the first TensorRT session after boot
KILL_TIMEOUT_S = 5.0
# As `posekit` itself sees them: not what lies in the current folder, which python -c puts first.
START = "import sys; sys.path = [p for p in sys.path if p]; from posekit.trial import main; main()"


@dataclass(frozen=True)
class Outcome:
    """Of one library. found: what answered, or why nothing did.  remedy: what to do, where something is wrong."""

    status: Status
    found: str
    remedy: str | None = None
    gpu: Device | None = None


@dataclass(frozen=True)
class Engine:
    """cached: for exactly this GPU and version.  foreign: only such as cannot be used here.  others: how many of those.

    digest, path: of the one that fits, whether it is there or not; None where no GPU says which one that would be.
    """

    state: EngineState
    digest: str | None = None
    path: str | None = None
    others: int = 0


@dataclass(frozen=True)
class Loading:
    """One variant on one backend. builds: it needs an engine, which the first run builds."""

    graph: str
    precision: Precision
    status: Literal["loads", "builds", "refused"]
    found: str
    remedy: str | None = None
    engine: Engine | None = None


RESULTS: dict[str, type[Outcome | Loading]] = {"outcome": Outcome, "loading": Loading}


def tried(name: str, bundle: Path | None = None, variants: int = 0) -> tuple[Outcome, tuple[Loading, ...]]:
    """Try `name`, a row of TRIALS, in a process of its own; a backend also on a bundle of so many variants.

    Never raises for what the library does, and returns after TIMEOUT_S and VARIANT_TIMEOUT_S per variant at the latest.
    """
    limit_s = TIMEOUT_S + VARIANT_TIMEOUT_S * variants
    command = [sys.executable, "-c", START, name, *([str(bundle.absolute())] if bundle else [])]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        end = _end(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err), limit_s)
        results = list(_results(out))
        last_words = _lines(err)[-1:]
    outcomes = [r for r in results if isinstance(r, Outcome)]
    loadings = tuple(r for r in results if isinstance(r, Loading))
    if end is None and outcomes:
        return outcomes[0], loadings
    found = ": ".join((end or "it ended without an answer", *last_words))
    return Outcome("broken", found[:500], _again(name)), loadings


def trials(name: str, bundle: Bundle | None = None) -> Iterator[Outcome | Loading]:
    """The trial itself, in this process: the outcome, then one loading per variant that the backend takes."""
    try:
        outcome = TRIALS[name]()
    except _Absent as problem:
        outcome = Outcome("absent", str(problem).partition(" (")[0], _install(name))
    except PosekitError as error:
        outcome = Outcome("broken", f"{error.what}: {error.got}", error.remedy)
    except Exception as error:  # noqa: BLE001, whatever a library raises is what is to be found out
        outcome = Outcome("broken", _named(error), _again(name))
    yield outcome
    if bundle is not None and outcome.status == "ok":
        for graph, precision, member in variants_for(name, bundle.manifest):
            yield _loading(name, bundle, graph, precision, member)


def variants_for(backend: str, manifest: Manifest) -> list[tuple[str, Precision, str]]:
    """(graph, precision, member) of every variant that this backend takes."""
    return [
        (graph, precision, entry.variants[precision])
        for graph, entry in manifest.graphs.items()
        for precision in BACKENDS[backend].precisions
        if precision in entry.variants and BACKENDS[backend].unfit(precision) is None
    ]


def foreign(flavour: FlavourName, graph_sha256: str, entries: tuple[CacheEntry, ...], but: str = "") -> int:
    """How many engines of this graph are in the cache, not counting the one of digest `but`."""
    keys = (entry.record.key for entry in entries if entry.digest != but)
    return sum(key.graph_sha256 == graph_sha256 and key.options.flavour == flavour for key in keys)


class _Absent(Exception):
    """Why a library is not there."""


def _one_op(backend: str) -> Outcome:
    """Open a session, run it, and look at the answer."""
    why_not = BACKENDS[backend].missing()
    if why_not is not None:
        raise _Absent(why_not)
    session = BACKENDS[backend].open(memoryview(ONE_OP), ONE_OP_ENTRY, None)
    try:
        x = np.array([[0.5, -1.0, 2.0, 3.0]], np.float32)
        y = session.run({"x": x})["y"]
        if not np.array_equal(y, 2 * x):
            raise BackendError(
                session.backend,
                got=f"{x.tolist()} + the same = {y.tolist()}",
                expected="their sum",
                remedy=_again(backend),
            )
        return Outcome("ok", session.backend)
    finally:
        session.close()


def _one_gpu(provider: str) -> Outcome:
    why_not = cuda.PROVIDERS[provider].missing()
    if why_not is not None:
        raise _Absent(why_not)
    driver = cuda.open_driver(provider)
    return Outcome("ok", driver.provider, gpu=driver.device)


def _one_crop() -> Outcome:
    """A crop of a whole image in its own size is that image."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise _Absent("the module cv2 is not installed") from error
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    camera = Intrinsics(np.array([[8.0, 0, 3.5], [0, 8.0, 3.5], [0, 0, 1]]), 8, 8)
    if not np.array_equal(crop(image, [0, 0, 7, 7], camera, CropPreset("full", 8)).pixels, image):
        raise BackendError("OpenCV", got="other pixels", expected="those of the image", remedy=_again("opencv"))
    return Outcome("ok", f"OpenCV {cv2.__version__}")


# Everything that can be tried. Backends come last, in the order of BACKENDS.
TRIALS: dict[str, Callable[[], Outcome]] = {
    "opencv": _one_crop,
    **{name: partial(_one_gpu, name) for name in cuda.PROVIDERS},
    **{name: partial(_one_op, name) for name in BACKENDS},
}
INSTALL = {
    "opencv": "pip install 'posekit[onnx]' (Jetson: apt install python3-opencv, venv with --system-site-packages)",
    "cuda-bindings": cuda_python.REMEDY_INSTALL,
    "pycuda": pycuda.REMEDY_INSTALL,
    "onnxruntime-cuda": "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
    "openvino": openvino.REMEDY_INSTALL,
    "onnxruntime": ort.REMEDY_INSTALL,
}


def _install(name: str) -> str:
    """The command that brings it; for TensorRT without a way to the GPU, the command that brings that."""
    flavour = BACKENDS[name].engine if name in BACKENDS else None
    if flavour is None:
        return INSTALL[name]
    return api.FLAVOURS[flavour].install if api.missing(flavour) else cuda_python.REMEDY_INSTALL


def _again(name: str) -> str:
    return f"Install it again: {_install(name)}"


def _loading(backend: str, bundle: Bundle, graph: str, precision: Precision, member: str) -> Loading:
    """Opened, unless that meant building an engine: minutes, which are the first run's to spend."""
    entry, content = bundle.manifest.graphs[graph], bundle.read(member)
    try:
        engine = _engine(BACKENDS[backend].engine, content, entry)
        if engine is not None and engine.state != "cached":
            return Loading(
                graph, precision, "builds", "its engine is not in the cache, the first run builds it", engine=engine
            )
        session = BACKENDS[backend].open(content, entry, None)
        found = session.backend
        session.close()
    except PosekitError as error:
        return Loading(graph, precision, "refused", f"{error.what}: {error.got}"[:500], error.remedy)
    except Exception as error:  # noqa: BLE001
        return Loading(graph, precision, "refused", _named(error), "Run `posekit lint` on the bundle.")
    return Loading(graph, precision, "loads", found, engine=engine)


def _engine(flavour: FlavourName | None, content: memoryview, entry: GraphEntry) -> Engine | None:
    if flavour is None:
        return None
    cache = EngineCache()
    key = key_for(content, entry, flavour, cuda.open_driver())
    entries = cache.entries()
    others = foreign(flavour, key.graph_sha256, entries, but=key.digest)
    here = key.digest in (one.digest for one in entries)
    state: EngineState = "cached" if here else "foreign" if others else "to-build"
    return Engine(state, key.digest, str(cache.folder / f"{key.digest}.plan"), others)


def _named(error: Exception) -> str:
    """The first line says what, the others where in the library."""
    lines = str(error).strip().splitlines()
    return ": ".join((type(error).__name__, *lines[:1]))[:500]


def _end(child: subprocess.Popen[bytes], limit_s: float) -> str | None:
    """Wait for it. What went wrong, or None."""
    try:
        code = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:.0f} s"
    finally:
        child.kill()  # harmless when it has ended; one that hangs in the kernel's driver may outlive it
        with suppress(subprocess.TimeoutExpired):
            child.wait(KILL_TIMEOUT_S)
    if code < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}" if code else None


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _results(file: IO[bytes]) -> Iterator[Outcome | Loading]:
    """Every complete line; the last one may be cut off."""
    for line in _lines(file):
        with suppress(ValueError, KeyError, RecordProblem):
            kind, value = json.loads(line)
            yield record_from(RESULTS[kind], value)


def main() -> None:
    """In the process of the trial: name and bundle as arguments. What libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, *bundle = sys.argv[1:]
    kinds = {kind: word for word, kind in RESULTS.items()}
    for result in trials(name, Bundle(bundle[0]) if bundle else None):
        print(f'["{kinds[type(result)]}", {json_from_record(result)}]', file=out, flush=True)
