"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from toy_bundles import write_toy_bundle


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a toy bundle and returns where it is; keyword arguments as write_toy_bundle."""
    return partial(write_toy_bundle, tmp_path / "toy.posekit")
