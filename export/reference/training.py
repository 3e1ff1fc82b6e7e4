"""One training loop for all reference models: cosine schedule, EMA weights, progress, resumable at any kill."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from posekit.export.checkpoint import load_checkpoint
from posekit.runtime.machine import cpu

Batch = dict[str, Tensor]
WARM_UP_STEPS = 200
SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class Plan:
    """steps: total optimiser steps over all resumed runs."""

    steps: int
    batch: int = 32
    lr: float = 1.5e-3
    weight_decay: float = 1e-2
    ema: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class Options:
    """What every training is asked on the command line."""

    views: Path
    out: Path
    plan: Plan
    workers: int
    device: torch.device
    start: Path | None = None


def options_from(module: str, about: str | None, steps: int, batch: int, arguments: list[str] | None) -> Options:
    """Parse; seeds torch for the network that is made next. steps, batch: the defaults."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=Path, required=True, help="view bank (posekit.export.reference.views)")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log and weights")
    parser.add_argument("--steps", type=int, default=steps, help="in all, over resumed runs")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--workers", type=int, default=1, help="processes that compose pictures")
    parser.add_argument("--threads", type=int, default=1, help="of the network; more than free cores is slower")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--start", type=Path, help="weights of an earlier training to go on from, on a new schedule")
    given = parser.parse_args(arguments)
    plan = Plan(given.steps, batch=given.batch)
    torch.manual_seed(plan.seed)
    device = device_named(given.device, given.threads)
    return Options(given.views, given.out, plan, given.workers, device, given.start)


def start_from(network: nn.Module, weights: Path | None) -> dict[str, str]:
    """Load the weights of an earlier training, if any; returns what the header of the new ones says about it.

    Raises CheckpointError for weights that do not fit.
    """
    if weights is None:
        return {}
    from safetensors import safe_open

    sha256 = load_checkpoint(network, weights)
    with safe_open(weights, "pt") as file:
        made = file.metadata() or {}
    history = [made["started_from"]] if "started_from" in made else []
    return {"started_from": "; ".join([*history, f"{made.get('command', weights.name)} (sha256 {sha256[:12]})"])}


def loader_of(examples: IterableDataset[Batch], workers: int) -> DataLoader[Batch]:
    """Batches made in the background. Not seeded: a resumed run must not draw the first run's examples again."""
    torch.seed()
    return DataLoader(examples, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


def worker_rng(seed: int) -> np.random.Generator:
    """A generator of one's own for each worker of each run; cv2 stays on its one core."""
    cv2.setNumThreads(1)
    worker = get_worker_info()
    return np.random.default_rng([seed, worker.id if worker else 0, int(torch.initial_seed() % 2**31)])


def device_named(name: str, threads: int = 1) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. threads: for the CPU; more than free physical cores is slower."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return torch.device(name)


def autocast_pays(device: torch.device) -> bool:
    """bfloat16 autocast is 3x faster on a GPU and on CPUs with AMX, and slower on the others."""
    if device.type == "cuda":
        return True
    return "amx_bf16" in cpu().instructions


def train(
    network: nn.Module,
    losses_of: Callable[[nn.Module, Batch], dict[str, Tensor]],
    batches: Iterable[Batch],
    folder: Path,
    plan: Plan,
    device: torch.device,
) -> nn.Module:
    """Train until plan.steps, going on from `folder` if it holds a state; returns the network with EMA weights.

    losses_of: network and batch -> named terms, of which the sum is minimised.  folder: gets state.pt and log.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.lr, weight_decay=plan.weight_decay, fused=True)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    step = _resumed(folder / "state.pt", network, optimiser, average)
    saved_at = time.monotonic()
    with _progress(plan.steps, step) as show:
        for batch in _moved(batches, device):
            if step >= plan.steps:
                break
            terms = _one_step(network, losses_of, batch, optimiser, _learning_rate(plan, step), device)
            step += 1
            _update_average(average, network, min(plan.ema, step / (step + 10)))
            show(step, terms)
            if step % 100 == 0:
                _log(folder / "log.jsonl", step, terms)
            if time.monotonic() - saved_at > SAVE_EVERY_S or step == plan.steps:
                _save(folder / "state.pt", network, optimiser, average, step)
                saved_at = time.monotonic()
    network.load_state_dict(average)
    return network.eval()


def save_weights(network: nn.Module, path: Path, plan: Plan, facts: dict[str, str]) -> None:
    """The weights as safetensors; the header says how they were made."""
    from safetensors.torch import save

    metadata = {
        "made_by": "posekit reference training, from scratch on renders",
        "command": f"python -m {_module()} --views VIEWS --out OUT --steps {plan.steps} --batch {plan.batch}",
        "plan": json.dumps(asdict(plan)),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "parameters": str(sum(p.numel() for p in network.parameters())),
        **facts,
    }
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    _replace(path, save(state, metadata))


def _module() -> str:
    """The training that runs, without the paths of the machine that it runs on."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "?"


def _one_step(
    network: nn.Module,
    losses_of: Callable[[nn.Module, Batch], dict[str, Tensor]],
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    lr: float,
    device: torch.device,
) -> dict[str, Tensor]:
    for group in optimiser.param_groups:
        group["lr"] = lr
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast_pays(device)):
        terms = losses_of(network, batch)
    optimiser.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return {name: term.detach() for name, term in terms.items()}


def _learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then half a cosine to one hundredth."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / plan.steps))))
    return plan.lr * warm * (0.01 + 0.99 * cosine)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _moved(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _resumed(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=next(network.parameters()).device)
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    average.update(state["average"])
    return int(state["step"])


def _save(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    temporary = path.with_suffix(".tmp")
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": step}
    torch.save(state, temporary)
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _log(path: Path, step: int, terms: dict[str, Tensor]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, **{k: round(float(v), 5) for k, v in terms.items()}}) + "\n")


class _progress:
    """A rich progress bar with smoothed losses and the rate."""

    def __init__(self, total: int, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._task = self._bar.add_task("train", total=total, completed=done, loss="")
        self._smooth: dict[str, float] = {}
        self._start, self._first = time.monotonic(), done

    def __enter__(self) -> Callable[[int, dict[str, Tensor]], None]:
        self._bar.start()
        return self._show

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def _show(self, step: int, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._smooth[name] = 0.98 * self._smooth.get(name, float(value)) + 0.02 * float(value)
        rate = (step - self._first) / (time.monotonic() - self._start)
        text = " ".join(f"{k} {v:.3f}" for k, v in self._smooth.items())
        self._bar.update(self._task, completed=step, loss=f"{rate:.2f} it/s  {text}")
