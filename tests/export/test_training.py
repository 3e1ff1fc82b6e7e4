"""The training loop: it learns, any kill leaves a state from which the same run goes on, and weights say how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from posekit.export.checkpoint import load_checkpoint
from posekit.export.reference import training
from posekit.export.reference.training import (
    WARM_UP_STEPS,
    Batch,
    Plan,
    loader_of,
    options_from,
    save_weights,
    train,
    worker_rng,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
PLAN = Plan(steps=12, batch=8, lr=0.05)


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(training, "autocast_pays", lambda device: False)


def toy() -> nn.Module:
    """With a running mean, an integer buffer and four-dimensional weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1))


def toy_losses(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    error = network(batch["x"])[:, 0] - batch["y"]
    return {"square": (error**2).mean(), "absolute": 0.1 * error.abs().mean()}


def toy_batches(first: int = 0, kill_after: int | None = None) -> Iterator[Batch]:
    """Batch k is the same in every run. kill_after: how many are given before the process dies."""
    step = first
    while True:
        if kill_after is not None and step - first == kill_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        yield {"x": x, "y": x.mean(dim=(1, 2, 3))}
        step += 1


def run(folder: Path, plan: Plan = PLAN, first: int = 0, kill_after: int | None = None) -> nn.Module:
    return train(toy(), toy_losses, toy_batches(first, kill_after), folder, plan, CPU)


def state_of(folder: Path) -> dict[str, object]:
    state: dict[str, object] = torch.load(folder / "state.pt", weights_only=True)
    return state


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_the_loss_falls(tmp_path: Path) -> None:
    held_out = next(toy_batches(first=1000))
    trained = run(tmp_path, Plan(steps=150, lr=0.02, ema=0.9))
    assert not trained.training
    with torch.no_grad():
        before, after = (toy_losses(network, held_out)["square"] for network in (toy().eval(), trained))
    assert after < 0.2 * before


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(tmp_path / "straight")
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill_after=5)
    assert state_of(tmp_path / "killed")["step"] == 5
    assert_same(run(tmp_path / "killed", first=5), straight)
    assert state_of(tmp_path / "killed")["step"] == PLAN.steps


def test_a_run_killed_before_its_first_save_leaves_no_state(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, kill_after=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [12, 3])
def test_a_plan_that_is_done_ends_at_once(tmp_path: Path, steps: int) -> None:
    first = run(tmp_path)

    def fail(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("one step too many")

    again = train(toy(), fail, toy_batches(), tmp_path, Plan(steps, lr=0.05), CPU)
    assert_same(again, first)
    assert state_of(tmp_path)["step"] == 12


def test_a_kill_while_saving_keeps_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = (tmp_path / "state.pt").read_bytes()

    def half_written(state: object, path: Path) -> None:
        path.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Plan(steps=13, lr=0.05))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_the_log_is_json_line_by_line(tmp_path: Path) -> None:
    run(tmp_path, Plan(steps=250))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200]
    assert all(set(row) == {"step", "square", "absolute"} for row in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "state.pt"]


def test_weights_load_and_say_how_they_were_made(tmp_path: Path) -> None:
    trained = run(tmp_path)
    path = tmp_path / "new" / "toy.safetensors"
    save_weights(trained, path, PLAN, {"object_ids": "[1, 2]"})
    fresh = toy()
    load_checkpoint(fresh, path)
    assert_same(fresh, trained)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["plan"])["steps"] == PLAN.steps
    assert metadata["object_ids"] == "[1, 2]"
    assert metadata["parameters"] == str(sum(p.numel() for p in trained.parameters()))
    assert metadata["command"].startswith("python -m ")
    assert metadata["torch"] == torch.__version__
    assert [p.name for p in path.parent.iterdir()] == ["toy.safetensors"]


@pytest.mark.parametrize("steps", [500, 9000])
def test_the_learning_rate_warms_up_then_falls_to_a_hundredth(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(training, "WARM_UP_STEPS", WARM_UP_STEPS)
    plan = Plan(steps, lr=2e-3)
    rates = np.array([training._learning_rate(plan, step) for step in range(steps + 1)])
    assert rates[0] == pytest.approx(plan.lr / WARM_UP_STEPS, rel=1e-3)
    assert (np.diff(rates[: WARM_UP_STEPS // 2]) > 0).all()
    assert (np.diff(rates[WARM_UP_STEPS:]) <= 1e-9).all()
    assert rates.max() <= plan.lr
    assert rates[-1] == pytest.approx(plan.lr / 100, rel=1e-4)


def test_the_average_of_constant_weights_is_those_weights() -> None:
    network = toy()
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    for _ in range(20):
        training._update_average(average, network, 0.9)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(average[name], value)


def test_the_average_follows_by_its_decay_and_copies_counters() -> None:
    network = toy()
    average = {k: v.detach().clone() * 0 for k, v in network.state_dict().items()}
    network(torch.zeros(2, 3, 4, 4))  # counts one batch
    training._update_average(average, network, 0.75)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(average[name], value * 0.25 if value.is_floating_point() else value)


def test_options_are_those_of_the_command_line() -> None:
    given = ["--views", "bank", "--out", "runs", "--steps", "7", "--workers", "0", "--device", "cpu"]
    try:
        options = options_from("some.module", "About.", 100, 16, given)
    finally:
        torch.set_flush_denormal(False)
    assert (options.views, options.out, options.workers) == (Path("bank"), Path("runs"), 0)
    assert options.plan == Plan(steps=7, batch=16)
    assert options.device == CPU


def test_every_run_draws_its_own_examples() -> None:
    class Draws(torch.utils.data.IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            rng = worker_rng(0)
            while True:
                yield {"x": torch.from_numpy(rng.integers(0, 2**62, 4))}

    threads = cv2.getNumThreads()
    try:
        first, second = (next(iter(loader_of(Draws(), workers=0)))["x"] for _ in range(2))
    finally:
        cv2.setNumThreads(threads)
    assert first.tolist() != second.tolist()
