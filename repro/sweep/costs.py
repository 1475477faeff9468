"""What training takes: memory, hours, money and storage, computed without training anything."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from repro.config import Model, Run
from repro.data import datasets
from repro.lazy import Lazy
from repro.sweep.plans import Plan

models = Lazy("repro.training.models")  # PyTorch, which only networks of one's own need here

NUMBER = 4  # bytes of a float32
RECORD, EPOCH = 1200, 66  # bytes of a record: all but its curves, and an epoch of them


def network_numbers(model: Model, channels: int, classes: int, side: int = 32) -> int:
    """Weights of a network and statistics of its batch norms, as many as its snapshot holds.

    Those of a network of one's own are counted, for images of this side.
    """
    if model.code is not None:
        return models.size(model, channels, classes, side)
    w = model.width

    def convolution(inputs: int, outputs: int, size: int = 9) -> int:
        return size * inputs * outputs + 4 * outputs  # with scale, shift, mean and variance of its batch norm

    total = convolution(channels, w) + (8 * w + 1) * classes
    for inputs, outputs in ((w, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)):
        total += convolution(inputs, outputs) + (2 * model.depth - 1) * convolution(outputs, outputs)
        total += convolution(inputs, outputs, 1) if inputs != outputs else 0
    return total


def training_bytes(model: Model, channels: int, classes: int, side: int = 32) -> int:
    """Memory that a network takes in training at the least: weights, gradients, two moments of Adam."""
    return 4 * NUMBER * network_numbers(model, channels, classes, side)


@dataclass(frozen=True)
class Forecast:
    """What a plan takes on so many GPUs, all of one speed."""

    gpus: int
    hours: float  # until the last run is recorded
    least: float  # hours of the longest chain of batches, or of perfect sharing: no order is faster
    gpu_hours: float  # of training
    bytes: int  # of records, networks that others start from, and checkpoints

    @property
    def busy(self) -> float:
        """Share of the GPUs' time that is spent in training."""
        return self.gpu_hours / (self.gpus * self.hours) if self.hours else 1.0


def forecast(plan: Plan, seconds: Callable[[Run], float], gpus: int, classes: int = 10) -> Forecast:
    """What the plan takes, nothing recorded yet, where a step of a run's network takes so many seconds."""
    hours = [batch.steps * seconds(batch.trajectories[0].longest) / 3600 for batch in plan.batches]
    home = {run.id: i for i, batch in enumerate(plan.batches) for run in batch.runs}
    parents = [{home[name] for name in batch.starts} for batch in plan.batches]
    chains = []
    for own, before in zip(hours, parents, strict=True):
        chains.append(own + max((chains[i] for i in before), default=0.0))
    least = max(sum(hours) / gpus, *chains, 0.0)
    return Forecast(gpus, _makespan(hours, parents, gpus), least, sum(hours), _bytes(plan, gpus, classes))


def _makespan(hours: list[float], parents: list[set[int]], gpus: int) -> float:
    """Hours until all is trained, each GPU that is free taking the first batch whose parents are trained."""
    waits = [len(before) for before in parents]
    branches: list[list[int]] = [[] for _ in hours]
    for i, before in enumerate(parents):
        for parent in before:
            branches[parent].append(i)
    ready = [i for i, wait in enumerate(waits) if not wait]  # in order, so a heap
    training: list[tuple[float, int]] = []
    now = 0.0
    while ready or training:
        while ready and len(training) < gpus:
            i = heapq.heappop(ready)
            heapq.heappush(training, (now + hours[i], i))
        now, done = heapq.heappop(training)
        for i in branches[done]:
            waits[i] -= 1
            if not waits[i]:
                heapq.heappush(ready, i)
    return now


def _bytes(plan: Plan, gpus: int, classes: int) -> int:
    records = sum(RECORD + EPOCH * sum(s.epochs for s in run.stages) for run in plan.wanted.values())
    every = {run.id: (run.model, datasets.side(run.dataset)) for b in plan.batches for run in b.runs}
    sizes = {key: NUMBER * network_numbers(key[0], 3, classes, key[1]) for key in set(every.values())}
    checkpoints = 3 * gpus * max(sizes.values(), default=0)  # weights and two moments of Adam
    return records + sum(sizes[every[name]] for name in plan.parents) + checkpoints
