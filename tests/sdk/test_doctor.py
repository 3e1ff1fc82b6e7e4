"""The doctor: what it claims was really tried, what breaks stays with its row, and what it says of auto is what auto does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from simulated_cuda import SimulatedCuda
from simulated_tensorrt import VERSIONS, Engine, module
from toy_bundles import pose_graph, write_toy_bundle
from typer.testing import CliRunner

from posekit import doctor, doctor_view, trial
from posekit.checks import Check
from posekit.cli import app
from posekit.doctor import Diagnosis, Load, diagnose
from posekit.runtime import cuda
from posekit.runtime.backends import BACKENDS, session_and_choice, tensorrt
from posekit.runtime.bundle import Bundle
from posekit.runtime.cuda.driver import Device
from posekit.runtime.engines import api
from posekit.runtime.engines.api import FlavourName
from posekit.runtime.engines.build import BuildReport, BuiltPlan
from posekit.runtime.engines.cache import EngineCache
from posekit.runtime.errors import BackendError, BundleError
from posekit.runtime.machine import Jetson, machine_from_root
from posekit.runtime.manifest import Precision
from posekit.trial import ONE_OP, ONE_OP_ENTRY, TRIALS, Loading, Outcome, trials, tried
from posekit.trial import Engine as EngineFound

POSE = pose_graph(np.zeros((4, 3)))[0]
CPU_BACKENDS = ("openvino", "onnxruntime")
H200 = Device("NVIDIA H200", 90, 139 << 30, "12.4")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))


def bundle_of(folder: Path, **variants: bytes) -> Path:
    """A toy bundle whose graph `pose` has these variants besides fp32."""
    return write_toy_bundle(folder / "toy.posekit", variants={("pose", name): v for name, v in variants.items()})  # type: ignore[misc]


def in_process(name: str, bundle: Path | None = None, variants: int = 0) -> tuple[Outcome, tuple[Loading, ...]]:
    """`tried` without the process, so that rows can be replaced."""
    outcome, *loadings = trials(name, Bundle(bundle) if bundle else None)
    assert isinstance(outcome, Outcome)
    return outcome, tuple(one for one in loadings if isinstance(one, Loading))


def checks(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.code: check for check in diagnosis.checks}


def loads(diagnosis: Diagnosis, graph: str = "pose") -> dict[tuple[str, str], Load]:
    assert diagnosis.bundle is not None
    return {(load.backend, load.precision): load for load in diagnosis.bundle.graphs[graph].loads}


def runs(found: Any) -> dict[str, bool]:
    return {name: path["runs"] for name, path in found["bundle"]["paths"].items()}


def posekit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_shipped_graph_is_what_onnx_writes() -> None:
    x, y = (helper.make_tensor_value_info(name, T.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "one_op", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert model.SerializeToString() == ONE_OP


def test_the_doctor_on_this_machine(tmp_path: Path) -> None:
    """Every backend in a process of its own, for real."""
    result = posekit("doctor", bundle_of(tmp_path, int8=POSE), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["schema"], found["can_run"]) == (1, True)
    status = {check["code"]: check["status"] for check in found["checks"]}
    assert {status[code] for code in ("python", "numpy", "opencv", *CPU_BACKENDS)} == {"ok"}
    for code, word in status.items():
        assert word in ("ok", "absent", "broken")
        assert code in (doctor.__doc__ or "")
    assert all("remedy" in check for check in found["checks"] if check["status"] != "ok")
    pose = found["bundle"]["graphs"]["pose"]
    for load in (one for one in pose["loads"] if one["backend"] in CPU_BACKENDS):
        unfit = BACKENDS[load["backend"]].unfit(load["precision"])
        assert load["status"] == ("loads" if unfit is None else "refused")
        assert unfit is None or (unfit == load["found"] and load["remedy"])
    assert runs(found) == {"regressor": True, "bank": True, "epnp": True}
    assert found["bundle"]["paths"]["bank"]["graphs"] == ["embedder", "matcher"]
    if status["cuda-driver"] != "ok":
        int8 = {"backend": "openvino", "precision": "int8", "member": "pose.int8.onnx"}
        fp32 = {"backend": "onnxruntime", "precision": "fp32", "member": "pose.onnx"}
        assert pose["auto"] == (int8 if BACKENDS["openvino"].runs("int8") else fp32)


def test_the_doctor_itself_loads_no_heavy_library() -> None:
    code = "from posekit.doctor import diagnose; diagnose(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "onnx", "onnxruntime", "openvino", "cv2", "cuda", "tensorrt_rtx_bindings", "rich"}


BREAKS = {
    "import os; os.abort()": "SIGABRT",
    "import sys; print('a library talks', file=sys.stderr); sys.exit(7)": "exit code 7: a library talks",
    "raise RuntimeError('built for another NumPy')": "RuntimeError: built for another NumPy",
    "import time; time.sleep(60)": "no answer within 2 s",
    "import os; print('{}'); print('[\"outcome\", {}]'); os._exit(0)": "without an answer",
    "Core = None": "NoneType",
}


@pytest.mark.parametrize("code", BREAKS)
def test_a_library_may_abort_hang_or_talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A package that breaks, in front of the real one; the row says how, and what to do."""
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "sleep" in code:
        monkeypatch.setattr(trial, "TIMEOUT_S", 2.0)
    outcome, loadings = tried("openvino")
    assert (outcome.status, loadings) == ("broken", ())
    assert BREAKS[code] in outcome.found
    assert outcome.remedy is not None
    assert "pip install 'posekit[openvino]'" in outcome.remedy


def test_the_folder_one_stands_in_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    assert tried("onnxruntime")[0].status == "ok"


def test_what_was_found_before_the_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that dies at the second variant: the first one is known, the others are broken."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom posekit.runtime.backends import ort\nopen_one = ort.OrtSession.__init__\ncount = []\n"
        "def dying(*rest, **named):\n    count.append(1)\n    os.abort() if len(count) > 2 else open_one(*rest, **named)\n"
        "ort.OrtSession.__init__ = dying\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = diagnose(bundle_of(tmp_path, fp16=POSE))
    assert checks(found)["onnxruntime"].status == "broken"
    assert "SIGABRT" in checks(found)["onnxruntime"].found
    states = [
        load.status
        for name in ("pose", "embedder")
        for load in loads(found, name).values()
        if load.backend == "onnxruntime"
    ]
    assert states == ["loads", "broken", "broken"]
    assert found.can_run  # on OpenVINO


def test_a_backend_that_breaks_at_session_creation_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise BackendError("OpenVINO", got="[no] plugin", expected="a graph it can load", remedy="Repair it.")

    monkeypatch.setitem(BACKENDS, "openvino", replace(BACKENDS["openvino"], open=broken))
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=in_process))
    result = posekit("doctor", bundle_of(tmp_path, int8=POSE))
    assert result.exit_code == 0, result.output
    for words in ("broken", "OpenVINO: [no] plugin", "Repair it.", "onnxruntime fp32", "broken: openvino"):
        assert words in result.stdout


def test_a_wrong_answer_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        backend = "abacus 1.0"

        def run(self, feed: Any) -> Any:
            return {"y": feed["x"]}

        def close(self) -> None: ...

    monkeypatch.setitem(BACKENDS, "onnxruntime", replace(BACKENDS["onnxruntime"], open=lambda *_: Wrong()))  # type: ignore[arg-type]
    outcome, _ = in_process("onnxruntime")
    assert outcome.status == "broken"
    assert "abacus 1.0" in outcome.found


@pytest.mark.parametrize(
    "variants", [(), ("int8",), ("fp16",), ("fp16", "int8")], ids=lambda names: " ".join(("fp32", *names))
)
@pytest.mark.parametrize("damaged", [False, True])
def test_auto_is_what_auto_does(tmp_path: Path, variants: tuple[Precision, ...], damaged: bool) -> None:
    content = b"not a graph" if damaged else POSE
    path = bundle_of(tmp_path, **dict.fromkeys(variants, content))
    found = diagnose(path, trial=in_process)
    assert found.bundle is not None
    graph = found.bundle.graphs["pose"]
    with Bundle(path) as opened:
        session, choice = session_and_choice(opened, "pose")
        session.close()
    assert graph.auto == doctor.Choice(choice.backend, choice.precision, choice.member)
    assert [reason.split(":")[0] for reason in graph.reasons] == [reason.split(":")[0] for reason in choice.reasons]
    for load in graph.loads:
        bad = damaged and load.precision != "fp32"
        offered = load.precision in BACKENDS[load.backend].precisions
        unfit = BACKENDS[load.backend].unfit(load.precision) is not None
        expected = ("refused" if bad or unfit else "loads") if load.backend in CPU_BACKENDS else "absent"
        if load.backend in CPU_BACKENDS or not offered:
            assert load.status == (expected if offered else "not-offered")


def test_what_is_held_back_is_shown_and_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, entry = pose_graph(np.zeros((4, 3)))
    held_back: dict[Precision, str] = {"int8": "Slower than fp32, by 3 [ms]."}
    path = write_toy_bundle(
        tmp_path / "toy.posekit",
        replaced={"pose": (content, replace(entry, held_back=held_back))},
        variants={("pose", "int8"): content},
    )
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=in_process))
    found = json.loads(posekit("doctor", path, "--json").stdout)["bundle"]["graphs"]["pose"]
    assert found["held_back"] == held_back
    assert (found["auto"]["backend"], found["auto"]["precision"]) == ("onnxruntime", "fp32")
    assert any("int8 is held back: Slower than fp32, by 3 [ms]." in reason for reason in found["reasons"])
    for command in ("doctor", "inspect"):
        assert "pose int8 is held back, it runs only when asked for: Slower than fp32, by 3 [ms]." in (
            " ".join(posekit(command, path).stdout.split())
        )


def test_a_default_path_that_cannot_run_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pose_graph(np.zeros((4, 3)))[1]
    path = write_toy_bundle(tmp_path / "toy.posekit", replaced={"pose": (b"not a graph", entry)})
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=in_process))
    result = posekit("doctor", path)
    assert result.exit_code == 3
    for words in ("refused", "default path regressor does not run here", "next: "):
        assert words in result.stdout
    found = json.loads(posekit("doctor", path, "--json").stdout)
    assert runs(found) == {"regressor": False, "bank": True, "epnp": True}
    assert "auto" not in found["bundle"]["graphs"]["pose"]
    assert found["bundle"]["graphs"]["pose"]["reasons"]


def test_a_damaged_bundle_is_three_clauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a trial of a damaged bundle")

    path = bundle_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BundleError):
        diagnose(path, trial=never)
    for wrong in (path, tmp_path / "none.posekit"):
        result = posekit("doctor", wrong)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def canned(**outcomes: Outcome) -> Any:
    """A trial that answers from a table; everything else is absent. Names with _ for -."""

    def answer(name: str, *_: Any) -> tuple[Outcome, tuple[Loading, ...]]:
        return outcomes.get(name.replace("-", "_"), Outcome("absent", "not installed", f"install {name}")), ()

    return answer


def test_without_any_backend_nothing_can_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=canned()))
    result = posekit("doctor")
    assert result.exit_code == 3
    for words in ("nothing can run here", "next: install opencv", "next: install onnxruntime"):
        assert words in result.stdout
    without_crops = canned(onnxruntime=Outcome("ok", "ONNX Runtime"))
    assert not diagnose(trial=without_crops, root=tmp_path).can_run


MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
NO_LIBCUDA = Outcome("broken", "CUDA: no libcuda", "Install the driver.")


def nvidia_root(root: Path) -> Path:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(MODULE)
    return root


def test_a_gpu_that_opens_is_named(tmp_path: Path) -> None:
    found = diagnose(
        trial=canned(cuda_bindings=Outcome("ok", "cuda-bindings 13", gpu=H200)), root=nvidia_root(tmp_path)
    )
    row = checks(found)["cuda-driver"]
    assert (row.status, row.version, found.gpu) == ("ok", "550.54.15", H200)
    assert "NVIDIA H200 (SM90), 139.0 GiB, CUDA 12.4" in row.found


def test_no_gpu_is_absent_and_a_gpu_that_fails_is_broken(tmp_path: Path) -> None:
    trial_without = canned(cuda_bindings=NO_LIBCUDA, tensorrt_rtx=NO_LIBCUDA)
    bare = checks(diagnose(trial=trial_without, root=tmp_path / "bare"))
    assert {bare[code].status for code in ("cuda-driver", "cuda-bindings", "tensorrt-rtx")} == {"absent"}
    failing = checks(diagnose(trial=trial_without, root=nvidia_root(tmp_path / "driver")))
    assert {failing[code].status for code in ("cuda-driver", "cuda-bindings", "tensorrt-rtx")} == {"broken"}
    assert failing["tensorrt"].status == "absent"
    unreached = checks(diagnose(trial=canned(), root=nvidia_root(tmp_path / "unreached")))["cuda-driver"]
    assert (unreached.status, unreached.remedy) == ("absent", "install cuda-bindings")


def test_an_engine_cache_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "file"))
    row = checks(diagnose(trial=canned()))["engine-cache"]
    assert row.status == "broken"
    assert row.remedy is not None
    assert "POSEKIT_CACHE" in row.remedy
    assert (tmp_path / "file").read_text() == ""


def simulate(patch: pytest.MonkeyPatch, gpu: SimulatedCuda) -> None:
    """TensorRT without TensorRT: a plan is the graph, and opening it gives a simulated engine."""
    ranges = {"x": ((1, 4),) * 3, "box": ((1, 4), (4, 4), (16, 4))}

    def build(graph: bytes, inputs: Any, options: Any) -> BuiltPlan:
        return BuiltPlan(bytes(graph), BuildReport("Simulation", VERSIONS[0], 0.1, len(graph), "0" * 64, ()))

    patch.setattr(tensorrt, "build_plan", build)
    patch.setattr(tensorrt, "engine_from_plan", lambda flavour, plan: Engine(VERSIONS[0], plan, ranges, gpu))
    patch.setattr(api, "tensorrt_module", lambda flavour: module(VERSIONS[0]))


def build_pose_engine(bundle: Path, flavour: FlavourName, gpu: SimulatedCuda) -> None:
    """As a run on that GPU does."""
    with pytest.MonkeyPatch.context() as patch, Bundle(bundle) as opened:
        simulate(patch, gpu)
        entry = opened.manifest.graphs["pose"]
        tensorrt.open_session(opened.read("pose.onnx"), entry, flavour, driver=gpu).close()


def test_engines_are_told_apart_and_never_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, here, elsewhere = bundle_of(tmp_path), SimulatedCuda(), SimulatedCuda()
    elsewhere.device = replace(elsewhere.device, name="Another GPU", sm=89)
    simulate(monkeypatch, here)
    monkeypatch.setattr(cuda, "open_driver", lambda provider=None: here)
    monkeypatch.setitem(BACKENDS, "tensorrt", replace(BACKENDS["tensorrt"], missing=lambda: None))
    monkeypatch.setitem(BACKENDS, "tensorrt-rtx", replace(BACKENDS["tensorrt-rtx"], missing=lambda: "not here"))

    def pose() -> tuple[Load, EngineFound]:
        load = loads(diagnose(path, trial=in_process))["tensorrt", "fp32"]
        assert load.engine is not None
        return load, load.engine

    load, first = pose()
    assert (load.status, first.state, first.others) == ("builds", "to-build", 0)
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=in_process))
    assert "runs here on tensorrt fp32; its first run builds 1 engine, once" in posekit("doctor", path).stdout
    assert len(EngineCache().entries()) == 1  # of the one operator
    build_pose_engine(path, "tensorrt", elsewhere)
    load, foreign = pose()
    assert (load.status, foreign.state, foreign.others) == ("builds", "foreign", 1)
    build_pose_engine(path, "tensorrt", here)
    load, cached = pose()
    assert (load.status, cached.state, cached.others, cached.digest) == ("loads", "cached", 1, first.digest)
    assert cached.path is not None
    assert Path(cached.path).is_file()


def test_engines_for_other_machines_are_seen_without_a_gpu(tmp_path: Path) -> None:
    path = bundle_of(tmp_path)
    build_pose_engine(path, "rtx", SimulatedCuda())
    found = loads(diagnose(path, trial=canned(onnxruntime=Outcome("ok", "it"))))
    assert found["tensorrt-rtx", "fp32"].engine == EngineFound("foreign", others=1)
    assert found["tensorrt", "fp32"].engine is None


def test_everything_that_can_be_tried_has_a_row() -> None:
    assert set(TRIALS) == {"opencv", *cuda.PROVIDERS, *BACKENDS}
    assert set(TRIALS) <= set(checks(diagnose(trial=canned())))
    assert set(trial.INSTALL) | {name for name, row in BACKENDS.items() if row.engine} == set(TRIALS)
    assert ONE_OP_ENTRY.inputs[0].shape == (1, 4)


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(doctor, "diagnose", partial(diagnose, trial=in_process))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", posekit("doctor", bundle_of(tmp_path, int8=POSE)).stdout)
    tables = [line.rstrip() for line in shown.splitlines() if line.startswith(" ")]  # sentences may be longer
    assert len(tables) > 20
    assert max(map(len, tables)) <= columns
    for words in ("pose", "int8", "onnxruntime", "paths", "next: posekit run"):
        assert words in shown


def test_the_machine_is_shown_with_what_decides_latency() -> None:
    found = machine_from_root()
    jetson = Jetson("Orin", "36.4.3", "6.2", "MAXN", clocks_locked=False)
    board = replace(found, jetson=jetson, cpu=replace(found.cpu, count=12, cores=12), gpus=())
    rows = dict(doctor_view._machine_rows(board))
    assert rows["processor"].endswith("12 logical, 12 cores")
    assert "jetson_clocks" in rows["clocks"]
    assert "GPUs" not in rows
    locked = dict(doctor_view._machine_rows(replace(board, jetson=replace(jetson, clocks_locked=True))))
    assert locked["clocks"] == "locked"
    assert dict(doctor_view._machine_rows(replace(found, gpus=("A", "A"))))["GPUs"] == "A, A"
