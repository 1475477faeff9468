"""The paper's ResNet (appendix A.4), and populations of it as one grouped network.

P networks (members) of one shape, each with its own weights, equal one network
whose convolutions have P groups: batch norm works per channel, so per member, and
the gradient of a summed loss keeps members apart. P = 1 is the ordinary ResNet. The
first dimension of each parameter and buffer is a multiple of P, in member order.

Letters in shapes: P members, B images, C channels of a member, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.config import MODULES, Model


def torch_seed(seed: int, *stream: int) -> int:
    """A seed for PyTorch, another one for each random stream of `seed`."""
    [key] = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return int(key >> np.uint64(1))


def _convolution(inputs: int, outputs: int, size: int, stride: int, members: int) -> nn.Conv2d:
    channels = members * inputs, members * outputs
    return nn.Conv2d(*channels, size, stride, padding=size // 2, groups=members, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None  # not divisible by members, and not used
    return norm


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected if the stride is not 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, members: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride, members)
        self.norm1 = _norm(members * outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1, members)
        self.norm2 = _norm(members * outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:
            # The pooling has the stride: 1 x 1 convolutions with it are slow on a CPU
            # and crash in some narrow networks, as they write beyond their memory.
            self.shortcut.append(nn.AvgPool2d(1, stride))
            self.shortcut.append(_convolution(inputs, outputs, 1, 1, members))
            self.shortcut.append(_norm(members * outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return F.relu(y, inplace=True)


def _group(inputs: int, outputs: int, stride: int, depth: int, members: int) -> nn.Sequential:
    """`depth` blocks; the first has the stride and the change of channels."""
    first = Block(inputs, outputs, stride, members)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, members) for _ in range(depth - 1)))


class Head(nn.Module):
    """Global average pooling and the last linear layer, one per member."""

    def __init__(self, features: int, classes: int, members: int) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, classes, features))
        self.bias = nn.Parameter(torch.empty(members, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3)).unflatten(1, (self.members, -1))  # [B, P, C]
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight.transpose(1, 2))


class ResNet(nn.Module):
    """P ResNets for small images: w, 2w, 4w, 8w channels in four groups of d blocks.

    Maps images [B, P * C, H, W] to logits [P, B, classes]. Weights are undefined
    until `initialise` or `load_member` has filled every member.
    """

    numbers = MODULES  # of the modules that can be re-initialised

    def __init__(self, model: Model, channels: int, classes: int, members: int = 1) -> None:
        super().__init__()
        self.members = members
        w, d = model.width, model.depth
        self.module1 = nn.Sequential(
            _convolution(channels, w, 3, 1, members), _norm(members * w), nn.ReLU(inplace=True)
        )
        self.module2 = _group(w, w, 1, d, members)
        self.module3 = _group(w, 2 * w, 2, d, members)
        self.module4 = _group(2 * w, 4 * w, 2, d, members)
        self.module5 = _group(4 * w, 8 * w, 2, d, members)
        self.module6 = Head(8 * w, classes, members)

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.module1, self.module2, self.module3, self.module4, self.module5):
            x = module(x)
        return self.module6(x)

    def member(self, p: int) -> dict[str, Tensor]:
        """Parameters and batch-norm statistics of member p, as writable views."""
        return {name: tensor.chunk(self.members)[p] for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load_member(self, p: int, state: dict[str, Tensor]) -> None:
        """Copy `state`, which has the form that `member` returns, into member p."""
        for name, tensor in self.member(p).items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def initialise(self, p: int, numbers: Iterable[int], seed: int, stage: int) -> None:
        """Draw the numbered modules of member p anew, and reset their batch norms.

        PyTorch's defaults: weights and bias uniform within +-1 / sqrt(fan-in); batch
        norms with scale 1 and shift 0. Each module has its own random stream, named
        by (seed, stage, number) and drawn on the CPU in float32, so that it gets the
        same values on every device, whichever other modules are drawn.
        """
        state = self.member(p)
        for number in sorted(numbers):
            generator = torch.Generator().manual_seed(torch_seed(seed, stage, number))
            prefix, bound = f"module{number}.", 0.0
            for name in (n for n in state if n.startswith(prefix)):
                tensor = state[name]
                if tensor.ndim > 2 or number == 6:  # convolutions; head
                    if name.endswith("weight"):
                        bound = tensor[0].numel() ** -0.5 if number != 6 else tensor.shape[-1] ** -0.5
                    draw = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
                    tensor.copy_(draw)
                else:
                    tensor.fill_(1.0 if name.endswith(("weight", "running_var")) else 0.0)

    @torch.no_grad()
    def shrink_and_perturb(self, p: int, shrink: float, perturb: float, *new: int) -> None:
        """Make member p `shrink` times itself plus `perturb` times a new network.

        `initialise` draws the new one from `new` (seed, stage); running statistics stay.
        """
        before = {name: tensor.clone() for name, tensor in self.member(p).items()}
        self.initialise(p, MODULES, *new)
        for name, tensor in self.member(p).items():
            old = before[name]
            tensor.copy_(old if "running" in name else shrink * old + perturb * tensor)
