"""Networks on a CPU with images in tiles of 16: the layout, convolutions and batch norms in it.

Images [B, P * C, H, W] become tiles [P, B / 16, H, W, C, 16]. Where PyTorch spreads
channels over the lanes of a vector, these functions spread images, of which there
are always enough (`repro.kernels`). They run on one core, in float32.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

try:
    from repro import kernels, winograd
except ImportError:  # llvmlite is not there; networks train without tiles, more slowly
    kernels = None

NEAR = 16  # pixels, which stay in its cache while the gradients of one tap are summed


def fit(images: int, device: torch.device, precision: str) -> bool:
    """Whether so many images are to be trained on, or tested, in tiles."""
    return (
        kernels is not None and device.type == "cpu" and precision == "float32" and images % kernels.TILE == 0
    )


def tiled(x: Tensor) -> bool:
    """Whether these are tiles, not images."""
    return x.ndim == 6


def tile(x: Tensor, members: int) -> Tensor:
    """Images [B, P * C, H, W] as tiles [P, B / 16, H, W, C, 16]."""
    return (
        x.unflatten(1, (members, -1)).unflatten(0, (-1, kernels.TILE)).permute(2, 0, 4, 5, 3, 1).contiguous()
    )


def untile(x: Tensor) -> Tensor:
    """Tiles as images again."""
    return x.permute(1, 5, 0, 4, 2, 3).flatten(0, 1).flatten(1, 2)


class Geometry:
    """Which pixels of a convolution's input meet which of its output, and in which tap of its kernel."""

    def __init__(self, height: int, width: int, size: int, stride: int) -> None:
        self.size = tuple((side - 1) // stride + 1 for side in (height, width))
        self.pixels = height * width, self.size[0] * self.size[1]  # of the input and of the output
        row, column, *tap = np.indices((*self.size, size, size)).reshape(4, -1)
        y, x = (stride * at + step - size // 2 for at, step in zip((row, column), tap, strict=True))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        self.source = (y * width + x)[inside]
        self.target = (row * self.size[1] + column)[inside]
        self.tap = (tap[0] * size + tap[1])[inside]
        self.forward = self._pairs(self.target, self.source, self.pixels[1])
        self.backward = self._pairs(self.source, self.target, self.pixels[0])

    def _pairs(self, to: np.ndarray, of: np.ndarray, pixels: int) -> list[Tensor]:
        """Where the pairs of each pixel `to` begin; the pixel `of` and tap of each pair."""
        order = np.argsort(to, kind="stable")
        first = np.searchsorted(to[order], np.arange(pixels + 1))
        return [torch.from_numpy(array) for array in (first, of[order], self.tap[order])]

    @cache  # noqa: B019  # a geometry is kept as long as the process lives
    def groups(self, tiles: int) -> list[Tensor]:
        """Pairs of one tap and of near pixels: where each group begins, targets, sources, taps."""
        taps = self.tap.max() + 1
        tile = np.arange(tiles)[:, None]
        source, target = (
            tile * n + of for n, of in zip(self.pixels, (self.source, self.target), strict=True)
        )
        key = (target // NEAR * taps + self.tap).ravel()
        order = np.argsort(key, kind="stable")
        keys, first = np.unique(key[order], return_index=True)
        first = np.append(first, len(key))
        return [
            torch.from_numpy(a) for a in (first, target.ravel()[order], source.ravel()[order], keys % taps)
        ]


geometry = cache(Geometry)


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
        y = x.new_empty(members, tiles, *ctx.geometry.size, outputs, kernels.TILE)
        _gather(y, x, weight, ctx.geometry.forward, (size**2 * inputs, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy, dx, dw = dy.contiguous(), None, None
        by_x, by_weight, _ = ctx.needs_input_grad
        if ctx.winograd:
            dx = winograd.convolve(dy, weight, backward=True) if by_x else None
            return dx, winograd.correlate(x, dy) if by_weight else None, None
        if by_x:
            dx = torch.empty_like(x)
            _gather(dx, dy, weight, ctx.geometry.backward, (1, weight[0].numel()))
        if by_weight:
            dw = torch.zeros_like(weight)
            groups = ctx.geometry.groups(x.shape[1])
            (rows, o_split), (columns, c_split) = map(kernels.cut, (dy.shape[4], x.shape[4]), kernels.WEIGHTS)
            counts = len(x), dy.shape[4], o_split, x.shape[4], c_split, len(groups[-1])
            sizes = *(t.shape[1:4].numel() for t in (dy, x)), weight.shape[1] ** 2
            kernels.correlate(rows, columns)(dw, dy, x, *groups, *counts, *sizes)
            dw = dw.permute(0, 3, 1, 2)
        return dx, dw, None


def _gather(y: Tensor, x: Tensor, weight: Tensor, pairs: list[Tensor], steps: tuple[int, int]) -> None:
    """Sums of x to y, with weights [P * O, k, k, C] and their steps between channels of y and of x."""
    sizes, split = kernels.cut(y.shape[4], kernels.OUTPUTS)
    counts = *y.shape[:2], y.shape[4], split, x.shape[4], *(t.shape[2:4].numel() for t in (y, x))
    apart = weight.numel() // len(y), weight.shape[3]
    kernels.gather(sizes, *steps)(y, x, weight, *pairs, *counts, *apart)


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """What `conv2d` gives with P groups and half of the kernel as padding; differentiable once.

    Tiles [P, T, H, W, C, 16] and weights [P * O, C, k, k] give tiles [P, T, H', W', O, 16].
    """
    return _Convolution.apply(x, weight, stride)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        relu: bool,
    ) -> Tensor:
        x, y, n = x.contiguous(), torch.empty_like(x), x[0, ..., 0, :].numel()
        counts = len(x), n // kernels.TILE, x.shape[4]
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            guess, sums = (
                mean.clone(),
                x.new_zeros(2, len(mean), kernels.TILE),
            )  # the nearer, the less is rounded
            kernels.moments()(sums, x, guess, *counts)
            first, second = sums.sum(2).div_(n)
            mean, var = guess + first, second.addcmul_(first, first, value=-1).clamp_(min=0)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)
        scale = (var + norm.eps).rsqrt()
        a = scale * weight
        b = bias - mean * a
        ctx.adds = residual is not None
        other = residual.contiguous() if ctx.adds else x
        kernels.affine(relu, ctx.adds)(y, x, other, a, b, *counts)
        ctx.save_for_backward(x, y if ctx.adds else x, mean, scale, a, b)
        ctx.counts, ctx.relu = counts, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, scale, a, b = ctx.saved_tensors
        dy, sums = dy.contiguous(), x.new_zeros(2, len(mean), kernels.TILE)
        kernels.slopes(ctx.relu, ctx.adds)(sums, dy, y, x, mean, a, b, *ctx.counts)
        d_bias, d_weight = sums.sum(2)
        d_weight *= scale
        dx, dr = torch.empty_like(x), torch.empty_like(x) if ctx.adds else None
        n = ctx.counts[1] * kernels.TILE
        c, d = -a * scale * d_weight / n, -a * d_bias / n
        other = dr if ctx.adds else dx
        kernels.affine_slopes(ctx.relu, ctx.adds)(dx, other, dy, y, x, mean, a, b, c, d, *ctx.counts)
        return dx, dr, d_weight, d_bias, None, None


def normalise(x: Tensor, norm: nn.BatchNorm2d, relu: bool, residual: Tensor | None = None) -> Tensor:
    """Batch norm of tiles, plus the residual, then ReLU; differentiable once, in training."""
    return _Normalised.apply(x, residual, norm.weight, norm.bias, norm, relu)
