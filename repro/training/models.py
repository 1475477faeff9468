"""User-supplied networks, which map images to logits, with the interface that populations need; hooks.

A population can group only the paper's ResNets into one network; it keeps
user-supplied networks separate. On a CPU, what these draw at random in training, as
in dropout, is seeded by (seed, stage, epoch, step), so that a run gives the same
alone, in a population and resumed; on a GPU, once per epoch for all of a population.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedTensorMixin

from repro.config import MODULES, Code, InputError, Model, Run
from repro.data import datasets, own
from repro.training.network import ResNet

HOOK = 0  # random stream of hooks; those of modules are numbered from 1
IMAGES = 4  # in the batch on which a network is tried


def number(seed: int, *stream: int) -> int:
    """A seed for PyTorch, another one for each random stream of `seed`."""
    [key] = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return int(key >> np.uint64(1))


@contextlib.contextmanager
def seeded(seed: int, *stream: int) -> Iterator[None]:
    """A context in which PyTorch's global CPU generator has the seed of a stream; restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(number(seed, *stream))
        yield


class Own(nn.Module):
    """A user-supplied network, with a one-member `ResNet`'s interface: [B, C, H, W] to [1, B, classes].

    The modules that can be re-initialised are the top-level names of its state (a bare
    parameter is one too), numbered from 1 in their order there. An attribute
    `modules_to_reset` of the network may list names instead: tensors between two
    listed modules then belong to the first of these.
    """

    members = 1

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make
        self.network = self._drawn(0)

    def _drawn(self, seed: int, *stream: int) -> nn.Module:
        with seeded(seed, *stream), torch.device("cpu"):
            return self.make()

    @functools.cached_property
    def module_of(self) -> dict[str, int]:
        """The number of the module of each tensor of the state, by the tensor's name."""
        return own.module_of(self.network)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.module_of.values())))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.contiguous())[None]

    def member(self, p: int) -> dict[str, Tensor]:
        return self.network.state_dict()

    load_member = ResNet.load_member

    @torch.no_grad()
    def initialise(self, p: int, numbers: Iterable[int], seed: int, stage: int) -> None:
        """Copy the numbered modules, buffers included, from a new network built with seed (seed, stage)."""
        chosen = set(numbers)
        new = self._drawn(seed, stage).state_dict() if chosen else {}
        for name, tensor in self.member(p).items():
            if self.module_of[name] in chosen:
                tensor.copy_(new[name])

    @torch.no_grad()
    def shrink_and_perturb(self, p: int, shrink: float, perturb: float, *stream: int) -> None:
        new = dict(self._drawn(*stream).named_parameters())
        for name, tensor in self.network.named_parameters():
            tensor.copy_(shrink * tensor + perturb * new[name].to(tensor))


def network(model: Model, channels: int, classes: int, side: int, members: int = 1) -> ResNet | Own:
    """A `ResNet`, its weights undefined until it is initialised, or an `Own`, always of one member."""
    if model.code is None:
        return ResNet(model, channels, classes, members)
    return Own(functools.partial(own.function(model.code), channels, classes, side))


def hook(code: Code, network: ResNet | Own, p: int, seed: int, stage: int) -> None:
    """Let a user-supplied hook change member p, which it receives as a separate network."""
    alone = network
    if isinstance(network, ResNet) and network.members > 1:
        first = network.module1[0].weight
        model = Model(len(first) // network.members, len(network.module2))
        alone = ResNet(model, first.shape[1], network.module6.weight.shape[1]).to(first)
        alone.load_member(0, network.member(p))
    generator = torch.Generator().manual_seed(number(seed, stage, HOOK))
    with seeded(seed, stage, HOOK, 0), torch.no_grad():
        own.function(code)(alone.network if isinstance(alone, Own) else alone, generator)
    if alone is not network:
        network.load_member(p, alone.member(0))


@functools.cache
def size(model: Model, channels: int, classes: int, side: int) -> int:
    """How many values the state of one network has, parameters and buffers."""
    return sum(tensor.numel() for tensor in network(model, channels, classes, side).member(0).values())


def check(runs: Iterable[Run]) -> None:
    """Try each user-supplied network and hook once; raise a one-line `InputError` if one fails."""
    tried = set()
    for run in runs:
        images = datasets.images(run.dataset)
        shape = images.x_train.shape[3], images.classes, images.x_train.shape[1]
        reset = frozenset().union(*(stage.reset for stage in run.stages))
        hooks = frozenset(stage.hook for stage in run.stages if stage.hook)
        if (run.model.code or hooks) and (key := (run.model, shape, reset, hooks)) not in tried:
            tried.add(key)
            made = _tried(run.model, *shape)
            if absent := sorted(reset - set(made.numbers)):
                raise InputError(f"{run.model.code.name} has modules 1 to {made.numbers[-1]}, not {absent}")
            for code in hooks:
                _hooked(code, made)


def _tried(model: Model, channels: int, classes: int, side: int) -> ResNet | Own:
    if model.code is None:
        made = ResNet(model, channels, classes)
        made.initialise(0, MODULES, 0, 1)
        return made
    name = f"{model.code.path}: {model.code.name}"
    x, y = torch.randn(IMAGES, channels, side, side), torch.arange(IMAGES) % classes
    try:
        made = network(model, channels, classes, side)
        if any(isinstance(tensor, UninitializedTensorMixin) for tensor in made.state_dict().values()):
            raise InputError("its size cannot be told: it has lazy layers")
        if not any(parameter.requires_grad for parameter in made.parameters()):
            raise InputError("it has no weights to train")
        with seeded(0):
            logits = copy.deepcopy(made).train()(x)
            if logits.shape != (1, IMAGES, classes):
                raise InputError(
                    f"it gives {list(logits.shape[1:])} for {IMAGES} images, not logits [{IMAGES}, {classes}]"
                )
            F.cross_entropy(logits[0], y).backward()
    except Exception as error:
        raise InputError(f"{name}: {own.said(error)}") from error
    return made


def _hooked(code: Code, network: ResNet | Own) -> None:
    changed = copy.deepcopy(network)
    before = {name: tensor.shape for name, tensor in network.member(0).items()}
    try:
        hook(code, changed, 0, 0, 2)
        if {name: tensor.shape for name, tensor in changed.member(0).items()} != before:
            raise InputError("it must leave the network its modules and their shapes")
    except Exception as error:
        raise InputError(f"{code.path}: {code.name}: {own.said(error)}") from error
