"""The matcher graph: descriptors of crops against a bank of templates, location by location."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BEST = 5  # candidates per crop; banks hold at least as many views


class Matcher(nn.Module):
    """score_n = sum over l of weights[l, n] g(<q_l, t_ln>), and its best `k` views per crop.

    threshold: g(c) is c above it and 0 otherwise (template-pose and TraM3D: 0.2); None: g is the identity.
    Forward: descriptors (B, L, C), templates (L, C, N), both unit length along C; weights (L, N), mask / |mask|.
    -> index (B, k) int64, score (B, k) float32, best first.
    """

    def __init__(self, threshold: float | None = 0.2, k: int = BEST) -> None:
        super().__init__()
        self.threshold, self.k = threshold, k

    def forward(self, descriptors: Tensor, templates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        cosine = descriptors.transpose(0, 1) @ templates  # (L, B, N): one matrix product per place
        if self.threshold is not None:
            cosine = torch.where(cosine > self.threshold, cosine, 0.0)
        score, index = (cosine * weights[:, None]).sum(dim=0).topk(self.k, dim=1)
        return index, score
