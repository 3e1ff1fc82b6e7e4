"""Shared fixtures: where real data is, and which tests this machine can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("posekit", derandomize=True, deadline=None)
hypothesis.settings.load_profile("posekit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {"gpu": None if Path("/dev/nvidiactl").exists() else "no NVIDIA GPU on this machine"}
    skips["slow"] = None if config.getoption("--slow") else "slow; run with --slow"
    for item in items:
        for name, reason in skips.items():
            if reason and name in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines and range tables of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real frames with known poses: POSEKIT_DATA, else ../shared/data beside the repository."""
    path = Path(os.environ.get("POSEKIT_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data: set POSEKIT_DATA ({path} is absent)")
    return path
