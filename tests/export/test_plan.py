"""A dry run makes nothing, and says what an export would make and what is there already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_recipe import write_workshop

from posekit.export import pipeline
from posekit.export.pipeline import export_recipe
from posekit.export.plan import ExportPlan, PlannedStep, planned
from posekit.export.recipe import recipe_from_toml
from posekit.runtime.errors import CalibrationError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with write_workshop(tmp_path_factory.mktemp("workshop")) as path:
        yield path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan_of(recipe: Path, engines: bool = False) -> ExportPlan:
    return planned(recipe_from_toml(recipe), lambda stage, done, total: None, engines)


def by_name(plan: ExportPlan) -> dict[str, PlannedStep]:
    return {step.name: step for step in plan.steps}


def test_the_plan_says_what_then_happens(recipe: Path, own_cache: Path, tmp_path: Path) -> None:
    before = by_name(plan_of(recipe, engines=True))
    assert not own_cache.exists()
    assert [p for p in recipe.parent.iterdir() if p.name.startswith(".")] == []
    assert not any(step.kept for step in before.values())
    report = export_recipe(recipe_from_toml(recipe), tmp_path / "toy.posekit")
    plan = plan_of(recipe)
    after = by_name(plan)
    assert set(after) == set(before) - {"engines of guess.pose"}
    assert {name for name in after if name in report.made} == {name for name, step in after.items() if step.kept}
    assert {"graph guess.pose", "fp16 of guess.pose"} <= set(report.made)
    for name, precision in (("graph guess.pose", "fp32"), ("fp16 of guess.pose", "fp16")):
        size = report.manifest.files[f"graphs/guess.pose.{precision}.onnx"].size
        assert after[name].size_bytes == size
        reckoned = before[name].size_bytes
        assert reckoned is not None
        assert reckoned < size  # the nodes of a toy network weigh more than its weights
    assert plan.crops == report.verification.n_samples if report.verification else False


def test_a_bad_input_is_found_before_anything_is_made(
    recipe: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "onnx_from_network", None)
    few = recipe.with_name("few.toml")
    few.write_text(recipe.read_text() + "max_crops = 20\n")
    for attempt in (lambda: plan_of(few), lambda: export_recipe(recipe_from_toml(few), tmp_path / "toy.posekit")):
        with pytest.raises(CalibrationError, match="at least 32"):
            attempt()
