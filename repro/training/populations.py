"""A population of runs in the last stage of each: what they train on, their steps and their tests.

A member starts from new weights or from the snapshot in which its parent run
ended, so a pretraining is trained once however many conditions branch from it.
The order of examples is a function of (seed, stage, epoch), not of a generator's
state: a run of five epochs is the beginning of a run of ten, and one resumed
from a checkpoint goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repro import cpu
from repro.config import PRECISIONS, InputError, Optimizer, Run
from repro.data import datasets
from repro.data.datasets import steps_per_epoch
from repro.data.npz import Images
from repro.data.sampling import examples, moves, portions
from repro.store import files
from repro.store.records import CURVES
from repro.training import compilation, models
from repro.training.cuda_graphs import Captured
from repro.training.models import Own
from repro.training.network import ResNet
from repro.training.snapshots import Snapshot, load, save

TEST_BATCH = {"cpu": 96, "cuda": 500}  # images; of fewer, a core's cache holds the layers


@dataclass
class Member:
    """A run to train through its last stage."""

    run: Run
    start: Snapshot | None = None  # where the parent ended; None where there is no parent
    others: tuple[Run, ...] = ()  # which are the same training, as far as they go
    curve: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CURVES})

    @property
    def ended(self) -> bool:
        """At the stage's last epoch, or before it: diverged, or as accurate as the stage asks."""
        stage, losses = self.run.stages[-1], self.curve["train_loss"]
        accurate = stage.until is not None and self.curve["train_accuracy"][-1:] >= [stage.until]
        return len(losses) == stage.epochs or accurate or not all(map(math.isfinite, losses[-1:]))

    def tests(self, epoch: int) -> bool:
        """Whether the network is to be tested after this epoch."""
        return self.ended or any(epoch in run.tested for run in (self.run, *self.others))

    def due(self, epoch: int) -> list[Run]:
        """The runs that end with this epoch."""
        if not len(self.curve["train_loss"]) == epoch > 0:
            return []
        ends = {run: run.stages[-1].epochs for run in (*self.others, self.run)}
        return [run for run, end in ends.items() if end == epoch or (self.ended and end > epoch)]


@functools.cache
def _plain(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The optimiser, its methods without what keeps a compiler out of them.

    That imports the compiler, for whose import one waits nearly as long as for PyTorch's own.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def _optimizer(spec: Optimizer, network: ResNet | Own, device: torch.device) -> torch.optim.Optimizer:
    capturable = device.type == "cuda"  # counts its steps on the GPU
    if capturable:  # the first steps are not captured, as it wants to say
        warnings.filterwarnings("ignore", ".*capturable=True", UserWarning)
    rate = spec.learning_rate
    if spec.schedule != "constant" and (capturable or spec.name != "rmsprop"):
        # A number that kernels read, and no graph holds. On a CPU that of RMSprop has none.
        rate = torch.tensor(rate, dtype=torch.float32 if capturable else torch.float64, device=device)
    kind, settings = {
        "adam": (torch.optim.Adam, {"fused": True, "capturable": capturable}),
        "rmsprop": (torch.optim.RMSprop, {"capturable": capturable}),
        "sgd": (torch.optim.SGD, {"fused": True, "momentum": spec.momentum}),
    }[spec.name]
    if not capturable:  # on a GPU nothing but PyTorch's own has run
        kind = _plain(kind)
    return kind(network.parameters(), lr=rate, **settings)


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, 2019), of every parameter, before a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.mul_(1 - group["lr"] * decay)


def _repeatable(device: torch.device, precision: str) -> None:
    """Let the same training on a GPU give the same bits, in the precision that was asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or several streams are not repeatable
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = precision == "bf16"  # else float32 would be TF32 in convolutions
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # graphs are captured on the current one


def resident(
    images: Images, x: np.ndarray, y: np.ndarray, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images [n, C, H, W], normalised by the training set, and labels [n], on the device."""
    mean, std = images.normalization
    scaled = torch.from_numpy((x.astype(np.float32) - mean) / std)
    return scaled.permute(0, 3, 1, 2).to(device, dtype).contiguous(), torch.tensor(y, device=device)


def moved(padded: Tensor, index: Tensor, moves: Tensor, side: int) -> Tensor:
    """Images [P, B, C, side, side] of these numbers [P, B], each cut out of its padded one.

    `moves` [P, B, 3] says where, row and column of the corner, and whether it is mirrored.
    """
    ahead = torch.arange(side, device=padded.device)
    rows = moves[..., 0, None] + ahead
    columns = moves[..., 1, None] + torch.where(moves[..., 2, None] > 0, ahead.flip(0), ahead)
    found = padded[index[..., None, None], :, rows[..., None], columns[..., None, :]]
    return found.permute(0, 1, 4, 2, 3)


def _begin(network: ResNet | Own, p: int, member: Member) -> None:
    """Give member p the weights with which its last stage begins."""
    stage, stream = member.run.stages[-1], (member.run.init_seed, len(member.run.stages))
    if member.start is None:
        network.initialise(p, network.numbers, *stream)
        return
    network.load_member(p, member.start.state)
    if (stage.shrink, stage.perturb) != (1.0, 0.0):
        network.shrink_and_perturb(p, stage.shrink, stage.perturb, *stream)
    network.initialise(p, stage.reset, *stream)
    if stage.hook is not None:
        models.hook(stage.hook, network, p, *stream)


class Population:
    """Members that share data set, model, batch size, optimiser and steps.

    They are one grouped network or, with `grouped` false, as many networks, which
    a GPU trains side by side; networks of one's own always are. With `compiled`
    their steps come from a compiler (`repro.training.compilation`); the attribute
    of that name says whether it could. Nothing of them leaves the device during an
    epoch.
    """

    def __init__(
        self,
        members: Sequence[Member],
        device: torch.device,
        precision: str,
        grouped: bool = True,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        _repeatable(device, precision)
        self.members = list(members)
        self.device, self.precision, self.epoch = device, precision, 0
        run = members[0].run
        self.own = run.model.code is not None
        # How images and weights lie in memory: convolutions were faster with channels last, wherever tried.
        self.memory_format = torch.contiguous_format if self.own else torch.channels_last
        images = datasets.images(run.dataset)
        self.labels = images.y_train
        self.subsets = [portions(self.labels, m.run.stages[-1].data, m.run.split_seed) for m in members]
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.x_train, self.y_train = resident(images, images.x_train, images.y_train, device, self.dtype)
        self.x_test, self.y_test = resident(images, images.x_test, images.y_test, device, self.dtype)
        self.side = self.x_train.shape[-1]
        self.shift, self.flip = run.stages[-1].shift, run.stages[-1].flip
        self.augmented = bool(self.shift or self.flip)
        self.padded = F.pad(self.x_train, [self.shift] * 4, "replicate") if self.shift else self.x_train
        self.size = len(members) if grouped and not self.own else 1  # of a network
        self.networks = []
        for first in range(0, len(members), self.size):
            shape = self.x_train.shape[1], images.classes, self.side
            network = models.network(run.model, *shape, self.size)
            network.to(self.dtype)  # before snapshots are loaded, which are exact in it
            for p, member in enumerate(members[first : first + self.size]):
                _begin(network, p, member)
            self.networks.append(network.to(device, self.dtype, memory_format=self.memory_format))
        self.optimizers = [_optimizer(run.stages[-1].optimizer, n, device) for n in self.networks]
        apart = device.type == "cuda" and len(self.networks) > 1
        self.streams = [torch.cuda.Stream(device) for _ in self.networks] if apart else []
        # What a step reads and writes lies at one place from the first epoch to the last.
        self.batches = torch.empty(
            (steps_per_epoch(run), len(members), run.batch_size), dtype=torch.int64, device=device
        )
        shape = (len(self.batches) if self.augmented else 1, *self.batches.shape[1:], 3)
        self.moves = torch.zeros(shape, dtype=torch.int64, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # which of them is next
        self.loss_sum = torch.zeros(len(members), dtype=self.dtype, device=device)
        self.correct = torch.zeros(len(members), dtype=torch.int64, device=device)
        self.step, self.test = Captured(device), Captured(device)
        self.drawn = -1, self.batches, self.moves  # an epoch, its examples, and how they are moved
        self.fused = None
        if compiled and not self.own:
            x, y = self._batch(self.batches[0, : self.size].zero_(), self.moves[0, : self.size])
            self.fused = compilation.compiled(self.networks[0], x, y, precision == "bf16")
        self.compiled = self.fused is not None

    def _logits(self, network: ResNet | Own, x: Tensor) -> Tensor:
        """Logits [P, B, classes] in float32 (or float64) of images [B, P * C, H, W]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.device.type == "cpu" and not self.own:
                logits = cpu.forward(network, x)
            else:
                logits = network(x.contiguous(memory_format=self.memory_format))
        return logits.to(self.dtype)

    def _batch(self, index: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Training images [B, P * C, H, W] and labels [P, B] of these numbers [P, B], moved as [P, B, 3]."""
        x = moved(self.padded, index, moves, self.side) if self.augmented else self.x_train[index]
        return x.transpose(0, 1).flatten(1, 2), self.y_train[index]

    def _chance(self, i: int) -> contextlib.AbstractContextManager:
        """What network i draws in this step, as dropout does, if it is one that may."""
        if not self.own or self.device.type != "cpu":
            return contextlib.nullcontext()
        run = self.members[i].run
        return models.seeded(run.order_seed, len(run.stages), self.epoch, int(self.at))

    def _each(self) -> Iterator[tuple[int, ResNet | Own, slice]]:
        """The networks by number, each with the rows of its members, and on its stream if it has one."""
        for stream in self.streams:  # all before the first has work: two may be one
            stream.wait_stream(torch.cuda.current_stream(self.device))
        for i, network in enumerate(self.networks):
            with torch.cuda.stream(self.streams[i]) if self.streams else contextlib.nullcontext():
                yield i, network, slice(i * self.size, (i + 1) * self.size)
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _step(self) -> None:
        """One step of all members, on the next batch."""
        batch = self.batches.index_select(0, self.at)[0]  # [P, B]
        moves = self.moves.index_select(0, self.at)[0] if self.augmented else self.moves[0]
        decay = self.members[0].run.stages[-1].optimizer.weight_decay
        for i, network, rows in self._each():
            with self._chance(i):
                x, y = self._batch(batch[rows], moves[rows])
                if self.fused is not None:
                    losses, right = self.fused(network, x, y)
                else:
                    losses, right = compilation.judged(self._logits(network, x), y)
                optimizer = self.optimizers[i]
                optimizer.zero_grad(set_to_none=True)
                losses.mean(1).sum().backward()  # a sum over members keeps their gradients apart
                if decay:
                    _shrink(optimizer, decay)
                optimizer.step()
                self.loss_sum[rows] += losses.detach().mean(1)
                self.correct[rows] += right.sum(1)
        self.at += 1

    def _examples(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Training images of an epoch, int64 [steps, P, B], and how they are moved [steps, P, B, 3]."""
        if self.drawn[0] != epoch:
            pairs = zip(self.members, self.subsets, strict=True)
            orders = [examples(m.run, self.labels, epoch, subset) for m, subset in pairs]
            moving = self.moves
            if self.augmented:
                made = [moves(m.run, epoch, self.shift, self.flip) for m in self.members]
                moving = torch.from_numpy(np.stack(made, axis=1))
            self.drawn = epoch, torch.from_numpy(np.stack(orders, axis=1)), moving
        return self.drawn[1:]

    def train_epoch(self) -> tuple[list[float], list[float]]:
        """Mean loss and accuracy of each member over the batches of one epoch, as they were met."""
        spec = self.members[0].run.stages[-1]
        if spec.optimizer.schedule == "cosine":
            rate = spec.optimizer.learning_rate * (1 + math.cos(math.pi * self.epoch / spec.epochs)) / 2
            for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        for place, drawn in zip((self.batches, self.moves), self._examples(self.epoch), strict=True):
            place.copy_(drawn)
        if self.own and self.device.type == "cuda":  # where no step can be told apart
            run = self.members[0].run
            torch.cuda.manual_seed(models.number(run.order_seed, len(run.stages), self.epoch))
        for tensor in (self.at, self.loss_sum, self.correct):
            tensor.zero_()
        for network in self.networks:
            network.train()
        steps, _, batch = self.batches.shape
        for _ in range(steps):
            self.step(self._step)
        self.epoch += 1
        if self.epoch < spec.epochs:
            self._examples(self.epoch)  # while a GPU is still at work
        return (self.loss_sum / steps).tolist(), (self.correct / (steps * batch)).tolist()

    @torch.no_grad()
    def _test(self) -> None:
        size = TEST_BATCH[self.device.type]
        for _, network, rows in self._each():
            for x, y in zip(self.x_test.split(size), self.y_test.split(size), strict=True):
                logits = self._logits(network, x.repeat(1, self.size, 1, 1))
                self.correct[rows] += (logits.argmax(2) == y).sum(1)

    def test_accuracy(self) -> list[float]:
        """Test accuracy of each member, running statistics in batch norm."""
        for network in self.networks:
            network.eval()
        self.correct.zero_()
        self.test(self._test)
        return (self.correct / len(self.y_test)).tolist()

    def snapshot(self, p: int, seconds: float) -> Snapshot:
        """Member p as it is now."""
        member = self.members[p]
        network, place = self.networks[p // self.size], p % self.size
        state = {k: v.detach().to("cpu", copy=True) for k, v in network.member(place).items()}
        before = member.start or Snapshot({}, [], 0.0)
        curve = {name: list(values) for name, values in member.curve.items()}
        diverged = None if math.isfinite(curve["train_loss"][-1]) else self.epoch
        return Snapshot(state, [*before.curves, curve], before.seconds + seconds, diverged)

    @property
    def _engine(self) -> str:
        """What a checkpoint has to agree with, besides its runs."""
        apart = ", apart" * (self.size < len(self.members))
        ways = ", compiled" * self.compiled + ", contiguous" * self.own
        return f"{self.precision} on {self.device.type}{apart}{ways}"

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Write all that going on from here takes."""
        content = {
            "runs": [m.run.id for m in self.members],
            "engine": self._engine,
            "networks": [network.state_dict() for network in self.networks],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
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
        if content.get("runs") != [member.run.id for member in self.members] or "engine" not in content:
            raise files.Damaged(f"{path}: the checkpoint of other runs, or of another version")
        if content["engine"] != self._engine:
            raise InputError(
                f"{path} was begun in {content['engine']}: go on in it, or delete it to begin "
                f"anew in {self._engine}"
            )
        try:
            for network, state in zip(self.networks, content["networks"], strict=True):
                network.load_state_dict(state)
            for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
                optimizer.load_state_dict(state)
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
