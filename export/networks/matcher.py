"""The matcher graphs: descriptors of crops against a bank of templates, location by location.

score_n = w_n sum over l of g(<q_l, t_ln>): t_ln has unit length where the view shows the object and is zero elsewhere,
w_n = 1 / places seen, and g(c) is c above a threshold and 0 otherwise, so that hidden places do not vote (template-pose and
TraM3D: 0.2); without a threshold g is the identity.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from posekit.export.systems import GraphSource
from posekit.runtime.bank import CANDIDATES, SHORTLIST, Search, sketch_channels
from posekit.runtime.tensor import TensorSpec


class FlatMatcher(nn.Module):
    """Every view is compared.

    Forward: descriptors (B, L, C), unit length along C; templates (L, C, N); weights (N,).
    -> index (B, k) int64, score (B, k) float32, best first.
    """

    def __init__(self, threshold: float | None, k: int = CANDIDATES) -> None:
        super().__init__()
        self.threshold, self.k = threshold, k

    def forward(self, descriptors: Tensor, templates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self.threshold is None:
            cosines = descriptors.flatten(1) @ templates.flatten(0, 1)  # (B, N): one product, read once
        else:
            products = descriptors.transpose(0, 1) @ templates  # (L, B, N): one product per place
            cosines = nn.functional.threshold(products, self.threshold, 0.0).sum(dim=0)
        score, index = (cosines * weights).topk(self.k, dim=1)
        return index, score


class CoarseMatcher(nn.Module):
    """A sketch of every view is compared without the threshold, then the most alike are compared in full.

    Forward: descriptors (B, L, C); templates (N, L, C), one view after the other; weights (N,);
    projection (L C, R) and sketches (R, N): weighted templates in the R directions in which views differ most.
    -> index (B, k) int64, score (B, k) float32, best first: exact for the views of the shortlist.
    """

    def __init__(self, threshold: float | None, k: int = CANDIDATES, shortlist: int = SHORTLIST) -> None:
        super().__init__()
        self.threshold, self.k, self.shortlist = threshold, k, shortlist

    def forward(
        self, descriptors: Tensor, templates: Tensor, weights: Tensor, projection: Tensor, sketches: Tensor
    ) -> tuple[Tensor, Tensor]:
        alike = descriptors.flatten(1) @ projection @ sketches  # (B, N)
        near = alike.topk(self.shortlist, dim=1).indices
        cosines = (templates[near] * descriptors[:, None]).sum(dim=3)  # (B, shortlist, L)
        if self.threshold is not None:
            cosines = nn.functional.threshold(cosines, self.threshold, 0.0)
        score, best = (cosines.sum(dim=2) * weights[near]).topk(self.k, dim=1)
        return near.gather(1, best), score


def _flat_inputs(places: int, channels: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("templates", "float32", (places, channels, "views")),
        TensorSpec("weights", "float32", ("views",)),
    )


def _coarse_inputs(places: int, channels: int) -> tuple[TensorSpec, ...]:
    numbers = places * channels
    return (
        TensorSpec("templates", "float32", ("views", places, channels)),
        TensorSpec("weights", "float32", ("views",)),
        TensorSpec("projection", "float32", (numbers, sketch_channels(numbers))),
        TensorSpec("sketches", "float32", (sketch_channels(numbers), "views")),
    )


MATCHERS: dict[Search, tuple[Callable[[float | None], nn.Module], Callable[[int, int], tuple[TensorSpec, ...]]]] = {
    "flat": (FlatMatcher, _flat_inputs),
    "coarse": (CoarseMatcher, _coarse_inputs),
}


def matcher_graph(places: int, channels: int, threshold: float | None, search: Search = "flat") -> GraphSource:
    """The "matcher" graph for descriptors (B, L, C) with L places and C channels."""
    module, bank_inputs = MATCHERS[search]
    descriptors = TensorSpec("descriptors", "float32", ("batch", places, channels))
    return GraphSource("matcher", module(threshold), (descriptors, *bank_inputs(places, channels)), ("index", "score"))
