"""Detector to pose on the demo bundle: posekit's estimator against the pipelines that a user would write around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from posekit.benchmarks.peers.contest import Contender, Contest
from posekit.benchmarks.peers.glue import Arrays, Best, Finish, Match, Net, Pipeline, Posed, matched, regressed, solved
from posekit.benchmarks.peers.nets import COMPILE_OPTIONS, compiled, eager, plain_onnxruntime
from posekit.benchmarks.pose_error import ScoredObject, mssd_m, scored_object
from posekit.export.recipe import recipe_from_toml
from posekit.export.recipe_networks import built_network, detector_network
from posekit.export.systems import GraphSource
from posekit.runtime.bank import CANDIDATES, TemplateBank, bank_from_bytes
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import InputError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry, PathEntry, Precision
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.sources import Frame, frames_from

Found = list[list[Posed]]  # per frame
Array32 = npt.NDArray[np.float32]
BUNDLE, RECIPE, FRAMES = "reference.posekit", "variants-reference.toml", "recording"  # of `posekit demo --variants`
PATHS = ("gdr.regressor", "gdr.epnp", "bank")
FRAME_COUNT, FRAME_STEP = 8, 8  # odd frames: int8 was calibrated on even ones
APART = 0.05  # of the diameter: what the default gates allow a variant
# The same network in another order of operations.
SAME = {"lost": 0.0, "moved_p50_of_diameter": 0.001, "apart": 0.0}
INT8 = {"lost": 0.2, "moved_p50_of_diameter": APART, "apart": 0.5}  # boxes are int8's own too


@dataclass(frozen=True, eq=False)
class Demo:
    """A folder of `posekit demo --variants`, its bundle open."""

    folder: Path
    bundle: Bundle
    frames: tuple[Frame, ...]

    @cached_property
    def objects(self) -> Mapping[int, ObjectEntry]:
        return {entry.id: entry for entry in self.bundle.manifest.objects}

    @cached_property
    def scored(self) -> Mapping[int, ScoredObject]:
        return {entry.id: scored_object(self.bundle, entry) for entry in self.bundle.manifest.objects}

    def path(self, name: str) -> PathEntry:
        return self.bundle.manifest.paths[name]

    def sources(self, path: PathEntry) -> dict[str, GraphSource]:
        """Graph name -> the PyTorch network of the recipe that it was exported from. InputError for other weights."""
        recipe = recipe_from_toml(self.folder / RECIPE)
        assert recipe.detector is not None
        traced, origin = detector_network(recipe, recipe.detector)
        found, origins = {"detector": traced.graph}, {"detector": origin}
        network_name, _, _ = path.graph.partition(".")
        entry = next(entry for entry in recipe.networks if entry.name == network_name)
        network = built_network(recipe, entry)
        origins[network_name] = network.origin
        found |= {f"{network_name}.{name}": source for name, source in network.graphs.items()}
        for name, weights in origins.items():
            exported = self.bundle.manifest.provenance.get(f"checkpoint of {name}")
            if exported != weights:
                raise InputError(
                    f"weights of {name}",
                    got=weights,
                    expected=f"those of the bundle, {exported}",
                    remedy="Export the demo again: posekit demo --variants.",
                )
        return found


@contextmanager
def opened_demo(folder: Path, count: int = FRAME_COUNT) -> Iterator[Demo]:
    """InputError where the demo's files are not there."""
    if not (folder / BUNDLE).exists() or not (folder / RECIPE).exists():
        raise InputError(
            f"demo folder {folder}",
            got=f"no {BUNDLE} or no {RECIPE}",
            expected="what `posekit demo --variants` writes",
            remedy=f"posekit demo --variants {folder}",
        )
    with Bundle(folder / BUNDLE) as bundle:
        frames = [frame for frame in frames_from(folder / FRAMES) if frame.index % FRAME_STEP == 1]
        yield Demo(folder, bundle, tuple(frames[:count]))


@contextmanager
def opened_pipelines(folder: Path, name: str, threads: int) -> Iterator[Contest[Found]]:
    """`pipelines` of the demo in a folder."""
    with opened_demo(folder) as demo, pipelines(demo, name, threads) as contest:
        yield contest


@contextmanager
def pipelines(demo: Demo, name: str, threads: int) -> Iterator[Contest[Found]]:
    """One path: PyTorch eager says what is right, since it is the trained network itself."""
    path, scored = demo.path(name), demo.scored
    sources = demo.sources(path)
    symmetries = {o.id: symmetries_from_entry(o) for o in demo.bundle.manifest.objects}
    banks = {int(i): bank_from_bytes(demo.bundle.read(m), m, symmetries[int(i)]) for i, m in path.banks.items()}
    cv2.setNumThreads(threads)
    with ExitStack() as stack:
        trained = _over(demo, _in_torch(demo, path, banks, {graph: eager(sources[graph]) for graph in _graphs(path)}))
        rows = [
            stack.enter_context(_estimator(demo, name, "posekit", "fp32", SAME)),
            stack.enter_context(_estimator(demo, name, "posekit int8", "int8", INT8)),
            Contender("PyTorch eager", trained, f"PyTorch {torch.__version__}, {threads} threads"),
        ]
        absent = {}
        try:
            rows.append(_compiled(demo, path, banks, sources))
        except (RuntimeError, OSError, ImportError) as error:  # Inductor's own are RuntimeErrors
            absent["PyTorch compiled"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        plain = [plain_onnxruntime(sources[graph], threads) for graph in ("detector", path.graph)]
        numpy_finish = _finish(path, banks, _numpy_match(banks) if banks else None)
        ort_says = f"ONNX Runtime {onnxruntime.__version__}, {threads} threads, NumPy {np.__version__}"
        glued = _over(demo, _pipeline(demo, path, plain[0], plain[1], numpy_finish))
        rows.append(Contender("ONNX Runtime + NumPy", glued, ort_says))
        expected = trained()
        yield Contest(
            name=f"pipeline, {name}",
            work=f"detector to pose, {len(demo.frames)} frames of {_size(demo.frames)}, {_count(expected)} poses",
            units=len(demo.frames),
            unit="frame",
            expected=expected,
            deviations=lambda right, found: moved(right, found, scored),
            limits=SAME,
            contenders=tuple(rows),
            besides="verifies what every graph is fed and gives, and refuses poses that are none",
            absent=absent,
        )


def moved(right: Found, found: Found, scored: Mapping[int, ScoredObject]) -> dict[str, float]:
    """lost: share of the right poses without a partner of their object in the frame, or the other way round if more.

    moved: largest distance of any vertex between two partners, to the nearest symmetric copy (MSSD), of the diameter.
    apart: share of partners that moved by more than APART.
    """
    distances = [apart for a, b in zip(right, found, strict=True) for apart in _partners_apart(a, list(b), scored)]
    most = max(_count(right), _count(found))
    return {
        "lost": 1 - len(distances) / most if most else 0.0,
        "moved_p50_of_diameter": float(np.median(distances)) if distances else float("nan"),
        "apart": float(np.mean(np.array(distances) > APART)) if distances else float("nan"),
    }


def _partners_apart(right: list[Posed], free: list[Posed], scored: Mapping[int, ScoredObject]) -> Iterator[float]:
    """Every right pose takes the nearest of its object that is still free."""
    for pose in right:
        rivals = [other for other in free if other.object_id == pose.object_id]
        if rivals:
            apart = [_mssd(other, pose, scored[pose.object_id]) for other in rivals]
            nearest = int(np.argmin(apart))
            free.remove(rivals[nearest])
            yield apart[nearest]


def _mssd(found: Posed, right: Posed, thing: ScoredObject) -> float:
    return mssd_m(found.cam_from_obj, right.cam_from_obj, thing) / thing.diameter_m


def _pipeline(demo: Demo, path: PathEntry, detect: Net, network: Net, finish: Finish) -> Pipeline:
    assert demo.bundle.manifest.detector is not None
    return Pipeline(demo.bundle.manifest.detector, path, demo.objects, detect, network, finish)


def _over(demo: Demo, pipeline: Callable[[Any, Any], list[Posed]]) -> Callable[[], Found]:
    return lambda: [pipeline(frame.image_rgb_u8, frame.intrinsics.K) for frame in demo.frames]


@contextmanager
def _estimator(
    demo: Demo, path: str, name: str, precision: Precision, limits: Mapping[str, float]
) -> Iterator[Contender[Found]]:
    """posekit as its quickstart uses it, on the backend that `auto` takes; both take every core there is."""

    def posed(estimator: PoseEstimator, image: Any, intrinsics: Intrinsics) -> list[Posed]:
        return [Posed(e.object_id, e.score, e.cam_from_obj) for e in estimator.estimate(image, intrinsics)]

    with PoseEstimator(demo.bundle, path=path, precision=precision) as estimator:

        def run() -> Found:
            return [posed(estimator, frame.image_rgb_u8, frame.intrinsics) for frame in demo.frames]

        yield Contender(name, run, "; ".join(dict.fromkeys(estimator.backends)), limits, ours=True)


def _graphs(path: PathEntry) -> tuple[str, ...]:
    return ("detector", path.graph, *([path.matcher] if path.matcher else []))


def _in_torch(demo: Demo, path: PathEntry, banks: Mapping[int, TemplateBank], nets: Mapping[str, Net]) -> Pipeline:
    """nets: by graph; the matcher is the trained system's own."""
    match = _torch_match(nets[path.matcher], banks) if path.matcher else None
    return _pipeline(demo, path, nets["detector"], nets[path.graph], _finish(path, banks, match))


def _compiled(
    demo: Demo, path: PathEntry, banks: Mapping[int, TemplateBank], sources: Mapping[str, GraphSource]
) -> Contender[Found]:
    """Compiled on what these frames feed it, all crop counts before anything is timed."""
    torch._dynamo.reset()
    fed: dict[str, list[Arrays]] = {graph: [] for graph in _graphs(path)}
    recorded = {graph: _recorded(eager(sources[graph]), feeds) for graph, feeds in fed.items()}
    _over(demo, _in_torch(demo, path, banks, recorded))()
    made = {graph: compiled(sources[graph], feeds) for graph, feeds in fed.items()}
    seconds = sum(took for _, took in made.values())
    options = ", ".join(f"{key} {value}" for key, value in COMPILE_OPTIONS.items())
    run = _over(demo, _in_torch(demo, path, banks, {graph: net for graph, (net, _) in made.items()}))
    return Contender(
        "PyTorch compiled", run, f"torch.compile {torch.__version__}, {options}, {seconds:.0f} s to compile"
    )


def _recorded(net: Net, feeds: list[Arrays]) -> Net:
    def run(feed: Arrays) -> Arrays:
        feeds.append(feed)
        return net(feed)

    return run


def _finish(path: PathEntry, banks: Mapping[int, TemplateBank], match: Match | None) -> Finish:
    if match is not None:
        return matched(banks, match, {int(i): rejection.threshold for i, rejection in path.rejection.items()})
    return regressed if path.solver is None else solved(path.solver)


def _torch_match(matcher: Net, banks: Mapping[int, TemplateBank]) -> Match:
    """On templates that are in float32 once and for all."""
    bound = {i: {name: np.array(array, np.float32) for name, array in b.matched.items()} for i, b in banks.items()}

    def match(descriptors: Array32, object_id: int) -> Best:
        out = matcher({"descriptors": descriptors[None], **bound[object_id]})
        return out["index"][0], out["score"][0]

    return match


def _numpy_match(banks: Mapping[int, TemplateBank], threshold: float = 0.2) -> Match:
    """Template-pose in NumPy: cosines at every place, those up to the threshold dropped, averaged over what is seen."""
    axes = {"flat": (0, 1, 2), "coarse": (1, 2, 0)}  # of a bank's templates, to places, channels, views
    templates = {
        i: np.ascontiguousarray(bank.matched["templates"].transpose(axes[bank.search]), np.float32)
        for i, bank in banks.items()
    }

    def match(descriptors: Array32, object_id: int) -> Best:
        cosine = (descriptors[:, None] @ templates[object_id])[:, 0]
        cosine *= cosine > threshold
        score = cosine.sum(axis=0) * banks[object_id].matched["weights"]
        best = np.argsort(-score, kind="stable")[:CANDIDATES]
        return best, score[best]

    return match


def _size(frames: Sequence[Frame]) -> str:
    return " and ".join(sorted({f"{f.intrinsics.width_px} x {f.intrinsics.height_px}" for f in frames}))


def _count(found: Found) -> int:
    return sum(map(len, found))
