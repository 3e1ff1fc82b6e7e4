"""The public names, pinned: adding or losing one is a decision."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import posekit

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {
    "Bundle", "Detection", "Intrinsics", "Pose", "PoseEstimate", "PoseEstimator", "PosekitError", "Reason",
    "StageProfiler", "Unposed", "frames_from", "intrinsics_from_file", "intrinsics_from_json",
    "rgb_from_bgr",
}  # fmt: skip


def test_the_public_names() -> None:
    assert set(posekit.__all__) == PUBLIC | {"__version__"}
    assert set(dir(posekit)) == set(posekit.__all__)
    for name in PUBLIC:
        assert getattr(posekit, name).__module__.startswith("posekit.runtime.")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "sdk" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert {
        alias.asname for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    } == PUBLIC


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'estimate'"):
        posekit.estimate  # noqa: B018
