"""The ResNet forwards and backwards in float32 on one core of a CPU, with images in tiles of 16.

PyTorch fills a processor's vectors (8 or 16 numbers that it computes at once) with the
channels of a pixel, and wastes part of them if channels are few. A tile is 16 images,
whose values of one pixel and channel lie side by side in memory: these fill vectors,
and a batch always has enough images.

Letters in shapes: P members (networks trained together), B images, T tiles, L the 16
images of a tile, C channels of a member (O those of a convolution's output), H rows, W
columns, k the side of a convolution's weights. Images are [B, P * C, H, W] and tiles
[P, T, H, W, C, L], in that order in memory.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repro.cpu import kernels, winograd
from repro.cpu.kernels import TILE

NEAR = 16  # output pixels in a group (`Geometry.groups`), which stay in the cache for all taps in turn


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [P, B, classes] that a `ResNet` gives for images [B, P * C, H, W]; B is a multiple of 16."""
    convolution, norm, _ = network.module1
    x = normalise(convolve(tile(images, network.members), convolution.weight), norm)
    for block in chain(network.module2, network.module3, network.module4, network.module5):
        y = normalise(convolve(x, block.conv1.weight, block.conv1.stride[0]), block.norm1)
        y = convolve(y, block.conv2.weight)
        if len(block.shortcut):
            pooling, projection, norm = block.shortcut
            x = normalise(convolve(x, projection.weight, pooling.stride), norm, relu=False)
        x = normalise(y, block.norm2, residual=x)
    head = network.module6
    x = x.mean((2, 3)).transpose(2, 3).flatten(1, 2)  # [P, T, H, W, C, L] to [P, T, C, L] to [P, B, C]
    return torch.baddbmm(head.bias[:, None], x, head.weight.transpose(1, 2))


def tile(images: Tensor, members: int) -> Tensor:
    """Images [B, P * C, H, W] as tiles [P, T, H, W, C, L]."""
    x = images.unflatten(1, (members, -1)).unflatten(0, (-1, TILE))  # [T, L, P, C, H, W]
    return x.permute(2, 0, 4, 5, 3, 1).contiguous()


# Convolutions


class Geometry:
    """Which input pixel contributes to which output pixel of a convolution, by which tap of its weights.

    These are triples (source, target, tap). Pixels are numbered row by row in an
    image, taps row by row in the k x k weights.
    """

    def __init__(self, height: int, width: int, size: int, stride: int) -> None:
        self.size = tuple((side - 1) // stride + 1 for side in (height, width))  # the output's sides
        self.pixels = height * width, self.size[0] * self.size[1]  # numbers of input and of output
        row, column, *tap = np.indices((*self.size, size, size)).reshape(4, -1)
        y, x = (stride * at + step - size // 2 for at, step in zip((row, column), tap, strict=True))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        self.source = (y * width + x)[inside]
        self.target = (row * self.size[1] + column)[inside]
        self.tap = (tap[0] * size + tap[1])[inside]
        self.forward = self._pairs(self.target, self.source, self.pixels[1])
        self.backward = self._pairs(self.source, self.target, self.pixels[0])

    def _pairs(self, results: np.ndarray, summands: np.ndarray, pixels: int) -> list[Tensor]:
        """The tables of `kernels.gather`: where each result's pairs begin; summand and tap of each pair."""
        order = np.argsort(results, kind="stable")
        first = np.searchsorted(results[order], np.arange(pixels + 1))
        return [torch.from_numpy(table) for table in (first, summands[order], self.tap[order])]

    @cache  # noqa: B019  # a geometry lives as long as the process
    def groups(self, tiles: int) -> list[Tensor]:
        """The tables of `kernels.correlate`: where groups begin; targets; sources; each group's tap."""
        taps, tile = self.tap.max() + 1, np.arange(tiles)[:, None]
        source = (tile * self.pixels[0] + self.source).ravel()
        target = (tile * self.pixels[1] + self.target).ravel()
        key = target // NEAR * taps + np.tile(self.tap, tiles)
        order = np.argsort(key, kind="stable")
        keys, first = np.unique(key[order], return_index=True)
        first = np.append(first, len(key))
        return [torch.from_numpy(table) for table in (first, target[order], source[order], keys % taps)]


geometry = cache(Geometry)


def convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolution of tiles [P, T, H, W, C, L] to [P, T, H', W', O, L]; it can be differentiated once.

    The weights [P * O, C, k, k] are those of a `conv2d` with P groups and k // 2
    pixels of padding.
    """
    return _Convolution.apply(x, weight, stride)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = x.contiguous()
        members, tiles, *sides, inputs, _ = x.shape
        size, outputs = weight.shape[2], len(weight) // members
        ctx.winograd = winograd.pays(size, stride, tiles, *sides, min(inputs, outputs))
        if ctx.winograd:
            ctx.save_for_backward(x, weight)
            return winograd.convolve(x, weight)
        weight = weight.permute(0, 2, 3, 1).contiguous()  # [P * O, k, k, C]
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry(*sides, size, stride)
        y = x.new_empty(members, tiles, *ctx.geometry.size, outputs, TILE)
        _gather(y, x, weight, ctx.geometry.forward, (size**2 * inputs, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy, dx, dw = dy.contiguous(), None, None
        for_x, for_weight, _ = ctx.needs_input_grad  # the first convolution's input, the images, needs none
        if ctx.winograd:
            dx = winograd.convolve(dy, weight, backward=True) if for_x else None
            return dx, winograd.correlate(x, dy) if for_weight else None, None
        if for_x:
            dx = torch.empty_like(x)
            _gather(dx, dy, weight, ctx.geometry.backward, (1, weight[0].numel()))
        if for_weight:
            dw = _correlate(dy, x, weight, ctx.geometry.groups(x.shape[1])).permute(0, 3, 1, 2)
        return dx, dw, None


def _gather(y: Tensor, x: Tensor, weight: Tensor, pairs: list[Tensor], steps: tuple[int, int]) -> None:
    """Fill y with sums of x times weights [P * O, k, k, C], over `pairs` of pixels.

    Forward, y is a convolution's output and x its input; backward, y is its input's
    gradient and x its output's. In the weights, neighbouring channels of y lie
    steps[0] apart, those of x steps[1].
    """
    sizes, split = kernels.cut(y.shape[4], kernels.OUTPUT_BLOCK)
    counts = *y.shape[:2], y.shape[4], split, x.shape[4], *(t.shape[2:4].numel() for t in (y, x))
    kernels.gather(sizes, *steps)(y, x, weight, *pairs, *counts, weight.numel() // len(y), weight.shape[3])


def _correlate(dy: Tensor, x: Tensor, weight: Tensor, groups: list[Tensor]) -> Tensor:
    """The gradient of weights [P * O, k, k, C], from the output's gradient dy and the input x."""
    dw = torch.zeros_like(weight)
    blocks = zip((dy.shape[4], x.shape[4]), kernels.WEIGHT_BLOCK, strict=True)
    (rows, o_split), (columns, c_split) = (kernels.cut(*block) for block in blocks)
    counts = len(x), dy.shape[4], o_split, x.shape[4], c_split, len(groups[-1])
    sizes = *(t.shape[1:4].numel() for t in (dy, x)), weight.shape[1] ** 2
    kernels.correlate(rows, columns)(dw, dy, x, *groups, *counts, *sizes)
    return dw


# Batch norms


def normalise(x: Tensor, norm: nn.BatchNorm2d, relu: bool = True, residual: Tensor | None = None) -> Tensor:
    """Batch norm of tiles, plus `residual`, then ReLU if `relu`; in training mode, differentiable once."""
    return _Norm.apply(x, residual, norm.weight, norm.bias, norm, relu)


class _Norm(torch.autograd.Function):
    """y = ReLU(a x + b + residual) with a = weight scale, b = bias - a mean, scale = 1 / sqrt(var + eps)."""

    @staticmethod
    def forward(
        ctx, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.Module, relu: bool
    ) -> Tensor:
        x, n = x.contiguous(), x[0, ..., 0, :].numel()  # n = T * H * W * L numbers in a channel
        counts = len(x), n // TILE, x.shape[4]
        mean, var = norm.running_mean, norm.running_var  # [P * C]
        if norm.training:
            # Moments around the running mean: the nearer it is to the mean, the less the squares are rounded.
            sums = x.new_zeros(2, len(mean), TILE)
            kernels.moments()(sums, x, mean, *counts)
            first, second = sums.sum(2).div_(n)
            mean, var = mean + first, second.addcmul_(first, first, value=-1).clamp_(min=0)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)
        scale = (var + norm.eps).rsqrt()
        a = scale * weight
        b = bias - mean * a
        y, adds = torch.empty_like(x), residual is not None
        kernels.affine(relu, adds)(y, x, residual.contiguous() if adds else x, a, b, *counts)
        ctx.save_for_backward(x, y if adds else x, mean, scale, a, b)
        ctx.counts, ctx.kind = counts, (relu, adds)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With g the gradient of ReLU's input, and sums over the n numbers of a channel:

        d_bias = sum g, d_weight = scale sum g (x - mean),
        dx = a (g - d_bias / n - (x - mean) scale d_weight / n), and the residual's gradient is g.
        """
        x, y, mean, scale, a, b = ctx.saved_tensors
        dy, sums = dy.contiguous(), x.new_zeros(2, len(mean), TILE)
        kernels.gradient_sums(*ctx.kind)(sums, dy, y, x, mean, a, b, *ctx.counts)
        d_bias, d_weight = sums.sum(2)
        d_weight *= scale
        dx, dr = torch.empty_like(x), torch.empty_like(x) if ctx.kind[1] else None
        n = ctx.counts[1] * TILE
        c, d = -a * scale * d_weight / n, -a * d_bias / n
        unread = dx if dr is None else dr
        kernels.affine_gradient(*ctx.kind)(dx, unread, dy, y, x, mean, a, b, c, d, *ctx.counts)
        return dx, dr, d_weight, d_bias, None, None
