"""What training takes: memory, hours and storage, computed without training anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repro.config import Model, Run
from repro.data import datasets, own
from repro.sweep import layouts
from repro.sweep.plans import Plan

NUMBER = 4  # bytes of a float32
PROCESS = 320 * 2**20  # bytes that a process with PyTorch takes by itself
RECORD, EPOCH = 1200, 66  # bytes of a record without its curves, and of each epoch in them


def network_numbers(model: Model, channels: int, classes: int, side: int = 32) -> int:
    """Number of weights and batch norm statistics of a network, which make up its snapshot.

    A custom network is built to count them, for images of `side` x `side` pixels.
    """
    if model.code is not None:
        return own.module_sizes(model.code, channels, classes, side).total()
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
    """Bytes of memory that a network takes in training: weights, gradients, two moments of Adam.

    On a CPU, where the system kills a process that takes too much, this also counts
    twice as much again for a checkpoint being written and, for a ResNet, three times the
    outputs of its layers, as measured. A GPU raises an error in time if memory is short.
    """
    model, numbers = run.model, (12 if device == "cpu" else 4) * _numbers(run)
    if device == "cpu" and model.code is None:
        layers = 1 + 2 * model.depth * (1 + 1 / 2 + 1 / 4 + 1 / 8)  # as large as the first layer's output
        numbers += int(3 * layers * run.batch_size * model.width * datasets.shape(run.dataset)[0] ** 2)
    return NUMBER * numbers


def process_bytes(plan: Plan) -> int:
    """Bytes of memory that a process takes on a CPU for the group that needs most."""
    groups = {(g.trajectories[0].longest, len(g.trajectories)) for g in plan.groups}
    return PROCESS + max((size * training_bytes(run) for run, size in groups), default=0)


@dataclass(frozen=True)
class Forecast:
    """What a plan takes on a number of GPUs of the same speed."""

    hours: float  # the least possible; `repro run` exceeds it by the longest chain of stages at most
    gpu_hours: float  # hours of all GPUs in training, added up
    bytes: int  # records, networks that others start from, and checkpoints


def forecast(plan: Plan, seconds: Callable[[Run], float], gpus: int) -> Forecast:
    """Time and storage of the plan if nothing is recorded yet; `seconds(run)` is the time of one step.

    `hours` are the larger of two: all training shared evenly by the GPUs, and the longest
    chain of stages, as a network cannot be tuned before it is pretrained.
    """
    total, ends = 0.0, {}  # hours of all training; the earliest end of each run, in hours
    for group in plan.groups:
        hours = group.steps * seconds(group.trajectories[0].longest) / 3600
        total += hours
        end = hours + max((ends[name] for name in group.starts), default=0.0)
        ends |= {run.id: end for run in group.runs}
    storage = sum(RECORD + EPOCH * sum(s.epochs for s in run.stages) for run in plan.wanted.values())
    sizes = {run.id: NUMBER * _numbers(run) for group in plan.groups for run in group.runs}
    first = [group.trajectories[0].longest for group in plan.groups]
    at_once = (min(layouts.default(run).population, len(plan.wanted)) * sizes[run.id] for run in first)
    storage += 3 * gpus * max(at_once, default=0)  # checkpoints: weights and two moments of Adam
    storage += sum(sizes[name] for name in plan.parents)
    return Forecast(max(total / gpus, *ends.values(), 0.0), total, storage)
