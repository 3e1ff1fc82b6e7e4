"""The engine cache: what is found is what was built, whatever died, filled up or was damaged in between."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_disk
from toy_engines import compiled, rtx_only, toy_graph

from posekit.runtime.engines.build import BuildReport, BuiltPlan
from posekit.runtime.engines.cache import CachedPlan, Device, EngineCache, EngineKey, default_folder
from posekit.runtime.engines.kernels import Kernel
from posekit.runtime.engines.options import AxisRange, BuildOptions
from posekit.runtime.errors import EngineError

OPTIONS = BuildOptions("tensorrt", ({"batch": AxisRange(1, 2, 4)},))
KEY = EngineKey("ab" * 32, OPTIONS, "10.3.0", Device("Orin", "8.7", "36.4.3"))
PLAN = bytes(range(256)) * 64


def built(plan: bytes = PLAN) -> BuiltPlan:
    kernels = (Kernel("conv", "CaskConvolution", ("Int8",), ("Int8",), ("Half",), ("conv",)),)
    digest = hashlib.sha256(plan).hexdigest()
    return BuiltPlan(plan, BuildReport("TensorRT", "10.3.0", 1.5, len(plan), digest, kernels, ("slow",)))


def never() -> BuiltPlan:
    raise AssertionError("built again")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(key: EngineKey) -> set[str]:
    return {f"{key.digest}.plan", f"{key.digest}.json"}


def test_what_was_built_is_found_again_and_is_a_raw_plan(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "new" / "folder")
    first = cache.plan_for(KEY, built)
    again = EngineCache(cache.folder).plan_for(KEY, never)
    assert (first.built, again.built) == (True, False)
    assert first.plan == again.plan == PLAN
    assert again.report == first.report == built().report
    assert again.path is not None
    assert again.path.read_bytes() == PLAN
    assert files(cache.folder) == whole(KEY)
    assert str(again.path) in again.reason


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, graph_sha256="cd" * 32),
        replace(KEY, version="10.13.3"),
        replace(KEY, device=Device("Orin", "8.7", "36.4.4")),
        replace(KEY, device=Device("Thor", "11.0")),
        replace(KEY, device=None),
        replace(KEY, options=replace(OPTIONS, workspace_bytes=1 << 30)),
        replace(KEY, options=replace(OPTIONS, profiles=({"batch": AxisRange(1, 3, 4)},))),
        replace(KEY, options=replace(OPTIONS, timing_cache_sha256="0" * 64)),
    ],
)
def test_everything_that_an_engine_depends_on_changes_the_key(other: EngineKey, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.plan_for(KEY, built)
    assert cache.plan_for(other, lambda: built(b"other")).plan == b"other"
    assert cache.plan_for(KEY, never).plan == PLAN


def test_the_key_is_the_same_in_every_process() -> None:
    code = (
        "from posekit.runtime.engines.cache import *; from posekit.runtime.engines.options import *;"
        "o = BuildOptions('tensorrt', ({'batch': AxisRange(1, 2, 4)},));"
        "print(EngineKey('ab' * 32, o, '10.3.0', Device('Orin', '8.7', '36.4.3')).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == KEY.digest


def damage_record(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(plan: Path) -> None:
        record = json.loads(plan.with_suffix(".json").read_text())
        change(record)
        plan.with_suffix(".json").write_text(json.dumps(record))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: plan.write_bytes(PLAN[:-1]),
        lambda plan: plan.write_bytes(b"x" + PLAN[1:]),
        lambda plan: plan.write_bytes(b""),
        lambda plan: plan.with_suffix(".json").write_text("{"),
        lambda plan: plan.with_suffix(".json").write_text("[]"),
        lambda plan: plan.with_suffix(".json").write_bytes(b"\xff\xfe"),
        damage_record(lambda record: record.update(format=2)),
        damage_record(lambda record: record.update(extra=1)),
        damage_record(lambda record: record["key"].update(version="9")),
        damage_record(lambda record: record["key"]["options"].update(flavour="rtx")),
        damage_record(lambda record: record.update(sha256="0" * 64)),
    ],
)
def test_a_damaged_entry_is_removed_and_built_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.plan_for(KEY, built).path
    assert path is not None
    damage(path)
    again = cache.plan_for(KEY, built)
    assert again.built
    assert "damaged" in again.reason or "of another posekit" in again.reason
    assert cache.plan_for(KEY, never).plan == PLAN
    assert files(tmp_path) == whole(KEY)


@pytest.mark.parametrize("lost", [".plan", ".json"])
def test_half_an_entry_is_no_entry(lost: str, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.plan_for(KEY, built)
    (tmp_path / f"{KEY.digest}{lost}").unlink()
    assert "no engine" in cache.plan_for(KEY, built).reason


def keys(n: int) -> list[EngineKey]:
    return [replace(KEY, graph_sha256=f"{i:064x}") for i in range(n)]


def test_the_engines_not_used_for_longest_go_first(tmp_path: Path) -> None:
    a, b, c = keys(3)
    record = len((tmp_path / f"{a.digest}.json").read_bytes()) if EngineCache(tmp_path).plan_for(a, built) else 0
    cache = EngineCache(tmp_path, max_bytes=2 * (len(PLAN) + record) + record)
    cache.plan_for(b, built)
    for age, key in enumerate((b, a)):  # a was used last
        os.utime(tmp_path / f"{key.digest}.json", (age, age))
    cache.plan_for(a, never)
    cache.plan_for(c, built)
    assert {entry.digest for entry in cache.entries()} == {a.digest, c.digest}
    assert files(tmp_path) == whole(a) | whole(c)


def test_an_engine_larger_than_the_cache_is_used_and_not_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=len(PLAN) - 1)
    found = cache.plan_for(KEY, built)
    assert (found.plan, found.path) == (PLAN, None)
    assert "Not kept: 16384 bytes are more than the cache's 16383" in found.reason
    assert files(tmp_path) == set()


def test_entries_show_what_the_key_was_made_of(tmp_path: Path) -> None:
    assert EngineCache(tmp_path / "none").clear() == 0
    cache = EngineCache(tmp_path)
    assert cache.entries() == ()
    cache.plan_for(KEY, built)
    (tmp_path / "notes.txt").write_text("someone else's")
    (entry,) = cache.entries()
    assert (entry.digest, entry.size, entry.record.key) == (KEY.digest, len(PLAN), KEY)
    assert entry.record.report.kernels == built().report.kernels
    assert cache.clear() >= len(PLAN)
    assert files(tmp_path) == {"notes.txt"}


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        EngineCache(tmp_path).plan_for(KEY, never)
    assert files(tmp_path) == set()


def test_a_full_disk_costs_the_cache_only(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with full_disk(1000):
        found = cache.plan_for(KEY, built)
    assert (found.plan, found.path, found.built) == (PLAN, None, True)
    assert "Not kept" in found.reason
    assert files(tmp_path) == set()
    assert cache.plan_for(KEY, built).path is not None


def test_a_folder_that_cannot_be_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = EngineCache(tmp_path / "file" / "engines").plan_for(KEY, built)
    assert (found.plan, found.path) == (PLAN, None)
    assert "Not kept" in found.reason


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Rights do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_read(open_folder: Path, request: pytest.FixtureRequest) -> None:
    EngineCache(open_folder).plan_for(KEY, built)
    os.chmod(open_folder, 0o555)
    try:
        request.getfixturevalue("ordinary_user")
        cache = EngineCache(open_folder)
        assert cache.plan_for(KEY, never).plan == PLAN
        missed = cache.plan_for(keys(1)[0], built)
        assert (missed.plan, missed.path) == (PLAN, None)
        assert "Permission denied" in missed.reason
        assert cache.clear() == 0
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(open_folder, 0o755)
    assert files(open_folder) == whole(KEY)


CHILD = """
import os, signal, sys, time
from pathlib import Path
from posekit.runtime.engines.build import BuildReport, BuiltPlan
from posekit.runtime.engines.cache import Device, EngineCache, EngineKey
from posekit.runtime.engines.options import AxisRange, BuildOptions
folder, die_at, pause_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
PLAN = bytes(range(256)) * 64
KEY = EngineKey("ab" * 32, BuildOptions("tensorrt", ({"batch": AxisRange(1, 2, 4)},)), "10.3.0", Device("Orin", "8.7", "36.4.3"))

seen = []
def dying(step, real):
    def call(*arguments, **options):
        seen.append(step)
        place = f"{step}{seen.count(step)}"
        if place == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call

os.fsync, os.replace = dying("fsync", os.fsync), dying("replace", os.replace)

def build():
    if die_at == "build":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"built-by-{os.getpid()}").write_text("")
    time.sleep(pause_s)
    return BuiltPlan(PLAN, BuildReport("TensorRT", "10.3.0", 1.5, len(PLAN), "", ()))

found = EngineCache(folder).plan_for(KEY, build)
assert found.plan == PLAN
print(found.built)
"""


def child(folder: Path, die_at: str = "", pause_s: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), die_at, str(pause_s)], stdout=subprocess.PIPE, text=True
    )


# write plan: fsync 1, replace 1; write record: fsync 2, replace 2; then the lock's own file goes.
@pytest.mark.parametrize("die_at", ["build", "fsync1", "replace1", "fsync2", "replace2"])
def test_killed_at_any_step_nothing_half_written_is_picked_up(die_at: str, tmp_path: Path) -> None:
    killed = child(tmp_path, die_at)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    cache = EngineCache(tmp_path, lock_timeout_s=5)
    assert cache.entries() == ()
    again = cache.plan_for(KEY, built)
    assert again.built
    assert again.plan == PLAN
    assert cache.plan_for(KEY, never).plan == PLAN
    assert {name for name in files(tmp_path) if not name.startswith("built-by")} == whole(KEY)


def test_what_a_killed_process_left_is_swept_when_another_key_is_kept(tmp_path: Path) -> None:
    child(tmp_path, "replace1").communicate()
    assert any(name.endswith(".part") for name in files(tmp_path))
    other = keys(1)[0]
    EngineCache(tmp_path).plan_for(other, built)
    assert {name for name in files(tmp_path) if not name.startswith("built-by")} == whole(other)


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    crowd = [child(tmp_path, pause_s=0.5) for _ in range(4)]
    said = [process.communicate()[0].strip() for process in crowd]
    assert sorted(said) == ["False", "False", "False", "True"]
    assert len([name for name in files(tmp_path) if name.startswith("built-by")]) == 1


def test_threads_wait_for_each_other_too(tmp_path: Path) -> None:
    builds, found = [], []

    def slow() -> BuiltPlan:
        builds.append(1)
        time.sleep(0.2)
        return built()

    def work() -> None:
        found.append(EngineCache(tmp_path).plan_for(KEY, slow))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert all(one.plan == PLAN for one in found)
    assert files(tmp_path) == whole(KEY)


def test_waiting_ends_with_what_to_do(tmp_path: Path) -> None:
    other = child(tmp_path, pause_s=30)
    try:
        while not any(name.startswith("built-by") for name in files(tmp_path)):
            time.sleep(0.02)
        with pytest.raises(EngineError, match=r"another process building it.*POSEKIT_CACHE"):
            EngineCache(tmp_path, lock_timeout_s=0.1).plan_for(KEY, never)
        EngineCache(tmp_path).clear()
        assert f"{KEY.digest}.lock" in files(tmp_path)
    finally:
        other.kill()
        other.communicate()
    assert EngineCache(tmp_path, lock_timeout_s=5).plan_for(KEY, built).plan == PLAN


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"POSEKIT_CACHE": "/c"}, "/c/engines"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/posekit/engines"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/posekit/engines"),
        ({"POSEKIT_CACHE": "", "HOME": "/h"}, "/h/.cache/posekit/engines"),
    ],
)
def test_the_folder_follows_the_environment(environment: dict[str, str], folder: str, monkeypatch: Any) -> None:
    for name in ("POSEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == Path(folder)


@rtx_only
def test_a_compiled_engine_is_kept_with_its_kernels(tmp_path: Path) -> None:
    options = BuildOptions("rtx", ({"batch": AxisRange(1, 4, 8)},), compute_capabilities=(86,))
    graph = toy_graph("int8")
    key = EngineKey(hashlib.sha256(graph).hexdigest(), options, "1.7.1.116")
    cache = EngineCache(tmp_path)
    first: CachedPlan = cache.plan_for(key, lambda: compiled(graph))
    again = cache.plan_for(key, never)
    assert again.plan == first.plan
    assert again.report == first.report
