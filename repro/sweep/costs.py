"""What training takes: memory, hours and storage, computed without training anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repro.config import Model, Run
from repro.data import datasets
from repro.lazy import Lazy
from repro.sweep.plans import Plan

models = Lazy("repro.training.models")  # PyTorch, which only networks of one's own need here

NUMBER = 4  # bytes of a float32
PROCESS = 320 * 2**20  # bytes that a process with PyTorch takes by itself
RECORD, EPOCH = 1200, 66  # bytes of a record without its curves, and of an epoch of its curves


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


def _numbers(run: Run) -> int:
    side, channels, classes = datasets.shape(run.dataset)
    return network_numbers(run.model, channels, classes, side)


def training_bytes(run: Run, device: str = "cpu") -> int:
    """Memory that a network takes in training: weights, gradients, two moments of Adam.

    On a CPU, whose system kills what takes too much, also as much again twice for a
    checkpoint in the making, and the outputs of a ResNet's layers three times each, as
    it was measured. A GPU says by itself, and in time, what it has no room for.
    """
    model, numbers = run.model, (12 if device == "cpu" else 4) * _numbers(run)
    if device == "cpu" and model.code is None:
        layers = 1 + 2 * model.depth * (1 + 1 / 2 + 1 / 4 + 1 / 8)  # as large as the first layer's output
        numbers += int(3 * layers * run.batch_size * model.width * datasets.side(run.dataset) ** 2)
    return NUMBER * numbers


def process_bytes(plan: Plan) -> int:
    """Memory that a process takes on a CPU, for the group that needs most."""
    groups = {(g.trajectories[0].longest, len(g.trajectories)) for g in plan.groups}
    return PROCESS + max((size * training_bytes(run) for run, size in groups), default=0)


@dataclass(frozen=True)
class Forecast:
    """What a plan takes on so many GPUs, all of one speed."""

    hours: float  # no order of training is faster; that of `repro run` takes one chain of stages more at most
    gpu_hours: float  # hours of all GPUs in training, added up
    bytes: int  # records, networks that others start from, and checkpoints


def forecast(plan: Plan, seconds: Callable[[Run], float], gpus: int) -> Forecast:
    """What the plan takes, nothing recorded yet, where a step of a run's network takes so many seconds.

    The hours are those of perfect sharing, or of the longest chain of stages where
    that takes longer: a network cannot be tuned before it is pretrained.
    """
    total, ends = 0.0, {}  # hours of training in all; for each run, until it could be there
    for group in plan.groups:
        own = group.steps * seconds(group.trajectories[0].longest) / 3600
        total += own
        end = own + max((ends[name] for name in group.starts), default=0.0)
        ends |= {run.id: end for run in group.runs}
    storage = sum(RECORD + EPOCH * sum(s.epochs for s in run.stages) for run in plan.wanted.values())
    sizes = {run.id: NUMBER * _numbers(run) for group in plan.groups for run in group.runs}
    storage += 3 * gpus * max(sizes.values(), default=0)  # checkpoints: weights and two moments of Adam
    storage += sum(sizes[name] for name in plan.parents)
    return Forecast(max(total / gpus, *ends.values(), 0.0), total, storage)
