"""The paper's ResNet (appendix A.4), and populations of them as one grouped network.

P networks of one shape, each with its own weights, are exactly one network
whose convolutions have P groups: batch norm works per channel, so per member,
and the gradient of a summed loss keeps members apart. P = 1 is the ordinary
ResNet. The first dimension of every parameter and buffer is a multiple of P, in
member order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tiles
from repro.config import MODULES, Model

# Whether this processor multiplies bf16 in hardware. A build of PyTorch without oneDNN cannot be asked.
CPU_HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Convolution(nn.Conv2d):
    """A convolution that is fast in bf16 on processors without it, too, where PyTorch takes six times longer.

    Inputs, weights, results and gradients are rounded to bf16 and products summed
    in float32, which is what hardware does. In tiles, all is float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if tiles.tiled(x):
            return tiles.convolve(x, self.weight, self.stride[0])
        if CPU_HAS_BF16 or not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            x, weight = (tensor.bfloat16().float() for tensor in (x, self.weight))
            return F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups).bfloat16()


def _convolution(inputs: int, outputs: int, members: int, stride: int = 1) -> Convolution:
    channels = members * inputs, members * outputs
    return Convolution(*channels, 3, stride=stride, padding=1, groups=members, bias=False)


class Norm(nn.BatchNorm2d):
    """Batch norm, then whatever is to be added, then ReLU."""

    def __init__(self, channels: int, relu: bool = True) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None  # a count shared by members; only a momentum of None reads it
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if tiles.tiled(x):
            return tiles.normalise(x, self, self.relu, residual)
        y = super().forward(x)
        if residual is not None:
            y = y + residual
        return F.relu(y, inplace=True) if self.relu else y


class Projection(Convolution):
    """A 1 x 1 convolution of the first of every `step` pixels in a row and a column.

    Images lose the other pixels first: in a convolution with a stride oneDNN writes beyond its memory
    for fewer than eight channels on AVX2 processors (its issue 6035). It is faster, too.
    """

    def __init__(self, inputs: int, outputs: int, step: int, members: int) -> None:
        super().__init__(members * inputs, members * outputs, 1, groups=members, bias=False)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        if tiles.tiled(x):
            return tiles.convolve(x, self.weight, self.step)
        return super().forward(F.avg_pool2d(x, 1, self.step))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, members: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, members, stride=stride)
        self.norm1 = Norm(members * outputs)
        self.conv2 = _convolution(outputs, outputs, members)
        self.norm2 = Norm(members * outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            # Numbered as in stored networks of before, which had a module 0, without weights.
            self.shortcut.add_module("1", Projection(inputs, outputs, stride, members))
            self.shortcut.add_module("2", Norm(members * outputs, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), self.shortcut(x))


class Head(nn.Module):
    """Global average pooling and the last linear layer, one per member."""

    def __init__(self, features: int, classes: int, members: int) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, classes, features))
        self.bias = nn.Parameter(torch.empty(members, classes))

    def forward(self, x: Tensor) -> Tensor:
        if tiles.tiled(x):
            pooled = x.mean((2, 3)).transpose(2, 3).flatten(1, 2)  # [P, B, features]
        else:
            pooled = x.mean((2, 3)).unflatten(1, (self.members, -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], pooled, self.weight.transpose(1, 2))


class ResNet(nn.Module):
    """ResNet for small images: w, 2w, 4w, 8w channels in four groups of d blocks, times P members.

    Maps [B, P * channels, H, W], or the same in tiles (`repro.tiles`), to logits
    [P, B, classes]. Weights are undefined until `initialise` or `load_member` has
    filled every member.
    """

    def __init__(self, model: Model, channels: int, classes: int, members: int = 1) -> None:
        super().__init__()
        self.members = members
        w = model.width
        self.module1 = nn.Sequential(_convolution(channels, w, members), Norm(members * w))
        widths = (w, w, 2 * w, 4 * w, 8 * w)
        for i in range(4):
            strides = [1 if i == 0 else 2] + [1] * (model.depth - 1)
            inputs = [widths[i]] + [widths[i + 1]] * (model.depth - 1)
            blocks = (Block(n, widths[i + 1], s, members) for n, s in zip(inputs, strides, strict=True))
            setattr(self, f"module{i + 2}", nn.Sequential(*blocks))
        self.module6 = Head(8 * w, classes, members)

    def forward(self, x: Tensor) -> Tensor:
        for number in MODULES:
            x = self.get_submodule(f"module{number}")(x)
        return x

    def member(self, p: int) -> dict[str, Tensor]:
        """Parameters and batch-norm statistics of member p, as views: writing to them writes to it."""
        return {name: tensor.chunk(self.members)[p] for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load_member(self, p: int, state: dict[str, Tensor]) -> None:
        """Give member p the weights and statistics of `state`, as `member` returns them."""
        for name, tensor in self.member(p).items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def initialise(self, p: int, numbers: Iterable[int], seed: int, stage: int) -> None:
        """Draw the numbered modules of member p anew, with the statistics of their batch norms.

        PyTorch's defaults: uniform within 1 / sqrt(fan-in) for weights and bias,
        scale 1 and shift 0 in batch norms. Every module has a stream of its own,
        named by (seed, stage, number), drawn on the CPU in float32: a module gets
        the same values whatever else is drawn, and on every device.
        """
        state = self.member(p)
        for number in sorted(numbers):
            key = np.random.SeedSequence(seed, spawn_key=(stage, number)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(key[0] >> np.uint64(1)))
            prefix, bound = f"module{number}.", 0.0
            for name in (n for n in state if n.startswith(prefix)):
                tensor = state[name]
                if tensor.ndim > 2 or number == 6:  # convolutions; weight and bias of the head
                    if name.endswith("weight"):
                        bound = tensor[0].numel() ** -0.5 if number != 6 else tensor.shape[-1] ** -0.5
                    draw = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
                    tensor.copy_(draw)
                else:
                    tensor.fill_(1.0 if name.endswith(("weight", "running_var")) else 0.0)

    @torch.no_grad()
    def shrink_and_perturb(self, p: int, shrink: float, perturb: float, seed: int, stage: int) -> None:
        """Make every parameter of member p `shrink` times itself plus `perturb` times a new one's.

        The new network is the one `initialise` draws; statistics of batch norms stay.
        """
        before = {name: tensor.clone() for name, tensor in self.member(p).items()}
        self.initialise(p, MODULES, seed, stage)
        for name, tensor in self.member(p).items():
            kept = "running" in name
            tensor.copy_(before[name] if kept else shrink * before[name] + perturb * tensor)
