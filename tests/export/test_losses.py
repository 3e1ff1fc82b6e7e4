"""Losses against their formulas in NumPy, and the laws that make them useful."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from posekit.export.losses import (
    RegressorWeights,
    query_infonce,
    query_losses,
    regressor_losses,
    template_infonce,
    template_similarity,
)
from posekit.export.networks.geometry import rotation_from_6d

seeds = st.integers(0, 2**31)


def unit_places(batch: int, places: int = 6, channels: int = 4) -> Tensor:
    return F.normalize(torch.randn(batch, places, channels), dim=2)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


@given(seeds, st.sampled_from([0.05, 0.1, 1.0]))
def test_template_infonce_is_the_formula(seed: int, tau: float) -> None:
    torch.manual_seed(seed)
    q, t, mask = unit_places(3), unit_places(3), (torch.rand(3, 6) < 0.6).float()
    mask[:, 0] = 1
    logits = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            cosines = (q[i] * t[j]).sum(dim=1).numpy()
            logits[i, j] = (mask[j].numpy() * cosines).sum() / mask[j].sum().item()
    np.testing.assert_allclose(template_similarity(q, t, mask).numpy(), logits, atol=1e-6)
    expected = -np.diag(log_softmax(logits / tau)).mean()
    assert template_infonce(q, t, mask, tau).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_right_template_is_cheaper_than_a_wrong_one() -> None:
    torch.manual_seed(0)
    t = unit_places(4, 16, 8)
    mask = torch.ones(4, 16)
    assert template_infonce(t, t, mask) < template_infonce(t, t.roll(1, 0), mask)


def test_pairs_that_are_no_negatives_do_not_count() -> None:
    torch.manual_seed(0)
    q, t, mask = unit_places(3), unit_places(3), torch.ones(3, 6)
    assert template_infonce(q, t, mask, negatives=torch.zeros(3, 3, dtype=torch.bool)).item() == pytest.approx(0.0)
    everything = ~torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(template_infonce(q, t, mask, negatives=everything), template_infonce(q, t, mask))


def test_a_template_without_mask_gives_no_nan() -> None:
    q = unit_places(2).requires_grad_()
    loss = template_infonce(q, unit_places(2), torch.zeros(2, 6))
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()


@given(seeds)
def test_query_infonce_is_the_formula(seed: int) -> None:
    torch.manual_seed(seed)
    q, positive, negative = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    expected = []
    for b in range(2):
        for p in range(5):
            logits = np.array([(q[b, p] @ k).item() for k in (positive[b, p], *negative[b])])
            expected.append(-log_softmax(logits)[0])
    assert query_infonce(q, positive, negative).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_query_losses_are_both_terms() -> None:
    torch.manual_seed(0)
    logit, mask = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) < 0.5).float()
    keys = torch.randn(2, 5, 3)
    losses = query_losses(logit, mask, keys, keys, torch.randn(2, 7, 3))
    probability = torch.sigmoid(logit)
    expected = -(mask * probability.log() + (1 - mask) * (1 - probability).log()).mean()
    torch.testing.assert_close(losses["mask"], expected)
    assert losses["infonce"] > 0


def test_regressor_losses_are_weighted_sums_over_the_batch() -> None:
    torch.manual_seed(0)
    R, R_true = rotation_from_6d(torch.randn(3, 6)), rotation_from_6d(torch.randn(3, 6))
    site, site_true = torch.randn(3, 3), torch.randn(3, 3)
    dense = {"mask": torch.tensor(0.3), "infonce": torch.tensor(2.0)}
    losses = regressor_losses(R, site, R_true, site_true, dense)
    frobenius = ((R - R_true) ** 2).sum(dim=(1, 2)).sqrt().sum()
    expected = {
        "rotation": 5 * frobenius,
        "xy": (site - site_true)[:, :2].abs().sum(),
        "z": 10 * (site - site_true)[:, 2].abs().sum(),
        "mask": torch.tensor(3.0),
        "infonce": torch.tensor(20.0),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_the_pose_alone_can_be_trained_on() -> None:
    R, site = torch.eye(3)[None], torch.zeros(1, 3)
    losses = regressor_losses(R, site, R, site, weights=RegressorWeights(rotation=1.0))
    assert {name: value.item() for name, value in losses.items()} == {"rotation": 0, "xy": 0, "z": 0}


def test_a_perfect_prediction_has_finite_gradients() -> None:
    r6 = torch.tensor([[1.0, 0, 0, 0, 1, 0]], requires_grad=True)
    site = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    losses = regressor_losses(rotation_from_6d(r6), site, torch.eye(3)[None], site.detach())
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    for leaf in (r6, site):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
