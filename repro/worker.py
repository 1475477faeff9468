"""Trains one batch of a plan and keeps what comes of it; the inside of a child process."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import numpy
import torch

from repro import data, probes, records
from repro.config import InputError, Run
from repro.plans import Batch, Trajectory
from repro.records import Store
from repro.subsets import steps_per_epoch
from repro.training import PRECISIONS, Member, Snapshot, Stopped, resident, train_population
from repro.workers import Job


def choose_device(name: str) -> tuple[str, int]:
    """`cpu` or `cuda`, and the number of GPUs to use; raises `InputError` where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: choose from auto, cpu, cuda")
    gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not gpus:
        raise InputError("no CUDA device here: choose auto or cpu")
    return ("cuda" if gpus else "cpu"), gpus


def choose_precision(device: str, name: str) -> str:
    """The precision asked for; for `auto` bf16 where the device multiplies it in hardware, else float32."""
    if name not in ("auto", *PRECISIONS):
        raise InputError(f"unknown precision {name!r}: choose from auto, {', '.join(PRECISIONS)}")
    native = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return name if name != "auto" else "bf16" if native else "float32"


def check_data(batch: Batch) -> None:
    """Raise `InputError` now where the images cannot be had."""
    data.images(batch.trajectories[0].longest.dataset)


def serve(descriptor: int) -> None:
    """Train the jobs that come along a pipe until it closes; stops where told to, or alone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which says when to stop
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pipe = Connection(descriptor)

    def tell(**news: object) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: `poll` says so at the end of the epoch
            pipe.send(news)

    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (job := pipe.recv()) is not None:
            try:
                end = train_batch(job, tell, pipe.poll)
            except OSError:
                raise
            except Exception as error:
                traceback.print_exc()
                end = " ".join(f"{type(error).__name__}: {error}".split())
            pipe.send(end)
            if end == "stopped":
                return


def train_batch(job: Job, report: Callable[..., None], stop: Callable[[], bool]) -> str:
    """Train the batch from its parents' snapshots; leaves records of wanted runs and snapshots of parents.

    Gives `done` or, once `stop()` is true, `stopped`, with a checkpoint left
    behind. `report` is told what `Progress.update` takes.
    """
    batch, store, device = job.batch, Store(Path(job.folder)), torch.device(job.device)
    environment = {
        "population": len(batch.trajectories),
        "precision": job.precision,
        "device": device_name(device),
        "threads": torch.get_num_threads() if job.device == "cpu" else None,
        "versions": versions(),
        "commit": records.commit(),
        "data": data.images(batch.trajectories[0].longest.dataset).fingerprint,
    }

    def keep(trajectory: Trajectory, snapshot: Snapshot, ended: bool, epoch: int) -> None:
        for run in trajectory.runs:
            epochs = run.stages[-1].epochs
            if epochs == epoch or (ended and epochs > epoch):
                if run.id in job.parents:
                    snapshot.save(store.snapshot(run.id))
                if run.id in job.wanted:
                    measured = _measured(run, snapshot, device)
                    if store.write(run, **_outcome(snapshot), **measured, **environment):
                        report(recorded=1)

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

    checkpoint = store.checkpoint(batch.id)
    if members:
        run = members[0].run
        steps, last = len(members) * steps_per_epoch(run), run.stages[-1].epochs

        def on_epoch(epoch: int, accuracies: list[float]) -> None:
            mean = sum(accuracies) / len(accuracies)
            report(steps_done=steps, epoch=f"{epoch}/{last}", accuracy=mean)

        training = train_population(
            members, device, job.precision, checkpoint=checkpoint, stop=stop, on_epoch=on_epoch
        )
        try:
            for p, epoch, snapshot in training:
                keep(trained[p], snapshot, members[p].ended, epoch)
        except Stopped:
            return "stopped"
    checkpoint.unlink(missing_ok=True)
    return "done"


def _measured(run: Run, snapshot: Snapshot, device: torch.device) -> dict[str, dict[str, float]]:
    """What the run's probes find in its last network, none where it diverged."""
    if not run.probes or snapshot.diverged is not None:
        return {"probes": {}}
    images = data.images(run.dataset)
    x, y = resident(images, images.x_train, images.y_train, device)
    found = probes.measure(run.probes, snapshot.state, run.model, x, y, images.classes, run.batch_size)
    return {"probes": {name: value if math.isfinite(value) else None for name, value in found.items()}}


def _outcome(snapshot: Snapshot) -> dict:
    curves = [
        {name: [v if math.isfinite(v) else None for v in values] for name, values in curve.items()}
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
