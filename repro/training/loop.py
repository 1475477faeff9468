"""The one training loop: a population of runs, on CPU or GPU, through the last stage of each."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from repro.config import Run
from repro.store import files
from repro.training.populations import Member, Population
from repro.training.snapshots import Snapshot


class Stopped(Exception):
    """Training was asked to stop; its progress is in the checkpoint, if it has one."""


def train_population(
    members: Sequence[Member],
    device: torch.device,
    precision: str,
    *,
    grouped: bool = True,
    compiled: bool = False,
    checkpoint: Path | None = None,
    every: float = 120.0,
    stop: Callable[[], bool] = lambda: False,
    on_begin: Callable[[Population], None] = lambda population: None,
    on_epoch: Callable[[int, list[float]], None] = lambda epoch, accuracies: None,
) -> Iterator[tuple[int, Run, Snapshot]]:
    """Train the last stage of all members; yields (member's index, run, snapshot) as each run ends.

    Resumes from the file `checkpoint` if it exists; a damaged one is set aside. Writes
    it whenever `every` seconds have passed, before raising `Stopped` because `stop()`
    is true, and before each yield: a run that the caller fails to store is yielded
    again after a restart. Calls `on_begin(population)` and
    `on_epoch(epochs done, train accuracies)`. Test accuracy is NaN if no test is due.
    """
    population = Population(members, device, precision, grouped, compiled)
    resumed = checkpoint is not None and checkpoint.exists()
    started = saved = time.perf_counter()
    if resumed:
        try:
            started -= population.resume(checkpoint)
        except files.Damaged as damage:
            warnings.warn(f"{damage}; set aside as {files.set_aside(checkpoint)}", stacklevel=2)
            population = Population(members, device, precision, grouped, compiled)
    on_begin(population)
    while True:
        seconds = time.perf_counter() - started
        due = [(p, run) for p, member in enumerate(members) for run in member.due(population.epoch)]
        ended = all(member.ended for member in members)
        stopping = not ended and stop()
        if checkpoint is not None and (due or stopping or time.perf_counter() - saved > every):
            population.checkpoint(checkpoint, seconds)
            saved = time.perf_counter()
        for p, run in due:
            yield p, run, population.snapshot(p, seconds / len(members)).of(run)
        if ended:
            return
        if stopping:
            raise Stopped
        losses, accuracies = population.train_epoch()
        training = [p for p, member in enumerate(members) if not member.ended]
        for p in training:
            members[p].curve["train_loss"].append(losses[p])
            members[p].curve["train_accuracy"].append(accuracies[p])
        testing = [p for p in training if members[p].tests(population.epoch)]
        if testing:
            tested = population.test_accuracy()
        for p in training:
            members[p].curve["test_accuracy"].append(tested[p] if p in testing else math.nan)
        on_epoch(population.epoch, accuracies)
