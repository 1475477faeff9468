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

import torch
from torch import Tensor, nn

from repro.config import Code, InputError, Model, Run
from repro.data import datasets, own
from repro.training.network import ResNet, torch_seed

HOOK = 0  # random stream of hooks; those of modules are numbered from 1


@contextlib.contextmanager
def seeded(seed: int, *stream: int) -> Iterator[None]:
    """A context in which PyTorch's global CPU generator has the seed of a stream; restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(torch_seed(seed, *stream))
        yield


class Own(nn.Module):
    """A user-supplied network, with a one-member `ResNet`'s interface: [B, C, H, W] to [1, B, classes].

    The modules that can be re-initialised are the top-level names of its state (a bare
    parameter is one too), numbered from 1 in their order there. An attribute
    `modules_to_reset` of the network may list names instead: tensors between two
    listed modules then belong to the first of these. Tensors before all listed modules
    have the number 0; they are drawn with a new network, and never re-initialised.
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
    """Let a user-supplied hook change member p, whose copy it receives as a separate network.

    Only the state of the copy is taken over, so that a hook does the same in a population
    of any size. Raises `InputError` if it returns something or changes a name or a shape.
    """
    if isinstance(network, ResNet):
        first = network.module1[0].weight
        model = Model(len(first) // network.members, len(network.module2))
        alone = ResNet(model, first.shape[1], network.module6.weight.shape[1]).to(first)
        alone.load_member(0, network.member(p))
    else:
        alone = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(torch_seed(seed, stage, HOOK))
    with seeded(seed, stage, HOOK, 0), torch.no_grad():
        returned = own.function(code)(alone.network if isinstance(alone, Own) else alone, generator)
    if returned is not None:
        raise InputError(f"it returns {own.kind(returned)}: it must change the network and return None")
    before, after = network.member(p), alone.member(0)
    if {name: t.shape for name, t in before.items()} != {name: t.shape for name, t in after.items()}:
        raise InputError("it must leave the network its modules and their shapes")
    network.load_member(p, after)


def check(runs: Iterable[Run]) -> None:
    """Try each user-supplied network and hook once; raise a one-line `InputError` if one fails."""
    new, try_hook = functools.cache(_new), functools.cache(_try_hook)
    for run in runs:
        reset = set().union(*(stage.reset for stage in run.stages))
        hooks = [stage.hook for stage in run.stages if stage.hook]
        if run.model.code or hooks:
            images = datasets.images(run.dataset)
            _, side, _, channels = images.x_train.shape
            made = new(run.model, channels, images.classes, side, run.batch_size)
            if absent := sorted(reset - set(made.numbers)):
                raise InputError(f"{run.model.code.name} has modules 1 to {made.numbers[-1]}, not {absent}")
            for code in hooks:
                try_hook(code, made)


def _new(model: Model, channels: int, classes: int, side: int, batch: int) -> ResNet | Own:
    """A network with new weights, after trials if it is a user's own."""
    if model.code:
        own.tried(model.code, channels, classes, side, batch)
    made = network(model, channels, classes, side)
    made.initialise(0, made.numbers, 0, 1)
    return made


def _try_hook(code: Code, network: ResNet | Own) -> None:
    with own.refused(code.path, code.name):
        hook(code, copy.deepcopy(network), 0, 0, 2)
