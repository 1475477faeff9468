"""A population: networks trained together, each through its run's last stage; their data, steps and tests.

A member starts from new weights, or from the snapshot taken at the end of its
parent run, so a pretraining is trained once however many conditions branch from
it. The order of examples depends on (seed, stage, epoch), not on a generator's
state: a resumed run continues as if it had not been interrupted, and a run of
five epochs is the beginning of one of ten (if `Stage.prefixed`).
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
from repro.training.network import ResNet, torch_seed
from repro.training.snapshots import Snapshot, load, save

TEST_BATCH = {"cpu": 96, "cuda": 500}  # images; few on a CPU, so that layers fit a core's cache


@dataclass
class Member:
    """A run whose last stage is to be trained, and the network that it starts from."""

    run: Run
    start: Snapshot | None = None  # the end of the parent run; None if there is no parent
    others: tuple[Run, ...] = ()  # runs that this training includes, such as shorter ones
    curve: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CURVES})

    @property
    def ended(self) -> bool:
        """Whether the stage is over: all epochs done, `until` reached, or a loss that is not finite."""
        stage, losses = self.run.stages[-1], self.curve["train_loss"]
        accurate = stage.until is not None and self.curve["train_accuracy"][-1:] >= [stage.until]
        return len(losses) == stage.epochs or accurate or not all(map(math.isfinite, losses[-1:]))

    def tests(self, epoch: int) -> bool:
        """Whether the network is to be tested after this epoch, for any of its runs."""
        return self.ended or any(run.tested(epoch) for run in (self.run, *self.others))

    def due(self, epoch: int) -> list[Run]:
        """Those of `run` and `others` that end with this epoch; none if the member ended earlier."""
        if not len(self.curve["train_loss"]) == epoch > 0:
            return []
        ends = {run: run.stages[-1].epochs for run in (*self.others, self.run)}
        return [run for run, end in ends.items() if end == epoch or (self.ended and end > epoch)]


@functools.cache
def _plain(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A subclass of the optimiser, its methods without the decorators that keep PyTorch's compiler out.

    Those import the compiler, which takes nearly as long as importing PyTorch.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def _optimizer(spec: Optimizer, network: ResNet | Own, device: torch.device) -> torch.optim.Optimizer:
    capturable = device.type == "cuda"  # the optimiser counts its steps on the GPU, as CUDA graphs require
    if capturable:  # PyTorch would warn that the first steps are not captured
        warnings.filterwarnings("ignore", ".*capturable=True", UserWarning)
    rate = spec.learning_rate
    if spec.schedule != "constant" and (capturable or spec.name != "rmsprop"):
        # Kernels read a tensor anew at each step; a CUDA graph would keep the value of a float. On a CPU
        # RMSprop has no such kernel.
        rate = torch.tensor(rate, dtype=torch.float32 if capturable else torch.float64, device=device)
    kind, settings = {
        "adam": (torch.optim.Adam, {"fused": True, "capturable": capturable}),
        "rmsprop": (torch.optim.RMSprop, {"capturable": capturable}),
        "sgd": (torch.optim.SGD, {"fused": True, "momentum": spec.momentum}),
    }[spec.name]
    if not capturable:  # on a GPU only PyTorch's unchanged optimisers have been tried
        kind = _plain(kind)
    return kind(network.parameters(), lr=rate, **settings)


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Apply decoupled weight decay (Loshchilov and Hutter, 2019) to what has a gradient, before a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:  # as in PyTorch's AdamW: a frozen layer stays as it is
                parameter.mul_(1 - group["lr"] * decay)


def _repeatable(device: torch.device, precision: str) -> None:
    """Make training on a GPU repeatable bit by bit; allow TF32 in convolutions only for bf16."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else several streams are not repeatable
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = precision == "bf16"  # TF32 would round float32
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # CUDA graphs are captured on the current device


def resident(
    images: Images, x: np.ndarray, y: np.ndarray, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images [n, H, W, C] as [n, C, H, W], normalised by the training set, and labels [n], on the device."""
    mean, std = images.normalization
    scaled = torch.from_numpy((x.astype(np.float32) - mean) / std)
    return scaled.permute(0, 3, 1, 2).to(device, dtype).contiguous(), torch.tensor(y, device=device)


def moved(padded: Tensor, index: Tensor, moves: Tensor, side: int) -> Tensor:
    """The images numbered `index` [P, B], each cut out of its padded version: [P, B, C, side, side].

    `moves` [P, B, 3] gives row and column of the cut's upper left corner, and 1 if it is mirrored.
    """
    ahead = torch.arange(side, device=padded.device)
    rows = moves[..., 0, None] + ahead
    columns = moves[..., 1, None] + torch.where(moves[..., 2, None] > 0, ahead.flip(0), ahead)
    found = padded[index[..., None, None], :, rows[..., None], columns[..., None, :]]
    return found.permute(0, 1, 4, 2, 3)


def _begin(network: ResNet | Own, p: int, member: Member) -> None:
    """Give the network's member p the weights with which `member` begins its last stage."""
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

    If `grouped`, they form one network (`ResNet`); otherwise, and always if they are
    user-supplied, each is a network by itself, and a GPU trains these in parallel.
    If `compiled`, losses of a `ResNet` come from a compiler (`repro.training.compilation`); the
    attribute `compiled` says whether compilation succeeded. Nothing is copied from
    the GPU during an epoch.
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
        # The order of images and weights in memory: channels last was faster wherever we measured it.
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
        self.size = len(members) if grouped and not self.own else 1  # members per network
        self.networks = []
        for first in range(0, len(members), self.size):
            shape = self.x_train.shape[1], images.classes, self.side
            network = models.network(run.model, *shape, self.size)
            network.to(self.dtype)  # before snapshots are loaded, to hold them exactly
            for p, member in enumerate(members[first : first + self.size]):
                _begin(network, p, member)
            self.networks.append(network.to(device, self.dtype, memory_format=self.memory_format))
        self.optimizers = [_optimizer(run.stages[-1].optimizer, n, device) for n in self.networks]
        apart = device.type == "cuda" and len(self.networks) > 1
        self.streams = [torch.cuda.Stream(device) for _ in self.networks] if apart else []
        # A CUDA graph reads and writes the same memory at every replay, so these are allocated once.
        self.batches = torch.empty(
            (steps_per_epoch(run), len(members), run.batch_size), dtype=torch.int64, device=device
        )
        shape = (len(self.batches) if self.augmented else 1, *self.batches.shape[1:], 3)
        self.moves = torch.zeros(shape, dtype=torch.int64, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # number of the next batch
        self.loss_sum = torch.zeros(len(members), dtype=self.dtype, device=device)
        self.correct = torch.zeros(len(members), dtype=torch.int64, device=device)
        self.step, self.test = Captured(device), Captured(device)
        self.drawn = -1, self.batches, self.moves  # the epoch drawn last, its examples, their moves
        self.fused = None
        if compiled and not self.own:
            x, y = self._batch(self.batches[0, : self.size].zero_(), self.moves[0, : self.size])
            self.fused = compilation.compiled(self.networks[0], x, y, precision == "bf16")
        self.compiled = self.fused is not None

    def _logits(self, network: ResNet | Own, x: Tensor) -> Tensor:
        """Logits [P, B, classes] of images [B, P * C, H, W], in float32, or float64 at that precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.device.type == "cpu" and not self.own:
                logits = cpu.forward(network, x)
            else:
                logits = network(x.contiguous(memory_format=self.memory_format))
        return logits.to(self.dtype)

    def _batch(self, index: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Training images [B, P * C, H, W] and labels [P, B] numbered `index` [P, B], moved by `moves`."""
        x = moved(self.padded, index, moves, self.side) if self.augmented else self.x_train[index]
        return x.transpose(0, 1).flatten(1, 2), self.y_train[index]

    def _chance(self, i: int) -> contextlib.AbstractContextManager:
        """A context that seeds what network i draws at random in this step, as in dropout.

        It does nothing for a ResNet, which draws nothing, or on a GPU (see `train_epoch`).
        """
        if not self.own or self.device.type != "cpu":
            return contextlib.nullcontext()
        run = self.members[i].run
        return models.seeded(run.order_seed, len(run.stages), self.epoch, int(self.at))

    def _each(self) -> Iterator[tuple[int, ResNet | Own, slice]]:
        """Each network with its number and the slice of its members; in its CUDA stream, if it has one."""
        for stream in self.streams:  # before any of them gets work, as two may be the same one
            stream.wait_stream(torch.cuda.current_stream(self.device))
        for i, network in enumerate(self.networks):
            with torch.cuda.stream(self.streams[i]) if self.streams else contextlib.nullcontext():
                yield i, network, slice(i * self.size, (i + 1) * self.size)
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _step(self) -> None:
        """Train all members for one step, on the next batch."""
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
                losses.mean(1).sum().backward()  # summed over members, so gradients do not mix
                if decay:
                    _shrink(optimizer, decay)
                optimizer.step()
                self.loss_sum[rows] += losses.detach().mean(1)
                self.correct[rows] += right.sum(1)
        self.at += 1

    def _examples(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Numbers of an epoch's training images, int64 [steps, P, B], and their moves [steps, P, B, 3].

        Without augmentation the moves are zeros [1, P, B, 3].
        """
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
        """Train for one epoch; return each member's mean loss and accuracy on batches before their steps."""
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
        if self.own and self.device.type == "cuda":  # a replayed graph cannot be seeded at each step
            run = self.members[0].run
            torch.cuda.manual_seed(torch_seed(run.order_seed, len(run.stages), self.epoch))
        for tensor in (self.at, self.loss_sum, self.correct):
            tensor.zero_()
        for network in self.networks:
            network.train()
        steps, _, batch = self.batches.shape
        for _ in range(steps):
            self.step(self._step)
        self.epoch += 1
        if self.epoch < spec.epochs:
            self._examples(self.epoch)  # drawn while the GPU is still at work
        return (self.loss_sum / steps).tolist(), (self.correct / (steps * batch)).tolist()

    @torch.no_grad()
    def _test(self) -> None:
        size = TEST_BATCH[self.device.type]
        for _, network, rows in self._each():
            for x, y in zip(self.x_test.split(size), self.y_test.split(size), strict=True):
                logits = self._logits(network, x.repeat(1, self.size, 1, 1))
                self.correct[rows] += (logits.argmax(2) == y).sum(1)

    def test_accuracy(self) -> list[float]:
        """Test accuracy of each member, a fraction, with running statistics in batch norm."""
        for network in self.networks:
            network.eval()
        self.correct.zero_()
        self.test(self._test)
        return (self.correct / len(self.y_test)).tolist()

    def snapshot(self, p: int, seconds: float) -> Snapshot:
        """Member p as it is now; `seconds` of training are added to those of its earlier stages."""
        member = self.members[p]
        network, place = self.networks[p // self.size], p % self.size
        state = {k: v.detach().to("cpu", copy=True) for k, v in network.member(place).items()}
        before = member.start or Snapshot({}, [], 0.0)
        curve = {name: list(values) for name, values in member.curve.items()}
        diverged = None if math.isfinite(curve["train_loss"][-1]) else self.epoch
        return Snapshot(state, [*before.curves, curve], before.seconds + seconds, diverged)

    @property
    def _engine(self) -> str:
        """How the population computes, in words; only a checkpoint with the same words can be resumed."""
        apart = ", apart" * (self.size < len(self.members))
        ways = ", compiled" * self.compiled + ", contiguous" * self.own
        return f"{self.precision} on {self.device.type}{apart}{ways}"

    def checkpoint(self, path: Path, seconds: float) -> None:
        """Write what is needed to resume from here; warn if the file cannot be written."""
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
        except OSError as error:  # the previous checkpoint stays, and training need not end
            warnings.warn(f"{path}: {error.strerror}; training goes on without this checkpoint", stacklevel=2)

    def resume(self, path: Path) -> float:
        """Continue from a checkpoint of the same runs; return the seconds of training before it.

        Raises `files.Damaged` if the file is not such a checkpoint (the population is then
        undefined), and `InputError` if it was written at another precision, device or layout.
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
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise files.Damaged(f"{path}: {' '.join(str(error).split())[:200]}") from error
        for member, curve in zip(self.members, curves, strict=True):
            member.curve = curve
        return seconds
