"""One estimator is for one thread: misuse is told at once, clones give the same poses, and closing takes nothing from others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from toy_bundles import BOX as BOX_SPEC
from toy_bundles import CROPS, SIZE, graph_bytes, perfect_maps

from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.backends.resident import Residents
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection, PoseEstimate, Unposed
from posekit.runtime.detector import Detector
from posekit.runtime.errors import BackendError, InputError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DetectorEntry, GraphEntry, ObjectEntry
from posekit.runtime.pose import Pose
from posekit.runtime.session import ForwardingSession, Session, twin_of
from posekit.runtime.tensor import Feed, TensorSpec

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101)
PLACE = np.array([40.0, 40, 60, 60])
KINDS = ("regressor", "bank", "epnp")
BACKENDS = ("onnxruntime", "openvino")
N_THREADS = 4
Write = Callable[..., Path]
Answer = tuple[Any, ...]
Call = Callable[[PoseEstimator], object]


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (101, 101, 3), dtype=np.uint8)


def detections(seed: int) -> list[Detection]:
    """One to five boxes of object 1, one of them now and then outside."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-4, 60, (rng.integers(1, 6), 2))
    boxes = [Detection(1, 0.9, np.concatenate([xy, xy + rng.uniform(15, 40, 2)])) for xy in corners]
    return [*boxes, Detection(1, 0.9, PLACE + 500)] if seed % 3 == 0 else boxes


def plain(outcomes: list[PoseEstimate | Unposed]) -> list[Answer]:
    """Every bit of the answer."""
    return [
        (o.reason,) if isinstance(o, Unposed) else (o.object_id, o.score, o.cam_from_obj.as_matrix().tobytes())
        for o in outcomes
    ]


def convolved(role: Any, head: list[Any], outputs: tuple[TensorSpec, ...], **constants: np.ndarray) -> Any:
    """A graph over three convolutions of a crop, whose "features" (batch, 8) the head goes on with."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "w1": (32, 16, 3, 3), "w2": (8, 32, 3, 3)}
    weights = {n: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Cast", ["crops"], ["float"], to=T.FLOAT),
        helper.make_node("Transpose", ["float"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    for i in range(3):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("ReduceMean", ["x3", "space"], ["features"], keepdims=0))
    inputs = (CROPS, BOX_SPEC) if role == "pose" else (CROPS,)
    content = graph_bytes([*nodes, *head], inputs, outputs, **weights, space=np.array([2, 3]), **constants)
    return content, GraphEntry(role, {"fp32": f"{role}.onnx"}, inputs, outputs)


def convolved_pose() -> Any:
    """R = I; t = (0, 0, 1) and something of the pixels and of the box; score from the pixels."""
    names = {"R": ("batch", 3, 3), "t": ("batch", 3), "score": ("batch",)}
    rng = np.random.default_rng(1)
    head = [
        helper.make_node("MatMul", ["features", "to_t"], ["t0"]),
        helper.make_node("MatMul", ["box", "of_box"], ["t1"]),
        helper.make_node("Sum", ["t0", "t1", "ahead"], ["t"]),
        helper.make_node("MatMul", ["features", "to_score"], ["score_column"]),
        helper.make_node("Squeeze", ["score_column", "one"], ["score"]),
        helper.make_node("Shape", ["box"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["eye", "repeats"], ["R"]),
    ]
    return convolved(
        "pose",
        head,
        tuple(TensorSpec(name, "float32", shape) for name, shape in names.items()),
        to_t=rng.normal(size=(8, 3)).astype(np.float32) * 1e-3,
        of_box=rng.normal(size=(4, 3)).astype(np.float32) * 1e-3,
        to_score=np.abs(rng.normal(size=(8, 1))).astype(np.float32) * 1e-3,
        ahead=np.array([0, 0, 1], np.float32),
        eye=np.eye(3, dtype=np.float32)[None],
        one=np.array([1]),
    )


def convolved_embedder() -> Any:
    outputs = (TensorSpec("descriptors", "float32", ("batch", 1, 3)),)
    head = [
        helper.make_node("MatMul", ["features", "to_three"], ["three"]),
        helper.make_node("LpNormalization", ["three"], ["unit"], axis=1, p=2),
        helper.make_node("Unsqueeze", ["unit", "one"], ["descriptors"]),
    ]
    to_three = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
    return convolved("embedder", head, outputs, to_three=to_three, one=np.array([1]))


@pytest.fixture
def bundle(toy_bundle: Write) -> Iterator[Bundle]:
    """Graphs whose answers hang on every pixel and every box; maps that a solver has work with."""
    scale = SIZE / 24
    K_crop = np.array([[scale, 0, 15.5 - scale * 50], [0, scale, 15.5 - scale * 50], [0, 0, 1]]) @ CAMERA.K
    truth = Pose.from_rotvec([0.4, -0.9, 0.2], [0.0, 0.0, 0.7])
    mask, coords_m = perfect_maps(truth, K_crop, crop_px=SIZE, grid=16, radius_m=0.05)
    coords_m = coords_m + np.random.default_rng(0).normal(scale=1e-3, size=coords_m.shape)
    replaced = {"pose": convolved_pose(), "embedder": convolved_embedder()}
    with Bundle(toy_bundle(mask=mask, coords_m=coords_m, replaced=replaced)) as opened:
        yield opened


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


def answers(estimator: PoseEstimator, seeds: range) -> list[list[Answer]]:
    return [plain(estimator.outcomes(image(seed), CAMERA, detections(seed))) for seed in seeds]


@pytest.mark.parametrize("kind", KINDS)
def test_clones_in_as_many_threads_give_every_bit_of_one_alone(bundle: Bundle, kind: str, backend: str) -> None:
    """Every thread over all frames, from another one on, all at the same time; half of them clone in their thread."""
    frames = range(40)
    with PoseEstimator(bundle, path=kind, backend=backend) as estimator:
        alone = answers(estimator, frames)
        assert len({a for found in alone for a in found}) > 40  # frames differ, so that a mix-up shows
        early, start = [estimator.clone() for _ in range(N_THREADS // 2)], Barrier(N_THREADS)

        def work(thread: int) -> bool:
            with early[thread] if thread < len(early) else estimator.clone() as mine:
                start.wait()
                turned = [(i + 7 * thread) % len(frames) for i in [*frames, *frames]]
                return all(answers(mine, range(i, i + 1)) == [alone[i]] for i in turned)

        with ThreadPoolExecutor(N_THREADS) as pool:
            assert list(pool.map(work, range(N_THREADS))) == [True] * N_THREADS
        assert answers(estimator, frames) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_one_estimator_get_right_poses_or_an_error(bundle: Bundle, kind: str, backend: str) -> None:
    frames, start = range(30), Barrier(N_THREADS)
    with PoseEstimator(bundle, path=kind, backend=backend) as estimator:
        alone = answers(estimator, frames)

        def work(thread: int) -> tuple[int, int]:
            start.wait()
            refused = wrong = 0
            for i in [(i + 7 * thread) % len(frames) for i in [*frames] * 3]:
                try:
                    wrong += answers(estimator, range(i, i + 1)) != [alone[i]]
                except InputError as error:
                    refused += "one call at a time" in str(error)
            return refused, wrong

        with ThreadPoolExecutor(N_THREADS) as pool:
            refused, wrong = np.array(list(pool.map(work, range(N_THREADS)))).sum(axis=0)
        assert (refused > 0, wrong) == (True, 0)
        assert answers(estimator, frames) == alone


class Waiting(ForwardingSession):
    """Says that it runs, and goes on when it is told to."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.runs, self.go_on = Event(), Event()

    def run(self, feed: Feed) -> Any:
        self.runs.set()
        assert self.go_on.wait(10)
        return self.session.run(feed)


@pytest.mark.parametrize(
    "call",
    [
        lambda estimator: estimator.estimate(image(1), CAMERA, detections(1)),
        lambda estimator: estimator.outcomes(image(1), CAMERA, []),
        lambda estimator: estimator.detect(image(1), CAMERA),
        lambda estimator: estimator.close(),
    ],
    ids=["estimate", "outcomes", "detect", "close"],
)
def test_a_second_call_is_an_error_at_once(bundle: Bundle, call: Call) -> None:
    """While the first one runs, which is not disturbed; a clone may be made and used meanwhile."""
    waiting: list[Waiting] = []

    def around(name: str, session: Session) -> Session:
        waiting.append(Waiting(session))
        return waiting[-1]

    with PoseEstimator(bundle) as estimator:
        alone = answers(estimator, range(1))
    with PoseEstimator(bundle, around=around) as estimator, ThreadPoolExecutor(1) as pool:
        first = pool.submit(answers, estimator, range(1))
        assert waiting[0].runs.wait(10)
        with pytest.raises(InputError, match=r"estimator: got a call while another one is running.*clone\(\)"):
            call(estimator)
        with estimator.clone() as clone:
            assert answers(clone, range(1)) == alone
        waiting[0].go_on.set()
        assert first.result() == alone
        assert answers(estimator, range(1)) == alone


def test_a_call_from_within_a_stage_is_an_error(bundle: Bundle) -> None:
    from contextlib import nullcontext

    refusals: list[str] = []

    def stage(name: str) -> Any:
        with pytest.raises(InputError) as caught:
            estimator.estimate(image(0), CAMERA, detections(0))
        refusals.append(str(caught.value))
        return nullcontext()

    with PoseEstimator(bundle, stage=stage) as estimator:
        assert len(answers(estimator, range(1))[0]) == len(detections(0))
    assert all("one call at a time" in refusal for refusal in refusals)
    assert len(refusals) == 3  # crop, network, decode


def test_sessions_detectors_and_crop_batches_are_for_one_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    box = TensorSpec("y", "float32", ("batch", 4))
    session = OrtSession(graph_bytes([helper.make_node("Neg", ["box"], ["y"])], (BOX_SPEC,), (box,)))
    feed = {"box": np.ones((1, 4), np.float32)}

    def again(*_: Any) -> Any:
        with pytest.raises(InputError, match="session: got a call while"):
            session.run(feed)
        with pytest.raises(InputError, match="session: got a call while"):
            session.close()
        return {}

    monkeypatch.setattr(session, "_run", again)
    assert session.run(feed) == {}

    class Network:
        """Within its run somebody else detects."""

        inputs, backend = (TensorSpec("image", "uint8", (1, 32, 32, 3)),), "toy"
        outputs = tuple(TensorSpec(n, d, s) for n, d, s in (
            ("boxes", "float32", (1, 0, 4)), ("scores", "float32", (1, 0)), ("labels", "int64", (1, 0))))  # fmt: skip

        def run(self, feed: Feed) -> Any:
            with pytest.raises(InputError, match="detector: got a call while"):
                detector.detect(image(0))
            return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.outputs}

        def close(self) -> None: ...

    detector = Detector(Network(), DetectorEntry("d", "posekit", (32, 32), 114, (1,), 0.3, 1.0))
    assert detector.detect(image(0)) == []

    batch = CropBatch(CropPreset("square", SIZE), [ObjectEntry(1, "o", 0.1, (0, 0, 0), (1, 1, 1), "o")], 2)

    class Boxes(list[Detection]):
        """Within its reading somebody else cuts."""

        def __iter__(self) -> Iterator[Detection]:
            with pytest.raises(InputError, match="crop batch: got a call while"):
                batch.cut(image(0), CAMERA, [])
            return super().__iter__()

    assert batch.cut(image(0), CAMERA, Boxes([Detection(1, 0.9, PLACE)])) == {}
    assert len(batch.crops) == 1


def compiled(session: Any) -> Any:
    return session._session if isinstance(session, OrtSession) else session._compiled


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_shares_what_never_changes_and_nothing_else(bundle: Bundle, kind: str, backend: str) -> None:
    with PoseEstimator(bundle, path=kind, backend=backend) as estimator, estimator.clone() as clone:
        assert estimator._opened.keys() == clone._opened.keys() != set()
        for name, session in estimator._opened.items():
            other: Any = clone._opened[name]
            assert compiled(session) is compiled(other)
            assert session is not other
            if backend == "openvino":
                assert session._request is not other._request  # type: ignore[attr-defined]
                assert session._residents is other._residents  # type: ignore[attr-defined]
        assert not set(map(id, estimator._path.sessions)) & set(map(id, clone._path.sessions))
        assert len(clone._path.sessions) == len(estimator._path.sessions) == len(clone._opened)
        assert not any(
            np.shares_memory(mine, estimator._batch._arrays[name]) for name, mine in clone._batch._arrays.items()
        )
        if kind == "bank":
            mine, theirs = (path._bound for path in (clone._path, estimator._path))  # type: ignore[attr-defined]
            assert mine[1]["templates"] is theirs[1]["templates"]
            assert clone._path._banks is estimator._path._banks  # type: ignore[attr-defined]
        assert (clone.path_name, clone.object_ids) == (estimator.path_name, estimator.object_ids)
        assert (clone.backends, clone.has_detector) == (estimator.backends, False)


def test_a_bank_is_taken_over_once_for_all_clones(bundle: Bundle) -> None:
    """OpenVINO copies what it may not write to: one copy, however many clones search it."""
    pytest.importorskip("openvino")
    with PoseEstimator(bundle, path="bank", backend="openvino") as estimator, estimator.clone() as clone:
        expected = answers(estimator, range(3))
        entries = dict(estimator._opened["matcher"]._residents._entries)  # type: ignore[attr-defined]
        assert len(entries) == 2  # templates and weights of object 1
        assert answers(clone, range(3)) == expected
        assert estimator._opened["matcher"]._residents._entries == entries  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_closing_one_leaves_the_others_and_the_last_frees(bundle: Bundle, kind: str, backend: str, first: int) -> None:
    """The original and two clones, one a clone's, closed in any order; the bundle may be closed before."""
    original = PoseEstimator(bundle, path=kind, backend=backend)
    clone = original.clone()
    estimators = [original, clone, clone.clone()]
    expected = answers(original, range(2))
    bundle.close()
    graphs = [weakref.ref(compiled(session)) for session in original._opened.values()]
    order = estimators[first:] + estimators[:first]
    while order:
        order.pop(0).close()
        assert all(answers(left, range(2)) == expected for left in order)
    gc.collect()
    assert [graph() for graph in graphs] == [None] * len(graphs)
    for closed in estimators:
        closed.close()
        with pytest.raises(BackendError, match="a closed one"):
            answers(closed, range(1))
        with pytest.raises(BackendError, match="a closed one"):
            closed.clone()


def test_a_clone_is_watched_by_nothing_but_its_own(bundle: Bundle) -> None:
    seen: list[str] = []

    class Watched(ForwardingSession):
        def __init__(self, who: str, session: Session) -> None:
            super().__init__(session)
            self.who = who

        def run(self, feed: Feed) -> Any:
            seen.append(self.who)
            return self.session.run(feed)

    with PoseEstimator(bundle, around=lambda name, session: Watched("first", session)) as estimator:
        with estimator.clone() as plain_clone, estimator.clone(around=lambda n, s: Watched("own", s)) as watched:
            answers(plain_clone, range(1))
            assert seen == []
            answers(watched, range(1))
            assert seen == ["own"]
        forwarded = estimator._sessions[0]
        assert compiled(twin_of(forwarded)) is compiled(estimator._opened["pose"])


def test_a_clone_that_fails_leaves_no_session_open(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedder has a twin, the matcher has no room for one."""
    made: list[Any] = []
    with PoseEstimator(bundle, path="bank", backend="onnxruntime") as estimator:
        twin = estimator._opened["embedder"].twin  # type: ignore[attr-defined]
        monkeypatch.setattr(estimator._opened["embedder"], "twin", lambda: made.append(twin()) or made[-1])  # type: ignore[func-returns-value]

        def full() -> Session:
            raise BackendError("session", got="no memory", expected="room", remedy="Close another.")

        monkeypatch.setattr(estimator._opened["matcher"], "twin", full)
        with pytest.raises(BackendError, match="no memory"):
            estimator.clone()
        (left,) = made
        with pytest.raises(BackendError, match="a closed one"):
            left.run({})
        assert len(answers(estimator, range(2))) == 2


def test_a_session_without_twins_says_so() -> None:
    class Single:
        inputs, outputs, backend = (), (), "one of a kind"

        def run(self, feed: Feed) -> Any:
            return {}

        def close(self) -> None: ...

    with pytest.raises(BackendError, match="one of a kind: got a session of which there is one only"):
        twin_of(Single())


def test_what_threads_see_first_at_the_same_time_is_made_once() -> None:
    made: list[int] = []
    residents: Residents[int] = Residents()
    arrays = [np.full(3, i) for i in range(20)]
    start = Barrier(N_THREADS)

    def work(thread: int) -> list[int]:
        start.wait()
        return [residents.of(array, lambda a: made.append(int(a[0])) or int(a[0])) for array in arrays]  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(work, range(N_THREADS))) == [list(range(20))] * N_THREADS
    assert sorted(made) == list(range(20))
