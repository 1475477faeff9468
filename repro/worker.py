"""Trains one batch of a plan and keeps what comes of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy
import torch

from repro import data, records
from repro.progress import Progress
from repro.records import Store
from repro.sweep import Batch, Plan, Trajectory
from repro.training import Member, Snapshot, train_population


def train_batch(
    batch: Batch,
    plan: Plan,
    store: Store,
    device: torch.device,
    precision: str,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train the batch from its parents' snapshots; leaves records of wanted runs and snapshots of parents.

    Raises `training.Stopped` once `stop()` is true, with a checkpoint left behind.
    """

    def keep(trajectory: Trajectory, snapshot: Snapshot, ended: bool, epoch: int) -> None:
        for run in trajectory.runs:
            epochs = run.stages[-1].epochs
            if epochs == epoch or (ended and epochs > epoch):
                if run.id in plan.parents:
                    snapshot.save(store.snapshot(run.id))
                if run.id in plan.wanted:
                    progress.recorded += store.write(run, **_outcome(snapshot), **environment)

    environment = {
        "population": len(batch.trajectories),
        "precision": precision,
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": versions(),
        "commit": records.commit(),
        "data": data.images(batch.trajectories[0].longest.dataset).fingerprint,
    }
    trained, members = [], []
    for trajectory in batch.trajectories:
        parent = trajectory.longest.parent
        start = Snapshot.load(store.snapshot(parent.id)) if parent is not None else None
        if start is not None and start.diverged is not None:
            keep(trajectory, start, ended=True, epoch=0)  # nothing to go on from
            continue
        epochs = frozenset(run.stages[-1].epochs for run in trajectory.runs)
        trained.append(trajectory)
        members.append(Member(trajectory.longest, start, epochs))

    def on_epoch(epoch: int, accuracies: list[float]) -> None:
        progress.steps_done += batch.steps // members[0].run.stages[-1].epochs
        progress.epoch = f"{epoch}/{members[0].run.stages[-1].epochs}"
        progress.accuracy = sum(accuracies) / len(accuracies)
        progress.show(progress)

    checkpoint = store.checkpoint(batch.id)
    if members:
        training = train_population(
            members, device, precision, checkpoint=checkpoint, stop=stop, on_epoch=on_epoch
        )
        for p, epoch, snapshot in training:
            keep(trained[p], snapshot, members[p].ended, epoch)
            progress.show(progress)
    checkpoint.unlink(missing_ok=True)


def _outcome(snapshot: Snapshot) -> dict:
    curves = [
        {name: [v if v == v else None for v in values] for name, values in curve.items()}
        for curve in snapshot.curves
    ]
    return {
        "diverged": snapshot.diverged,
        "curves": curves,
        "seconds": round(snapshot.seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def device_name(device: torch.device) -> str:
    """The processor's name as its maker writes it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
