"""The runtime on aarch64, under qemu-user: its own tests there, and the poses of this machine.

Python 3.11 is Debian's, with the versions of today; Python 3.10 has those of JetPack 6. The reference models run on every
path, the bank with few views. Numbers and loading are real there; nothing is timed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from posekit.benchmarks.studies.machine_environments import Started, emulated, emulation_missing, this_python
from posekit.benchmarks.studies.machine_poses import DETECTOR, FoundPoses
from posekit.benchmarks.studies.machines import Workload, copies_of, differences, poses_of

ROOT = Path(__file__).resolve().parents[1]
TEST_PACKAGES = ("pytest", "hypothesis", "onnx", "safetensors")
PYTHONS = ("3.11", "3.10")
BACKEND = "onnxruntime"  # OpenVINO is refused there
# What a processor could make different: pixels, memory, loading, arithmetic. The rest of tests/runtime simulates devices
# or reads text, which is the same anywhere.
TESTS = (
    "test_golden_pixels.py", "test_guarded_frames.py", "test_crop.py", "test_decode.py", "test_detector.py",
    "test_estimator.py", "test_image_file.py", "test_intrinsics.py", "test_pose.py",
)  # fmt: skip
SCENES = 2
FEW_VIEWS = ("sphere = 162", "sphere = 42, in_plane_steps = 6")
LIMIT_S = 1500

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class There:
    """What is going on in one emulated Python."""

    tests: Future[CompletedProcess[str]]
    poses: Future[FoundPoses]


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    from posekit.export.pipeline import export_recipe
    from posekit.export.recipe import recipe_from_toml
    from posekit.export.reference.demo import write_demo

    folder = tmp_path_factory.mktemp("demo")
    demo = write_demo(folder, count=SCENES)
    text = demo.recipe.read_text()
    assert 'name = "bank"' in text.rpartition("[[networks]]")[2]
    assert FEW_VIEWS[0] in text
    demo.recipe.write_text(text.replace(*FEW_VIEWS))
    export_recipe(recipe_from_toml(demo.recipe), folder / "few.posekit")
    return Workload("scenes", folder / "few.posekit", demo.scenes, DETECTOR, 1)


@pytest.fixture(scope="module")
def there(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, There]]:
    """Everything is begun at once, and waited for where it is looked at."""
    folder = tmp_path_factory.mktemp("aarch64")
    with ThreadPoolExecutor(2) as pool:

        def begun(version: str, started: Started) -> There:
            tests = [str(ROOT / "tests/runtime" / name) for name in TESTS]
            poses = pool.submit(poses_of, started, workload, BACKEND, folder / f"{version}.json")
            asked = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests]
            return There(pool.submit(started.run, asked, LIMIT_S), poses)

        yield {
            version: begun(version, emulated(version, folder / version, TEST_PACKAGES))
            for version in PYTHONS
            if not emulation_missing(version)
        }


@pytest.fixture(scope="module", params=PYTHONS)  # of the module, so that it skips before anything is made
def version(request: pytest.FixtureRequest) -> str:
    missing = emulation_missing(request.param)
    if missing:
        pytest.skip(missing)
    return str(request.param)


def test_the_runtimes_tests_pass(version: str, there: dict[str, There]) -> None:
    done = there[version].tests.result()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    print(f"aarch64, Python {version}: {done.stdout.strip().splitlines()[-1]}")


def test_poses_are_those_of_this_machine(
    version: str, there: dict[str, There], workload: Workload, tmp_path: Path
) -> None:
    here = poses_of(this_python(tmp_path), workload, BACKEND, tmp_path / "here.json")
    found = there[version].poses.result()
    assert (here.machine, found.machine) == (platform.machine(), "aarch64")
    rows = list(differences(workload.name, f"Python {version}", here, found, copies_of(workload.bundle)))
    assert {row.path for row in rows} == {"gdr.regressor", "gdr.epnp", "bank"}
    assert [row for row in rows if not row.within] == []
    print(*rows, sep="\n")
