"""Nested phases become one fraction that never falls and ends at 1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.engines.progress import Phases


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=20))
def test_the_fraction_never_falls_and_ends_at_one(tree: list[object]) -> None:
    """tree: each phase is the list of its steps, each step a phase of its own or nothing."""
    phases, seen = Phases(), [0.0]

    def walk(steps: list[object], name: str, parent: str | None) -> None:
        phases.begin(name, parent, len(steps))
        for index, step in enumerate(steps):
            if step:
                assert isinstance(step, list)
                walk(step, f"{name}.{index}", name)
            phases.step(name, index)
            seen.append(phases.now().fraction)
        phases.end(name)

    walk(tree, "build", None)
    assert seen == sorted(seen)
    assert phases.now().fraction == 1.0
    assert phases.now().left_s == 0.0


def test_half_of_the_second_of_four_steps_is_three_eighths() -> None:
    phases = Phases()
    assert phases.now().left_s is None
    phases.begin("build", None, 4)
    phases.step("build", 0)
    phases.begin("timing", "build", 10)
    phases.step("timing", 4)
    now = phases.now()
    assert now.phase == "timing"
    assert now.fraction == pytest.approx(3 / 8)
    assert now.left_s == pytest.approx(now.elapsed_s * 5 / 3)
