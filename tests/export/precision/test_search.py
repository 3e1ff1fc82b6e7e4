"""The search leaves out as few blocks as the gates need, costliest first, and says so when none may be quantised."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_figures import pose_figures

from posekit.export.precision.judge import Measured
from posekit.export.precision.search import LARGEST_STRAIN, STRAINS, Candidate, kept_nodes, next_strain, searched
from posekit.export.verify.figures import Spread
from posekit.export.verify.gates import GateResult, Gates, Outcome, judged

LIMIT = 1.0
COSTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.floats(0, 2), min_size=1, max_size=12)


class Additive:
    """A network whose blocks' costs add up; remembers what was measured."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.measured = costs, list[tuple[str, ...]]()

    def __call__(self, quantised: Collection[str]) -> Candidate:
        self.measured.append(tuple(quantised))
        total = sum(self.costs[block] for block in quantised)
        seen, still = (pose_figures(rotation_deg=Spread(0, x)) for x in (total, 0))
        gates = judged(seen, [still], Gates(rotation_p95_deg=LIMIT), trained=True)
        kept = tuple(block for block in self.costs if block not in quantised)
        return Candidate(kept, Measured("toy", seen, gates, latency_ms=10 + len(kept), size_bytes=100 + len(kept)))


@given(COSTS)
def test_the_chosen_passes_and_one_block_more_would_not(costs: dict[str, float]) -> None:
    network = Additive(costs)
    found = searched(list(costs), network)
    if found.chosen is None:
        assert min(costs.values()) > LIMIT * LARGEST_STRAIN or len(costs) == 1
        return
    assert found.chosen.passed
    order = sorted(costs, key=lambda block: -costs[block])
    kept = len(found.chosen.kept)
    assert {costs[block] for block in found.chosen.kept} == {costs[block] for block in order[:kept]}
    if kept:
        assert sum(costs[block] for block in order[kept - 1 :]) > LIMIT * LARGEST_STRAIN * (1 - 1e-9)


@given(COSTS)
def test_every_block_is_measured_alone_once_and_few_candidates_follow(costs: dict[str, float]) -> None:
    network = Additive(costs)
    found = searched(list(costs), network)
    alone = len(costs) if len(costs) > 1 else 0
    assert len(network.measured) <= 1 + alone + (len(costs).bit_length() if not found.tried[0].passed else 0)
    assert {s.block for s in found.sensitivities} == (set(costs) if alone else set())
    assert [s.strain for s in found.sensitivities] == sorted((s.strain for s in found.sensitivities), reverse=True)
    assert all(len(a.kept) < len(b.kept) for a, b in zip(found.tried, found.tried[1:], strict=False))


def test_nothing_is_chosen_where_every_block_is_too_much() -> None:
    found = searched(["a", "b", "c"], Additive({"a": 5, "b": 6, "c": 7}))
    assert found.chosen is None
    assert not any(candidate.passed for candidate in found.tried)


@pytest.mark.parametrize(
    ("verdict", "strain", "floor", "n", "spares"),
    [
        ("held", 0.5, 0.0, 40, True),
        ("held", 0.9, 0.0, 40, False),  # other crops are a little worse
        ("missed", 1.5, 0.0, 40, False),
        ("held", 1.0, None, 40, True),  # of fp32 itself: no block has a part in it
        ("missed", 1.5, None, 40, False),
        ("undecided", 50.0, 0.0, 21, False),  # everything lost, of few
        ("undecided", 0.1, 0.0, 21, True),
        ("undecided", 3.0, 0.0, 40, True),  # noise alone gives as much
    ],
)
def test_a_mix_spares_something_of_what_it_costs(
    verdict: Outcome, strain: float, floor: float | None, n: int, spares: bool
) -> None:
    gate = GateResult("lost", verdict, 0.1, 0.1, floor, strain, n, 20, "boxes")
    candidate = Candidate((), Measured("toy", pose_figures(), (gate,), latency_ms=1, size_bytes=1))
    assert candidate.passed is spares
    assert candidate.strained == (() if spares else ("lost",))


@pytest.mark.parametrize("quantised", [(), ("a",), ("a", "b")])
def test_nodes_outside_the_quantised_blocks_are_kept(quantised: tuple[str, ...]) -> None:
    blocks = {"a": ("a1", "a2"), "b": ("b1",)}
    assert kept_nodes(blocks, quantised) == tuple(n for b, ns in blocks.items() if b not in quantised for n in ns)


def test_each_search_spares_more_than_the_one_before_until_nothing_is_left() -> None:
    strains = [LARGEST_STRAIN]
    while (after := next_strain(strains[-1])) is not None:
        strains.append(after)
    assert next_strain(None) == strains[1]
    assert strains == sorted(STRAINS, reverse=True)
    assert strains[-1] == 0
