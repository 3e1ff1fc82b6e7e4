"""Is a crop's answer its own? The same crop alone, and in batches with other neighbours and in another place.

A network whose crops influence each other (norms without running statistics, a mean or softmax over the batch) gives
poses that change with the number of objects in the frame. Network and graph can agree about such numbers at every size
of the batch, so that parity of the two says nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.export.example_feed import Arrays, example_feed
from posekit.export.parity import (
    TOLERANCES,
    ParityFigure,
    compared,
    feed_one_rounding_off,
    module_one_rounding_off,
    network_outputs,
)
from posekit.export.systems import GraphSource
from posekit.runtime.errors import ParityError
from posekit.runtime.session import Session
from posekit.runtime.tensor import Feed

ROWS = 3
BATCHES: tuple[tuple[int, ...], ...] = ((0, 1, 2), (2, 0))  # rows in other places, with other neighbours
VIEWS = 150
Answers = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Crops of a graph, whose network has passed.  feed: ROWS of them.  shaken: the network's answers to each alone,
    changed by one rounding: what tells rounding from influence.
    """

    source: GraphSource
    feed: Arrays
    shaken: Answers

    def check(self, session: Session) -> None:
        """ParityError where a crop's answer from the exported graph depends on its batch."""
        alone = _alone(self.source, self.feed, lambda feed: dict(session.run(feed)))
        _check(self, alone, session.run, f"in the exported graph on {session.backend}, though not in the network")


def checked_rows(source: GraphSource, seed: int = 0, crops: Feed | None = None) -> Rows | None:
    """Run the network in torch; ParityError where its answers depend on the batch, or change from run to run.

    None for a graph that takes one image.  crops: as of posekit.export.parity.check_parity.
    """
    if not any("batch" in spec.shape for spec in source.inputs):
        return None
    feed = example_feed(source.inputs, {"batch": ROWS, "views": VIEWS}, seed) if crops is None else dict(crops)

    def network(one: Arrays) -> Answers:
        return network_outputs(source, source.module, one)

    shaken_module, shaken_feed = module_one_rounding_off(source.module, seed), feed_one_rounding_off(feed, seed)
    shaken = _alone(source, shaken_feed, lambda one: network_outputs(source, shaken_module, one))
    rows = Rows(source, feed, shaken)
    alone = _alone(source, feed, network)
    _check_repeats(rows, alone, network)
    _check(rows, alone, network, "in the network itself")
    return rows


def _chosen(source: GraphSource, feed: Feed, rows: Sequence[int]) -> Arrays:
    """Of what has a batch axis; banks are the same for all crops."""
    batched = {spec.name for spec in source.inputs if spec.shape[:1] == ("batch",)}
    return {
        name: np.asarray(array)[list(rows)] if name in batched else np.asarray(array) for name, array in feed.items()
    }


def _alone(source: GraphSource, feed: Feed, run: Callable[[Arrays], Answers]) -> Answers:
    """One run a crop, the answers stacked."""
    answers = [
        {name: np.array(array) for name, array in run(_chosen(source, feed, [row])).items()} for row in range(ROWS)
    ]
    return {name: np.concatenate([one[name] for one in answers]) for name in source.outputs}


def _check_repeats(rows: Rows, alone: Answers, network: Callable[[Arrays], Answers]) -> None:
    once = (0,)
    for figure in _moved(rows, alone, network(_chosen(rows.source, rows.feed, once)), once):
        raise ParityError(
            f"output {figure.output!r} of the {rows.source.role} graph's network",
            got=f"other numbers when the same crop is run again (a relative difference of {figure.max_rel:.2g})",
            expected="equal numbers",
            remedy="Switch dropout and noise off at inference (F.dropout(x, training=self.training)), and keep nothing in buffers from "
            "one run to the next.",
        )


def _check(rows: Rows, alone: Answers, run: Callable[[Arrays], Any], where: str) -> None:
    for batch in BATCHES:
        for figure in _moved(rows, alone, dict(run(_chosen(rows.source, rows.feed, batch))), batch):
            raise ParityError(
                f"output {figure.output!r} of the {rows.source.role} graph",
                got=f"crops of one batch influence each other, {where}: a crop's numbers change by "
                f"{figure.max_rel:.2g} with its neighbours and its place in the batch",
                expected=f"the numbers that it gives alone (relative difference at most {figure.tolerance:.2g})",
                remedy="Give norms running statistics (BatchNorm with track_running_stats=True) and take no mean, "
                "softmax, sort or reshape across the batch axis: poses would change with the number of objects.",
            )


def _moved(rows: Rows, alone: Answers, got: Answers, batch: Sequence[int]) -> list[ParityFigure]:
    """The output that differs most, if any does by more than rounding."""
    order, tolerance = list(batch), TOLERANCES[rows.source.precision]
    wanted, shaken = ({name: array[order] for name, array in each.items()} for each in (alone, rows.shaken))
    figures = [f for f in compared(wanted, got, shaken, tolerance) if not f.max_rel <= f.tolerance]
    return sorted(figures, key=lambda f: -f.max_rel)[:1]
