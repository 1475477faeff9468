"""The one training loop: a population of runs, on CPU or GPU, through the last stage of each.

A member starts from new weights or from the snapshot in which its parent run
ended, so a pretraining is trained once however many conditions branch from it.
The order of examples is a function of (seed, stage, epoch), not of a generator's
state: a run of five epochs is the beginning of a run of ten, and one resumed
from a checkpoint goes on as if nothing had happened.
"""

from __future__ import annotations

import io
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repro import data, files
from repro.config import MODULES, InputError, Optimizer, Run
from repro.models import ResNet
from repro.npz import Images
from repro.records import CURVES
from repro.subsets import examples

PRECISIONS = ("float32", "bf16", "float64")


@dataclass
class Snapshot:
    """A network at the end of a stage, and how it got there."""

    state: dict[str, Tensor]  # float tensors on the CPU, as `ResNet.member` names them
    curves: list[dict[str, list[float]]]  # one dictionary of `CURVES` per stage so far
    seconds: float  # of training, this network's share of its populations
    diverged: int | None = None  # epoch of the last stage at which the loss was no longer finite

    def save(self, path: Path) -> None:
        save(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        content = load(path)
        if content.keys() != cls.__dataclass_fields__.keys():
            raise files.Damaged(f"{path}: not a network of this version")
        return cls(**content)


@dataclass
class Member:
    """A run to train through its last stage, and the epochs of it to keep."""

    run: Run
    start: Snapshot | None = None  # where the parent ended; None where there is no parent
    keep: frozenset[int] = frozenset()  # besides the last epoch
    curve: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CURVES})

    @property
    def ended(self) -> bool:
        """At the stage's last epoch, or before it: diverged, or as accurate as the stage asks."""
        stage, losses = self.run.stages[-1], self.curve["train_loss"]
        accurate = stage.until is not None and self.curve["train_accuracy"][-1:] >= [stage.until]
        return len(losses) == stage.epochs or accurate or not all(map(math.isfinite, losses[-1:]))

    def due(self, epoch: int) -> bool:
        """Whether the network is to be kept as it is after this epoch."""
        return len(self.curve["train_loss"]) == epoch > 0 and (self.ended or epoch in self.keep)


class Stopped(Exception):
    """Training was asked to stop; what was done so far is in the checkpoint."""


def save(content: object, path: Path) -> None:
    """Write `content` for `load`; the file that was there stays until the new one is whole."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.replace(path, files.sealed(path.stem, buffer.getvalue()))


def load(path: Path, device: torch.device | None = None) -> dict:
    """What was saved under this very name; raises `files.Damaged`, or `FileNotFoundError`."""
    content = files.unsealed(path)
    try:
        return dict(torch.load(io.BytesIO(content), weights_only=True, map_location=device))
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        raise files.Damaged(f"{path}: {' '.join(str(error).split())[:200]}") from error


def _optimizer(spec: Optimizer, network: ResNet) -> torch.optim.Optimizer:
    if spec.name == "adam":
        return torch.optim.Adam(network.parameters(), lr=spec.learning_rate, fused=True)
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=spec.learning_rate)
    return torch.optim.SGD(network.parameters(), lr=spec.learning_rate, momentum=spec.momentum, fused=True)


def resident(
    images: Images, x: np.ndarray, y: np.ndarray, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W], normalised by the training set, and labels [n], on the device."""
    mean, std = images.normalization
    scaled = torch.from_numpy((x.astype(np.float32) - mean) / std)
    return scaled.permute(0, 3, 1, 2).to(device, dtype).contiguous(), torch.tensor(y, device=device)


class Population:
    """Members that share data set, model, batch size, optimiser and steps, as one grouped network."""

    def __init__(self, members: Sequence[Member], device: torch.device, precision: str) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        self.members = list(members)
        self.device, self.precision, self.epoch = device, precision, 0
        run = members[0].run
        images = data.images(run.dataset)
        self.labels = images.y_train
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.x_train, self.y_train = resident(images, images.x_train, images.y_train, device, self.dtype)
        self.x_test, self.y_test = resident(images, images.x_test, images.y_test, device, self.dtype)
        network = ResNet(run.model, self.x_train.shape[1], images.classes, len(members))
        network.to(self.dtype)  # before snapshots are loaded, which are exact in it
        for p, member in enumerate(members):
            stage, stream = member.run.stages[-1], (member.run.init_seed, len(member.run.stages))
            if member.start is None:
                network.initialise(p, MODULES, *stream)
                continue
            network.load_member(p, member.start.state)
            if (stage.shrink, stage.perturb) != (1.0, 0.0):
                network.shrink_and_perturb(p, stage.shrink, stage.perturb, *stream)
            network.initialise(p, stage.reset, *stream)
        self.network = network.to(device, self.dtype, memory_format=torch.channels_last)
        self.optimizer = _optimizer(run.stages[-1].optimizer, self.network)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits [P, B, classes] in float32 (or float64) of images [B, P * C, H, W]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits.to(self.dtype)

    def train_epoch(self) -> tuple[list[float], list[float]]:
        """Mean loss and accuracy of each member over the batches of one epoch, as they were met."""
        orders = [examples(m.run, self.labels, self.epoch) for m in self.members]
        batches = torch.from_numpy(np.stack(orders, axis=1)).to(self.device)  # [steps, P, B]
        steps, members, batch = batches.shape
        loss_sum = torch.zeros(members, dtype=self.dtype, device=self.device)
        correct = torch.zeros(members, dtype=torch.int64, device=self.device)
        spec = self.members[0].run.stages[-1]
        if spec.optimizer.schedule == "cosine":
            rate = spec.optimizer.learning_rate * (1 + math.cos(math.pi * self.epoch / spec.epochs)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.network.train()
        for index in batches:
            x = self.x_train[index].transpose(0, 1).flatten(1, 2)
            y = self.y_train[index]
            logits = self._logits(x)
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(members, batch)
            self.optimizer.zero_grad(set_to_none=True)
            losses.mean(1).sum().backward()  # a sum over members keeps their gradients apart
            self.optimizer.step()
            loss_sum += losses.detach().mean(1)
            correct += (logits.detach().argmax(2) == y).sum(1)
        self.epoch += 1
        return (loss_sum / steps).tolist(), (correct / (steps * batch)).tolist()

    @torch.no_grad()
    def test_accuracy(self, batch: int = 500) -> list[float]:
        """Test accuracy of each member, running statistics in batch norm."""
        self.network.eval()
        correct = torch.zeros(len(self.members), dtype=torch.int64, device=self.device)
        for x, y in zip(self.x_test.split(batch), self.y_test.split(batch), strict=True):
            logits = self._logits(x.repeat(1, len(self.members), 1, 1))
            correct += (logits.argmax(2) == y).sum(1)
        return (correct / len(self.y_test)).tolist()

    def snapshot(self, p: int, seconds: float) -> Snapshot:
        """Member p as it is now."""
        member = self.members[p]
        state = {k: v.detach().to("cpu", copy=True) for k, v in self.network.member(p).items()}
        before = member.start or Snapshot({}, [], 0.0)
        curve = {name: list(values) for name, values in member.curve.items()}
        diverged = None if math.isfinite(curve["train_loss"][-1]) else self.epoch
        return Snapshot(state, [*before.curves, curve], before.seconds + seconds, diverged)

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Write all that going on from here takes."""
        content = {
            "runs": [m.run.id for m in self.members],
            "precision": self.precision,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curves": [m.curve for m in self.members],
            "epoch": self.epoch,
            "seconds": seconds,
        }
        try:
            save(content, path)
        except OSError as error:  # the last good one stays; what is trained is not given up for it
            warnings.warn(f"{path}: {error.strerror}; training goes on without this checkpoint", stacklevel=2)

    def resume(self, path: Path) -> float:
        """Go on from a checkpoint of this very population; the seconds spent before it.

        Raises `files.Damaged` where it is none, and leaves the population undefined.
        """
        content = load(path, self.device)
        if content.get("runs") != [member.run.id for member in self.members]:
            raise files.Damaged(f"{path}: the checkpoint of other runs")
        if content.get("precision") != self.precision:
            raise InputError(
                f"{path} was begun in {content.get('precision')}: go on in it, or delete it to begin "
                f"anew in {self.precision}"
            )
        try:
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.epoch, curves, seconds = (content[name] for name in ("epoch", "curves", "seconds"))
            if any(len(values) > self.epoch for curve in curves for values in curve.values()):
                raise ValueError("curves longer than training")
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise files.Damaged(f"{path}: {' '.join(str(error).split())[:200]}") from error
        for member, curve in zip(self.members, curves, strict=True):
            member.curve = curve
        return seconds


def train_population(
    members: Sequence[Member],
    device: torch.device,
    precision: str,
    *,
    checkpoint: Path | None = None,
    every: float = 120.0,
    stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[int, list[float]], None] = lambda epoch, accuracies: None,
) -> Iterator[tuple[int, int, Snapshot]]:
    """Train the last stage of all members together; yields (member, epoch, snapshot) as each is due.

    Goes on from `checkpoint` where that file is. Writes it before it yields, so
    that whatever is lost behind a yield comes again, every so many seconds, and
    before it raises `Stopped` once `stop()` is true. `on_epoch` is told the
    epochs done and the members' test accuracy.
    """
    population = Population(members, device, precision)
    resumed = checkpoint is not None and checkpoint.exists()
    started = saved = time.perf_counter()
    if resumed:
        try:
            started -= population.resume(checkpoint)
        except files.Damaged as damage:
            warnings.warn(f"{damage}; set aside as {files.set_aside(checkpoint)}", stacklevel=2)
            population = Population(members, device, precision)
    while True:
        seconds = time.perf_counter() - started
        due = [p for p, member in enumerate(members) if member.due(population.epoch)]
        ended = all(member.ended for member in members)
        stopping = not ended and stop()
        if checkpoint is not None and (due or stopping or time.perf_counter() - saved > every):
            population.checkpoint(checkpoint, seconds)
            saved = time.perf_counter()
        for p in due:
            yield p, population.epoch, population.snapshot(p, seconds / len(members))
        if ended:
            return
        if stopping:
            raise Stopped
        losses, accuracies = population.train_epoch()
        tested = population.test_accuracy()
        for p, member in enumerate(members):
            if not member.ended:
                for name, values in zip(CURVES, (losses, accuracies, tested), strict=True):
                    member.curve[name].append(values[p])
        on_epoch(population.epoch, tested)
