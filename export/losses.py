"""Training losses of the template-matching and query-based systems. Every function takes and returns tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def template_similarity(queries: Tensor, templates: Tensor, masks: Tensor) -> Tensor:
    """Masked mean cosine of every query with every template, location by location, no threshold. -> (B, N).

    queries: (B, L, C), templates: (N, L, C), both unit length along C.  masks: (N, L) of the templates, 0 or 1.
    """
    weights = masks / masks.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.einsum("blc,nlc,nl->bn", queries, templates, weights)


def template_infonce(
    queries: Tensor, templates: Tensor, masks: Tensor, tau: float = 0.1, negatives: Tensor | None = None
) -> Tensor:
    """In-batch InfoNCE of template-pose and TraM3D (systems S1, S2); a scalar.

    Template i is the positive of query i: the nearest viewpoint of the same object. All other templates are negatives,
    or those that `negatives` (B, B) bool selects: of another object, or more than 10 degrees apart.
    """
    logits = template_similarity(queries, templates, masks) / tau
    if negatives is not None:
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(~(negatives | itself), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def query_infonce(queries: Tensor, positive_keys: Tensor, negative_keys: Tensor) -> Tensor:
    """SurfEmb's contrastive loss (Haugaard & Buch, CVPR 2022): inner products, no temperature; a scalar.

    queries: (B, P, E) at pixels of the object.  positive_keys: (B, P, E) of the true coordinates of those pixels.
    negative_keys: (B, M, E) of the object's surface, shared by all its pixels.
    """
    positive = (queries * positive_keys).sum(dim=2, keepdim=True)
    logits = torch.cat([positive, queries @ negative_keys.transpose(1, 2)], dim=2).flatten(0, 1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def query_losses(
    mask_logit: Tensor, mask: Tensor, queries: Tensor, positive_keys: Tensor, negative_keys: Tensor
) -> dict[str, Tensor]:
    """SurfEmb's two terms, weight 1 each. mask_logit, mask: (B, 1, S, S), mask 0 or 1; the rest as `query_infonce`."""
    return {
        "mask": F.binary_cross_entropy_with_logits(mask_logit, mask),
        "infonce": query_infonce(queries, positive_keys, negative_keys),
    }


@dataclass(frozen=True)
class RegressorWeights:
    """Of the regressor's terms (systems S6). z: SITE's z is in metres here; the thesis gives 0.01 per millimetre."""

    rotation: float = 5.0
    xy: float = 1.0
    z: float = 10.0
    mask: float = 10.0
    infonce: float = 10.0


def regressor_losses(
    R: Tensor,
    site: Tensor,
    R_true: Tensor,
    site_true: Tensor,
    dense: dict[str, Tensor] | None = None,
    weights: RegressorWeights | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of the query regressor's loss; their sum is the loss.

    R, R_true: (B, 3, 3) allocentric.  site, site_true: (B, 3).  dense: `query_losses`; None trains on the pose only.
    Pose terms are summed over the batch: Frobenius distance of rotations, L1 of the SITE offsets.
    """
    weights = weights or RegressorWeights()
    losses = {
        "rotation": weights.rotation * torch.linalg.vector_norm(R - R_true, dim=(1, 2)).sum(),
        "xy": weights.xy * (site[:, :2] - site_true[:, :2]).abs().sum(),
        "z": weights.z * (site[:, 2] - site_true[:, 2]).abs().sum(),
    }
    if dense is not None:
        losses["mask"], losses["infonce"] = weights.mask * dense["mask"], weights.infonce * dense["infonce"]
    return losses
