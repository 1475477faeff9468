"""3 x 3 convolutions of tiles with a quarter of the products (Winograd's; Lavin and Gray, arXiv 1509.09308).

4 x 4 outputs depend on 6 x 6 inputs. Seen as polynomials, all are known from 6 x 6
values: at the points 0, A, -A, B, -B and infinity, of rows and of columns.
Images and weights become values, values are multiplied and summed over channels, and
sums become outputs. All but the products are few operations. Gradients go the same way.

A band is what four rows of outputs need of one tile. One band at a time, or a few,
so that all stays in a core's cache, the six pixels of each column become values, then
those of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from repro.kernels import OUTPUTS, PARTS, TILE, WEIGHTS, Place, add_totals, cut, meet, put_sums, weigh
from repro.loops import Compiled, Int, Kernel

SQUARE, VALUES = 4, 6  # sides: outputs, and values from which they are known
SQUARES = 8  # whose products are summed to gradients of weights at once, at least
A, B = 0.5**0.5, 2**0.5  # of the points tried, these round least

# Each transform is a product of two sparse matrices. Even and odd terms at the six points, and their sums:
_TERMS = np.array(
    [[1, 0, 0, 0], [1, 0, A**2, 0], [0, 1, 0, A**2], [1, 0, B**2, 0], [0, 1, 0, B**2], [0, 0, 0, 1]]
)
_POINTS = np.eye(VALUES)
_POINTS[1:3, 1:3] = [1, A], [1, -A]
_POINTS[3:5, 3:5] = [1, B], [1, -B]
_INPUT_TERMS = np.array(
    [
        [A**2 * B**2, 0, -(A**2) - B**2, 0, 1, 0],
        [0, 0, -(B**2), 0, 1, 0],
        [0, -(B**2), 0, 1, 0, 0],
        [0, 0, -(A**2), 0, 1, 0],
        [0, -(A**2), 0, 1, 0, 0],
        [0, A**2 * B**2, 0, -(A**2) - B**2, 0, 1],
    ]
)
OF_INPUTS = _INPUT_TERMS, _POINTS  # 6 to 6
OF_SLOPES = _TERMS, _POINTS  # 4 to 6
TO_OUTPUTS = _POINTS.T, _TERMS.T  # 6 to 4


def _of_weights() -> Tensor:
    """The matrix [36, 9] that makes values of a kernel's weights."""
    points = 0, A, -A, B, -B
    rows = [np.array([1, p, p * p]) / np.prod([p - q for q in points if q != p]) for p in points]
    one = np.array([*rows, [0, 0, 1]])
    return torch.from_numpy(np.kron(one, one)).float()


OF_WEIGHTS = _of_weights()


def pays(size: int, stride: int, tiles: int, height: int, width: int, channels: int) -> bool:
    """Whether a convolution is faster so, with its gradients; `channels` are those of x or y, the fewer."""
    squares = tiles * -(-height // SQUARE) * -(-width // SQUARE)
    enough = channels >= 8 and squares >= 4
    return enough and (size, stride) == (3, 1) and squares * SQUARE**2 <= 4 / 3 * tiles * height * width


@cache
def _convolve(sizes: tuple[int, ...], wo: int, wc: int) -> Compiled:
    """The convolution of tiles x with values of weights u, to y, on scratch a, v, z and b.

    An image has R bands of K squares. Sizes, split, wo and wc are those of `kernels.gather`.
    Blank rows stand in for those above and below the images x, and what is beyond those of
    y goes to a row of its own.
    """
    f = Kernel("y x u a v z b blank beyond", "M T H W K R O split C")
    with f.loop(0, f.M) as m, f.loop(0, f.T) as t, f.loop(0, f.R) as r:
        a, b = _rows(f.a, f.K, f.C, border=1), _rows(f.b, f.K, f.O)
        lines = _lines(f, f.x, m * f.T + t, r * SQUARE + -1, VALUES, f.W * f.C, f.blank)
        _transform(f, OF_INPUTS, f.W * f.C, lines, [a(i, 0) for i in range(VALUES)])
        with f.loop(0, VALUES) as i:
            v, z = _values(f.v, f.K * f.C), _values(f.z, f.K * f.O)
            with f.loop(0, f.K) as k:
                pixels = [a(i, k * SQUARE + (j - 1)) for j in range(VALUES)]
                _transform(f, OF_INPUTS, f.C, pixels, [v(j, k * f.C) for j in range(VALUES)])
            with f.loop(0, VALUES) as j:
                u = ((m * VALUES + i) * VALUES + j) * f.O * f.C
                for size, o in f.blocks(sizes, f.split, f.O):
                    with f.loop(0, f.K) as k:
                        sums = [f.zeros(len(PARTS)) for _ in range(size)]
                        weigh(f, sums, *v(j, k * f.C), f.u, u + o * wo, wo, wc)
                        put_sums(f, sums, *z(j, k * f.O + o))
            with f.loop(0, f.K) as k:
                pixels = [b(i, k * SQUARE + j) for j in range(SQUARE)]
                _transform(f, TO_OUTPUTS, f.O, [z(j, k * f.O) for j in range(VALUES)], pixels)
        lines = _lines(f, f.y, m * f.T + t, r * SQUARE, SQUARE, f.W * f.O, f.beyond)
        _transform(f, TO_OUTPUTS, f.W * f.O, [b(i, 0) for i in range(VALUES)], lines)
    return f.compiled()


@cache
def _correlate(rows: tuple[int, ...], columns: tuple[int, ...]) -> Compiled:
    """Adds to s what tiles dy and x give as gradient of the weights' values, G bands at a time.

    Rows, columns and splits are those of `kernels.correlate`.
    """
    f = Kernel("s dy x a b v z blank", "M T H W K R O o_split C c_split G")
    with f.loop(0, f.M) as m, f.loop(0, f.T * f.R, f.G) as first:
        bands, squares = f.least(f.G, f.T * f.R - first), f.G * f.K
        a, b = _rows(f.a, f.K, f.C, border=1), _rows(f.b, f.K, f.O)
        v, z = _values(f.v, f.C * squares), _values(f.z, f.O * squares)
        with f.loop(0, bands) as g:
            image, row = m * f.T + (first + g) // f.R, (first + g) % f.R * SQUARE
            for matrices, band, lines, count in (
                (OF_INPUTS, a, _lines(f, f.x, image, row + -1, VALUES, f.W * f.C, f.blank), f.W * f.C),
                (OF_SLOPES, b, _lines(f, f.dy, image, row, SQUARE, f.W * f.O, f.blank), f.W * f.O),
            ):
                _transform(f, matrices, count, lines, [band(g * VALUES + i, 0) for i in range(VALUES)])
        with f.loop(0, VALUES) as i:
            with f.loop(0, bands) as g, f.loop(0, f.K) as k:
                for matrices, band, shift, sources, found, count in (
                    (OF_INPUTS, a, -1, VALUES, v, f.C),
                    (OF_SLOPES, b, 0, SQUARE, z, f.O),
                ):
                    pixels = [band(g * VALUES + i, k * SQUARE + (j + shift)) for j in range(sources)]
                    to = [found(j, g * f.K + k) for j in range(VALUES)]
                    _transform(f, matrices, count, pixels, to, squares)
            with f.loop(0, VALUES) as j:
                for height, o in f.blocks(rows, f.o_split, f.O):
                    for width, c in f.blocks(columns, f.c_split, f.C):
                        sums = [f.zeros(width) for _ in range(height)]
                        with f.loop(0, bands * f.K) as n:
                            ys = [z(j, (o + p) * squares + n) for p in range(height)]
                            xs = [v(j, (c + q) * squares + n) for q in range(width)]
                            meet(f, sums, ys, xs)
                        s = ((m * VALUES + i) * VALUES + j) * f.O + o
                        add_totals(f, sums, f.s, [(s + p) * f.C + c for p in range(height)])
    return f.compiled()


def _rows(
    array: ir.Value, squares: Int, channels: Int, border: int = 0
) -> Callable[[Int | int, Int | int], Place]:
    """Where a pixel of a row is, in rows of `squares` with so many pixels before and after."""
    pixels = squares * SQUARE + 2 * border
    return lambda row, pixel: (array, (pixels * row + pixel + border) * channels)


def _values(array: ir.Value, count: Int) -> Callable[[Int | int, Int], Place]:
    """Where a value is, of `count` at each point."""
    apart = count + 1  # a multiple of 4,096 bytes would have them displace each other in the cache
    return lambda point, index: (array, apart * point + index)


def _lines(
    f: Kernel, images: ir.Value, image: Int, first: Int, count: int, numbers: Int, outside: ir.Value
) -> list[Place]:
    """Where the rows of an image begin that has f.H of so many numbers; `outside` for those beyond them."""
    found = []
    for y in (first + i for i in range(count)):
        inside = f.builder.icmp_unsigned("<", y.value, f.H.value)
        row = f.address(images, (image * f.H + y) * numbers * TILE)
        found.append((f.builder.select(inside, row, outside), y * 0))
    return found


def _transform(
    f: Kernel,
    matrices: Sequence[np.ndarray],
    count: Int,
    sources: list[Place],
    targets: list[Place],
    step: Int | int = 1,
) -> None:
    """To the targets, what the matrices make of the sources, and so for `count` numbers of tiles in a row.

    Targets are a step apart.
    """
    with f.loop(0, count) as at:
        for part in PARTS:
            vectors = [f.vector(array, (at + index) * TILE + part) for array, index in sources]
            for matrix in matrices:
                vectors = f.linear(matrix, vectors)
            for vector, (array, index) in zip(vectors, targets, strict=True):
                f.put(vector, array, (at * step + index) * TILE + part)


def convolve(x: Tensor, weight: Tensor, backward: bool = False) -> Tensor:
    """Tiles [P, T, H, W, C, 16] and weights [P * O, C, 3, 3] to tiles [P, T, H, W, O, 16], or, backward, the
    gradient [P, T, H, W, O, 16] of the result to that of the tiles.
    """
    members, tiles, height, width, inputs, _ = x.shape
    outputs = weight.numel() // (9 * members * inputs)
    of_weights = OF_WEIGHTS.flip(1) if backward else OF_WEIGHTS
    u = of_weights @ weight.reshape(members, inputs * outputs, 9).transpose(1, 2)
    across, down = -(-width // SQUARE), -(-height // SQUARE)
    y = x.new_empty(members, tiles, height, width, outputs, TILE)
    a = x.new_zeros(VALUES, across * SQUARE + 2, inputs, TILE)  # zeros beside the images stay
    v, z = (x.new_empty(VALUES, across * n + 1, TILE) for n in (inputs, outputs))
    b = x.new_empty(VALUES, across * SQUARE, outputs, TILE)
    spare = x.new_zeros(width, inputs, TILE), x.new_empty(width, outputs, TILE)
    sizes, split = cut(outputs, OUTPUTS)
    counts = members, tiles, height, width, across, down, outputs, split, inputs
    _convolve(sizes, *((1, outputs) if backward else (inputs, 1)))(y, x, u, a, v, z, b, *spare, *counts)
    return y


def correlate(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient of the weights, [P * O, C, 3, 3], of tiles [P, T, H, W, C, 16], whose result's is dy."""
    members, tiles, height, width, inputs, _ = x.shape
    outputs, across, down = dy.shape[4], -(-width // SQUARE), -(-height // SQUARE)
    bands = -(-SQUARES // across)
    s = x.new_zeros(members, VALUES**2, outputs * inputs)
    a = x.new_zeros(bands, VALUES, across * SQUARE + 2, inputs, TILE)
    b = x.new_zeros(bands, VALUES, across * SQUARE, outputs, TILE)
    v, z = (x.new_empty(VALUES, n * bands * across + 1, TILE) for n in (inputs, outputs))
    zeros = x.new_zeros(width, max(inputs, outputs), TILE)
    (rows, o_split), (columns, c_split) = map(cut, (outputs, inputs), WEIGHTS)
    counts = members, tiles, height, width, across, down, outputs, o_split, inputs, c_split, bands
    _correlate(rows, columns)(s, dy, x, a, b, v, z, zeros, *counts)
    return (OF_WEIGHTS.T @ s).transpose(1, 2).reshape(members * outputs, inputs, 3, 3)
