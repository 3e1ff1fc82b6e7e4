"""The comparison with peers: nobody is timed whose answer is another; what is absent is said; the table is the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_bundles import bank_bytes

from posekit.benchmarks.peers import measure, nets, pipelines
from posekit.benchmarks.peers.contest import Contender, Contest, UnequalWorkError, held
from posekit.benchmarks.peers.glue import Arrays, Net, Pipeline, Posed
from posekit.benchmarks.peers.pnp import PEERS, Problem, made_problems, opencv, pnp
from posekit.benchmarks.peers.pnp import deviations as pose_deviations
from posekit.benchmarks.peers.result import ContestResult, Measured, PeersResult, Row, ratio
from posekit.benchmarks.peers.retrieval import Size, exact, made_views, retrieval
from posekit.benchmarks.peers.table import markdown
from posekit.benchmarks.pose_error import ScoredObject
from posekit.benchmarks.studies.machine import Machine
from posekit.benchmarks.studies.precision_result import Run, read, write
from posekit.export.example_feed import example_feed
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.matcher import matcher_graph
from posekit.export.pipeline import export_recipe
from posekit.export.recipe import recipe_from_toml
from posekit.export.recipe_networks import built_network, detector_network
from posekit.export.reference.demo import Demo, write_demo
from posekit.export.systems import GraphSource, PathPlan
from posekit.runtime.bank import CANDIDATES, bank_from_bytes
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import InputError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.manifest import FORMAT, DetectorEntry, GraphEntry, Manifest, Member, ObjectEntry, PathEntry
from posekit.runtime.paths import OUTPUTS
from posekit.runtime.pose import Pose
from posekit.runtime.sources import frames_from
from posekit.runtime.tensor import Feed, TensorSpec
from posekit.runtime.yolo_decode import posekit_shapes

ROOT = Path(__file__).resolve().parents[2]
TOY_SIZES = [
    Size("global", 1, 12, 400, 3),
    Size("local", 6, 8, 400, 3),
    Size("local, threshold", 6, 8, 400, 3, 0.2),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# A contest.


def contest(*answers: float, calls: list[str] | None = None) -> Contest[float]:
    """Everybody should say 1, to a tenth; the first is posekit."""

    def says(name: str, answer: float) -> float:
        if calls is not None:
            calls.append(name)
        return answer

    rows = [
        Contender(f"c{i}", partial(says, f"c{i}", answer), "a toy", ours=i == 0) for i, answer in enumerate(answers)
    ]
    return Contest(
        name="toy",
        work="one number",
        units=4,
        unit="number",
        expected=1.0,
        deviations=lambda right, found: {"off": abs(found - right)},
        limits={"off": 0.1},
        contenders=tuple(rows),
        besides="does nothing else",
        absent={"c9": "not installed: no c9"},
    )


def test_equal_answers_are_timed_per_unit() -> None:
    found = held(contest(1.0, 1.05), rounds=3, pause_s=0.0)
    assert [(row.contender, row.ours, row.deviations) for row in found.rows] == [
        ("c0", True, {"off": 0.0}),
        ("c1", False, {"off": 0.05}),
    ]
    assert all(len(row.samples_ms) == 3 and row.min_ms <= row.median_ms for row in found.rows)
    assert found.absent == {"c9": "not installed: no c9"}


@pytest.mark.parametrize("wrong", [1.2, float("nan")])
def test_nobody_is_timed_when_one_answers_something_else(wrong: float) -> None:
    calls: list[str] = []
    with pytest.raises(UnequalWorkError, match=r"toy: c1, off.*at most 0\.1"):
        held(contest(1.0, wrong, 1.0, calls=calls), rounds=3, pause_s=0.0)
    assert calls == ["c0", "c1"]


# The contests, small: every peer that is installed here gives the right answer.


@pytest.mark.parametrize("size", TOY_SIZES, ids=lambda size: size.name)
def test_all_retrieval_finds_the_same_views(size: Size) -> None:
    with retrieval(size, threads=1) as found:
        result = held(found, rounds=1, pause_s=0.0)
    names = {row.contender for row in result.rows}
    assert {"posekit", "posekit, coarse", "NumPy", "PyTorch eager"} < names
    assert any(name.startswith("FAISS") for name in names)
    assert all(row.deviations["top1"] == 0 for row in result.rows if "fp16" not in row.contender)
    assert all(row.deviations["short"] < 2e-3 for row in result.rows)
    assert ("FAISS flat alone" in result.absent) == (size.threshold is not None)


def test_a_peer_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "poselib", None)
    with retrieval(TOY_SIZES[0], threads=1) as found:
        assert "not installed" in found.absent["FAISS flat"]
    with pnp("epnp-ransac", threads=1, count=1) as solved:
        assert solved.absent == {}
    monkeypatch.setattr("posekit.benchmarks.peers.pnp.posekit", lambda method: opencv(0))  # ours needs it too
    with pnp("p3p-lo-ransac", threads=1, count=1) as without:
        assert "not installed" in without.absent["PoseLib P3P LO-RANSAC"]
    assert len(without.contenders) == len(solved.contenders) - 1


@given(st.integers(0, 1000))
def test_the_right_views_are_those_that_the_queries_show(seed: int) -> None:
    """The best have the highest scores; what a view shows has unit length, what it does not is zero."""
    views = made_views(Size("any", 8, 16, 300, 2), seed)
    index, score = exact(views)
    assert index.shape == score.shape == (2, CANDIDATES)
    assert (np.diff(score, axis=1) <= 0).all()
    lengths = np.linalg.norm(views.templates, axis=1)
    assert (np.isclose(lengths, 1) | (lengths == 0)).all()
    assert np.allclose(lengths.sum(axis=0) * views.weights, 1)
    scores = np.einsum("blc,lcn,n->bn", views.queries, views.templates, views.weights)
    assert (np.take_along_axis(scores, index[:, :1], 1)[:, 0] > scores.max(axis=1) - 1e-5).all()


@pytest.mark.parametrize("method", PEERS)
def test_all_solvers_find_the_poses(method: str) -> None:
    with pnp(method, threads=1, count=3) as found:
        result = held(found, rounds=1, pause_s=0.0)
    assert {row.contender for row in result.rows} == {"posekit", *PEERS[method]}
    assert all(row.deviations["lost"] == 0 for row in result.rows)


def test_a_lost_pose_and_a_wrong_one_are_seen() -> None:
    problems: list[Problem] = made_problems(2)
    truth: list[Pose | None] = [problem.truth for problem in problems]
    assert pose_deviations(truth, [None, truth[1]])["lost"] == 0.5
    swapped = pose_deviations(truth, truth[::-1])
    assert swapped["rotation_max_deg"] > 3
    assert np.isnan(pose_deviations(truth, [None, None])["rotation_max_deg"])


# Pipelines.

CUBE = ScoredObject(1, "cube", 0.1, np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)]))
SCORED = {1: CUBE, 2: replace(CUBE, object_id=2)}


def posed(object_id: int, x_m: float) -> Posed:
    return Posed(object_id, 1.0, Pose(np.eye(3), np.array([x_m, 0.0, 1.0])))


def test_poses_find_their_partners_whatever_their_order() -> None:
    right = [[posed(1, 0.0), posed(1, 0.5), posed(2, 0.0)]]
    found = [[posed(2, 0.0), posed(1, 0.5), posed(1, 0.0)]]
    assert pipelines.moved(right, found, SCORED) == {"lost": 0.0, "moved_p50_of_diameter": 0.0, "apart": 0.0}


def test_a_missing_a_moved_and_an_invented_pose_are_seen() -> None:
    right = [[posed(1, 0.0), posed(2, 0.0)]]
    assert pipelines.moved(right, [[posed(1, 0.0)]], SCORED)["lost"] == 0.5
    assert pipelines.moved(right, [[*right[0], posed(1, 1.0), posed(1, 2.0)]], SCORED)["lost"] == 0.5
    shifted = pipelines.moved(right, [[posed(1, 0.01), posed(2, 0.0)]], SCORED)
    assert shifted["apart"] == 0.5
    assert shifted["moved_p50_of_diameter"] == pytest.approx(0.05)
    assert np.isnan(pipelines.moved(right, [[]], SCORED)["moved_p50_of_diameter"])


def test_the_numpy_matcher_says_what_the_networks_own_says() -> None:
    rng = np.random.default_rng(0)
    bank = bank_from_bytes(bank_bytes("0" * 64), "bank")
    templates = rng.standard_normal((4, 8, 20)).astype(np.float32)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    banks = {1: replace(bank, matched={"templates": templates, "weights": rng.uniform(0.5, 1, 20).astype(np.float32)})}
    matcher = nets.eager(matcher_graph(4, 8, 0.2))
    for view in range(20):
        shown = np.ascontiguousarray(templates[:, :, view])
        ours, theirs = pipelines._numpy_match(banks)(shown, 1), pipelines._torch_match(matcher, banks)(shown, 1)
        assert ours[0][0] == theirs[0][0] == view
        assert ours[1][0] == pytest.approx(theirs[1][0], abs=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The reference recipe with its weights, and one scene."""
    return write_demo(tmp_path_factory.mktemp("demo"), count=1)


@dataclass
class TorchSession:
    """A Session that runs the network itself: what is left between two pipelines is their glue."""

    source: GraphSource
    backend: str = "PyTorch"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.source.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        shapes = posekit_shapes((1, 1), 1) if self.source.role == "detector" else OUTPUTS[self.source.role]
        return tuple(TensorSpec(name, "float32", shapes[name]) for name in self.source.outputs)

    def run(self, feed: Feed) -> Arrays:
        return nets.eager(self.source)({name: np.array(array) for name, array in feed.items()})

    def close(self) -> None: ...


def toy_path(name: str, plan: PathPlan, crop: CropPreset) -> PathEntry:
    prefix = name.partition(".")[0]
    banks = {str(i): f"{i}.bank" for i in (1, 2, 3)} if plan.matcher else {}
    matcher = f"{prefix}.{plan.matcher}" if plan.matcher else None
    return PathEntry(plan.kind, f"{prefix}.{plan.graph}", crop, (1, 2, 3), matcher, banks, plan.solver)


@pytest.mark.parametrize("name", ["gdr.regressor", "gdr.epnp", "bank"])
def test_the_usual_glue_gives_the_poses_that_the_runtime_gives(
    written: Demo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from_toml(written.recipe)
    assert recipe.detector is not None
    entry = next(entry for entry in recipe.networks if entry.name == name.partition(".")[0])
    entry = replace(entry, bank=replace(entry.bank, search="flat"))
    network = built_network(recipe, entry)
    sources = {f"{entry.name}.{graph}": source for graph, source in network.graphs.items()}
    sources["detector"] = detector_network(recipe, recipe.detector)[0].graph
    path = toy_path(name, network.paths[name.partition(".")[2] or "bank"], network.crop)
    if path.solver is not None and entry.solver is not None:
        path = replace(path, solver=entry.solver)
    box = ((-0.09, -0.06, -0.05), (0.09, 0.06, 0.05))
    objects = {i: ObjectEntry(i, f"object {i}", 0.2, *box, "") for i in (1, 2, 3)}
    detector = DetectorEntry("detector", "posekit", (320, 240), 114, (1, 2, 3), 0.3, 1.0)
    graphs = {g: GraphEntry(s.role, {"fp32": g}, s.inputs, ()) for g, s in sources.items()}
    members = {f"{i}.bank": random_bank(i, path.crop) for i in (1, 2, 3)}
    manifest = Manifest(
        FORMAT, "toy", "toy", {}, graphs, tuple(objects.values()), {name: path}, name,
        {graph: Member(1, "0" * 64) for graph in graphs}, detector,
    )  # fmt: skip
    bundle = SimpleNamespace(manifest=manifest, read=members.__getitem__)
    monkeypatch.setattr(
        "posekit.runtime.estimator.open_session", lambda bundle, graph, **options: TorchSession(sources[graph])
    )
    banks = {int(i): bank_from_bytes(members[member], member) for i, member in path.banks.items()}
    finish = pipelines._finish(path, banks, pipelines._numpy_match(banks) if banks else None)
    glued = Pipeline(detector, path, objects, nets.eager(sources["detector"]), nets.eager(sources[path.graph]), finish)
    (frame,) = frames_from(written.scenes)
    with PoseEstimator(bundle, path=name) as estimator:  # type: ignore[arg-type]
        ours = estimator.estimate(frame.image_rgb_u8, frame.intrinsics)
    theirs = glued(frame.image_rgb_u8, frame.intrinsics.K)
    assert ours, "a comparison of no poses says nothing"
    assert [one.object_id for one in ours] == [other.object_id for other in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert np.allclose(one.cam_from_obj.as_matrix(), other.cam_from_obj.as_matrix(), atol=1e-5)


def random_bank(object_id: int, crop: CropPreset, views: int = 40) -> bytes:
    rng = np.random.default_rng(object_id)
    templates = rng.standard_normal((36, 16, views)).astype(np.float32)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    turns = [Pose.from_rotvec(rng.normal(size=3)).R for _ in range(views)]
    return bank_bytes(
        "0" * 64,
        crop,
        object_id,
        templates=templates,
        weights=np.full(views, 1 / 36, np.float32),
        R=np.array(turns, np.float32),
        t_m=np.tile(np.array([0, 0, 1], np.float32), (views, 1)),
        box_xyxy_px=np.tile(np.array([40, 40, 60, 60], np.float32), (views, 1)),
    )


class Small(torch.nn.Module):
    """A network whose entrance turns channels around, and that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.entrance = Entrance(bgr=True)
        self.mix = torch.nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, crops: torch.Tensor, box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.relu(self.mix(self.entrance(crops))).mean(dim=(2, 3))
        return seen, box * 2


def small_source() -> tuple[GraphSource, list[Arrays]]:
    """With what to feed it, one crop and three."""
    torch.manual_seed(0)
    specs = (TensorSpec("crops", "uint8", ("batch", 32, 32, 3)), TensorSpec("box", "float32", ("batch", 4)))
    source = GraphSource("pose", Small(), specs, ("seen", "doubled"))
    return source, [example_feed(specs, {"batch": count}) for count in (1, 3)]


def check_alike(net: Net) -> None:
    source, feeds = small_source()
    for feed in feeds:
        right, found = nets.eager(source)(feed), net(feed)
        assert list(found) == ["seen", "doubled"]
        for name, array in right.items():
            assert np.allclose(found[name], array, atol=1e-5)


def test_plain_onnxruntime_with_numpy_gives_what_the_network_gives() -> None:
    check_alike(nets.plain_onnxruntime(small_source()[0], threads=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_gives_what_the_network_gives() -> None:
    source, feeds = small_source()
    net, seconds = nets.compiled(source, feeds)
    check_alike(net)
    assert seconds > 0


@pytest.mark.slow
def test_the_usual_pipelines_are_held_against_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real bundle of the reference models in fp32; nobody waits for a compiler. Other weights are refused."""
    written = write_demo(tmp_path, count=2)
    recipe = recipe_from_toml(written.recipe)
    gdr = tuple(network for network in recipe.networks if network.name == "gdr")
    export_recipe(replace(recipe, networks=gdr, default_path="gdr.regressor"), tmp_path / pipelines.BUNDLE)
    (tmp_path / pipelines.RECIPE).write_bytes(written.recipe.read_bytes())
    (tmp_path / pipelines.FRAMES).symlink_to(written.scenes)
    estimator = pipelines._estimator
    monkeypatch.setattr(
        pipelines, "_estimator", lambda demo, path, name, precision, limits: estimator(demo, path, name, "fp32", limits)
    )

    def refuses(*arguments: object) -> tuple[Net, float]:
        raise RuntimeError("no C++ compiler\nmany lines")

    monkeypatch.setattr(pipelines, "compiled", refuses)
    with pipelines.opened_demo(tmp_path) as demo:
        with pipelines.pipelines(demo, "gdr.regressor", threads=1) as contest:
            result = held(contest, rounds=1, pause_s=0.0)
        assert [row.contender for row in result.rows][2:] == ["PyTorch eager", "ONNX Runtime + NumPy"]
        assert result.absent == {"PyTorch compiled": "RuntimeError: no C++ compiler"}
        assert sum(map(len, contest.expected)) > 0
        monkeypatch.setitem(demo.bundle.manifest.provenance, "checkpoint of gdr", "sha256 0")
        with pytest.raises(InputError, match="weights of gdr"), pipelines.pipelines(demo, "gdr.regressor", 1):
            pass


def test_a_folder_without_a_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="posekit demo --variants"), pipelines.opened_demo(tmp_path):
        pass


# The result, its ratios and its table.


def row(name: str, *samples_ms: float, ours: bool = False) -> Row:
    return Row(name, ours, "a toy", {"lost": 0.0}, float(np.median(samples_ms)), min(samples_ms), samples_ms)


def measured(*rows: Row, others_cpu: float = 0.0, busy: bool = False) -> Measured:
    run = Run("2026-01-01T00:00:00+00:00", "abc", "a command", 0.1, 2.0, busy)
    result = ContestResult("toy", "work", 4, "frame", rows, {"c9": "not | installed"}, "checks more", others_cpu)
    return Measured(run, result)


def whole(*contests: Measured) -> PeersResult:
    return PeersResult(Machine("A CPU", 2, ("avx2",), 8.0, "Linux", {"numpy": "2"}), 2, 3, contests)


@given(st.lists(st.floats(1, 100), min_size=3, max_size=20), st.floats(0.1, 10))
def test_a_ratio_is_that_of_medians_and_within_its_interval(samples: list[float], factor: float) -> None:
    found = ratio(row("peer", *(factor * sample for sample in samples)), row("posekit", *samples, ours=True))
    assert found.value == pytest.approx(factor)
    assert found.interval.low == pytest.approx(factor)
    assert found.interval.high == pytest.approx(factor)


def test_noise_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    quiet, noisy = (
        ratio(row("peer", *rng.normal(10, s, 30)), row("us", *rng.normal(10, s, 30), ours=True)).interval
        for s in (0.1, 2.0)
    )
    assert quiet.high - quiet.low < noisy.high - noisy.low


def test_a_result_reads_as_it_was_written(tmp_path: Path) -> None:
    found = whole(measured(row("posekit", 1.0, 2.0, ours=True), row("peer", 3.0, 4.0)))
    write(tmp_path / "r.json", found)
    assert read(tmp_path / "r.json", PeersResult) == found


def test_the_table_says_who_is_faster_and_who_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, int8 = row("posekit", 2.0, 2.0, ours=True), row("posekit int8", 1.0, 1.0, ours=True)
    found = whole(measured(ours, int8, row("slow", 4.0, 4.0), row("fast", 1.5, 1.5)))
    write(tmp_path / "r.json", found)
    assert measure.main(["--table", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    assert "| toy | slow | frame | 4 | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) |" in text
    assert "| toy | posekit int8 | frame | 1 | 0.50 (0.50 to 0.50) | - |" in text
    assert "posekit is not the fastest: fast takes 0.75 (0.75 to 0.75) of its time. It checks more." in text
    assert "posekit int8 is not the fastest" not in text
    assert "c9 did not take part: not | installed." in text
    for block in text.split("\n\n"):
        bars = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(bars) <= 1, block
    assert "busy" not in text.lower()


@pytest.mark.parametrize(("others_cpu", "busy"), [(0.11, False), (0.0, True)])
def test_a_busy_machine_is_marked(others_cpu: float, busy: bool) -> None:
    text = markdown(whole(measured(row("posekit", 1.0, ours=True), others_cpu=others_cpu, busy=busy)))
    assert "Busy machine, do not quote" in text
    assert "| toy (busy) | posekit |" in text


# Stopping and going on.


@contextmanager
def toy_contest(answer: float = 1.0, name: str = "toy") -> Iterator[Contest[float]]:
    yield replace(contest(1.0, answer), name=name)


def request(tmp_path: Path, *names: str) -> measure.Request:
    return measure.Request(names, tmp_path, 3, tmp_path / "r.json", "a command", pause_s=0.0)


def quiet(stage: str, done: int, total: int) -> None: ...


def test_a_stopped_comparison_goes_on_and_a_disagreement_costs_no_other_contest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "commit_of", lambda root: "abc")
    opened: list[str] = []

    @contextmanager
    def opening(name: str, answer: float) -> Iterator[Contest[float]]:
        opened.append(name)
        with toy_contest(answer, name) as found:
            yield found

    known = {name: partial(opening, name, answer) for name, answer in (("a", 1.0), ("b", 2.0), ("c", 1.0))}
    result, failures = measure.measure(request(tmp_path, "b", "c"), known, 1, quiet)
    assert [failure.what for failure in failures] == ["b: c1, off"]
    assert read(tmp_path / "r.json", PeersResult) == result
    again, _ = measure.measure(request(tmp_path, "a", "c"), known, 1, quiet)
    assert opened == ["b", "c", "a"]
    assert [row.result.contest for row in again.contests] == ["a", "c"]
    monkeypatch.setattr(measure, "commit_of", lambda root: "def")
    anew, _ = measure.measure(request(tmp_path, "a"), known, 1, quiet)
    assert [row.result.contest for row in anew.contests] == ["a"]
    assert opened[-1] == "a"


@pytest.mark.parametrize("arguments", [["--rounds", "29"], ["--only", "nothing"]])
def test_what_cannot_be_asked_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError):
        measure.requested(arguments)


def test_contests_are_chosen_by_how_their_names_begin() -> None:
    found = measure.requested(["--only", "PnP", "retrieval, global 384, 1"])
    assert isinstance(found, measure.Request)
    assert set(found.contests) == {*(f"PnP, {method}" for method in PEERS), "retrieval, global 384, 1"}


@pytest.mark.parametrize("result", sorted((ROOT / "benchmarks/results").glob("peers-*.json")), ids=lambda p: p.stem)
def test_the_committed_tables_are_what_the_script_makes_of_the_result(result: Path) -> None:
    """A result is read by today's code, and no table was written by hand."""
    found = read(result, PeersResult)
    assert not any(measured.busy for measured in found.contests)
    assert result.with_suffix(".md").read_text() == markdown(found)
    assert f"(benchmarks/results/{result.stem}.md)" in (ROOT / "README.md").read_text()
