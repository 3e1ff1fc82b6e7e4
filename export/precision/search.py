"""Which blocks may be INT8: those that cost most stay in high precision until the gates hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from posekit.export.precision.judge import Measured
from posekit.export.verify.gates import MIN_FRAMES, MIN_JUDGED, AnyFigures, GateResult, worst_strain

# A search ends at the first mix that holds its gates, and so close to them; on the crops that judge it the mix is a little
# worse, for it was neither calibrated nor chosen on them. Where it then misses a gate, a search that spares more follows;
# nothing holds the last of these.
STRAINS = (0.8, 0.5, 0.25, 0.0)
LARGEST_STRAIN = STRAINS[0]


@dataclass(frozen=True)
class Candidate:
    """One mixed graph, measured. kept: blocks that stay in high precision.   most_strain: of its gates, that passes."""

    kept: tuple[str, ...]
    measured: Measured
    most_strain: float = LARGEST_STRAIN

    @property
    def strained(self) -> tuple[str, ...]:
        """Gates that it does not hold with something to spare for other crops."""
        return tuple(gate.gate for gate in self.measured.gates if not _spares(gate, self.most_strain))

    @property
    def passed(self) -> bool:
        return not self.strained


@dataclass(frozen=True)
class Sensitivity:
    """What one block costs when it alone is quantised."""

    block: str
    strain: float
    figures: AnyFigures


@dataclass(frozen=True)
class Search:
    """sensitivities: the costliest first; none for a single block.   tried: every candidate, the most quantised first.
    chosen: the most quantised that passes; None if none does.
    """

    sensitivities: tuple[Sensitivity, ...]
    tried: tuple[Candidate, ...]
    chosen: Candidate | None


def next_strain(most_strain: float | None) -> float | None:
    """What the gates may be strained in the search after one that allowed so much; None after the last.

    most_strain: None for the first.
    """
    after = STRAINS.index(LARGEST_STRAIN if most_strain is None else most_strain) + 1
    return STRAINS[after] if after < len(STRAINS) else None


def _spares(gate: GateResult, most_strain: float) -> bool:
    """A gate of fp32 itself has no floor and nothing to spare; few poses or boxes are no proof, and here better than none;
    where noise gives as much, no block is to blame.
    """
    if gate.floor is None:
        return gate.verdict != "missed"
    enough = gate.n >= MIN_JUDGED and gate.frames >= MIN_FRAMES
    return (gate.verdict == "undecided" and enough) or gate.strain <= most_strain


Measure = Callable[[Collection[str]], Candidate]  # blocks that are quantised -> the candidate


def searched(blocks: Sequence[str], measure: Measure) -> Search:
    """Measure every block alone, then everything; where that misses a gate, find the fewest blocks to leave out.

    Blocks are left out in order of their own cost, the costliest first (greedy; costs that only appear together are found
    by measuring each candidate as a whole). The number left out is bisected: about log2(blocks) candidates.
    """
    costs = [_alone(block, measure([block])) for block in blocks] if len(blocks) > 1 else []
    ranked = tuple(sorted(costs, key=lambda cost: -cost.strain))
    order = [cost.block for cost in ranked]
    tried = {0: measure(blocks)}
    low, high = (0, len(blocks)) if not tried[0].passed else (-1, 0)
    while high - low > 1:  # leaving `low` out misses a gate; leaving `high` out passes, or quantises nothing
        middle = (low + high) // 2
        tried[middle] = measure([block for block in blocks if block not in order[:middle]])
        low, high = (low, middle) if tried[middle].passed else (middle, high)
    return Search(ranked, tuple(tried[k] for k in sorted(tried)), tried.get(high))


def kept_nodes(blocks: Mapping[str, Sequence[str]], quantised: Collection[str]) -> tuple[str, ...]:
    """Nodes of the blocks that are not quantised."""
    return tuple(node for block, nodes in blocks.items() if block not in quantised for node in nodes)


def _alone(block: str, candidate: Candidate) -> Sensitivity:
    own = tuple(gate for gate in candidate.measured.gates if gate.floor is not None)
    return Sensitivity(block, worst_strain(own), candidate.measured.figures)
