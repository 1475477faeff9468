"""3 x 3 convolutions of tiles with a quarter of the products, by Winograd's method.

See Lavin and Gray, arXiv 1509.09308. A tile is 16 images side by side in memory
(`repro.cpu.tiles`). A square of 4 x 4 output pixels depends on 6 x 6 input pixels. The
product of polynomials with 4 and 3 coefficients follows from their values at 6 points,
here 0, A, -A, B, -B and infinity; a convolution is the transpose of such a product, in
rows and in columns. So constant matrices transform the inputs of a square, and the
weights, to values at 6 x 6 points; these are multiplied and summed over input channels,
with 36 products instead of 144 (16 outputs of 9 taps); another matrix transforms the
sums to 4 x 4 outputs. Gradients of the input and of the weights work in the same way.

A band is a row of squares, hence four rows of outputs, in one tile. The kernels process
one band at a time, or a few, so that all stays in a core's cache; they transform columns
of pixels first, then rows.

Letters in shapes: P members (networks trained together; M in kernels), T tiles, H rows
and W columns of pixels, C input and O output channels, L the 16 images of a tile, K squares
in a band, R bands in a tile, G bands at a time. Formulas use those of `repro.cpu.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from repro.cpu import kernels
from repro.cpu.kernels import PARTS, TILE, Place, cut
from repro.cpu.vectors import Compiled, Int, Kernel

SQUARE, POINTS = 4, 6  # sides of a square's outputs, and of its inputs and points
SQUARES = 8  # at least so many are summed in registers before they are added to the weights' gradient
A, B = 0.5**0.5, 2**0.5  # of the points tried, these had the smallest rounding errors

# Each matrix is the product of two sparse ones, to save work. For a polynomial at A and -A, the first gives
# the sum of its even terms and that of its odd terms divided by A, the second its two values.
_TERMS = np.array(
    [[1, 0, 0, 0], [1, 0, A**2, 0], [0, 1, 0, A**2], [1, 0, B**2, 0], [0, 1, 0, B**2], [0, 0, 0, 1]]
)
_SUMS = np.eye(POINTS)
_SUMS[1:3, 1:3] = [1, A], [1, -A]
_SUMS[3:5, 3:5] = [1, B], [1, -B]
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
INPUTS_TO_POINTS = _INPUT_TERMS, _SUMS  # 6 input pixels to 6 points
OUTPUTS_TO_POINTS = _TERMS, _SUMS  # 4 to 6, for outputs' gradients
POINTS_TO_OUTPUTS = _SUMS.T, _TERMS.T  # 6 to 4


def _weights_to_points() -> Tensor:
    """The matrix [36, 9] that transforms 3 x 3 weights to values at 6 x 6 points."""
    points = 0, A, -A, B, -B
    rows = [np.array([1, p, p * p]) / np.prod([p - q for q in points if q != p]) for p in points]
    side = np.array([*rows, [0, 0, 1]])
    return torch.from_numpy(np.kron(side, side)).float()


WEIGHTS_TO_POINTS = _weights_to_points()


def pays(size: int, stride: int, tiles: int, height: int, width: int, channels: int) -> bool:
    """Whether a convolution and its gradients are faster this way; `channels` is the smaller of C and O.

    As measured, the transformations cost more than they save with few channels or
    squares, or if more than a quarter of the squares' area lies outside the images.
    """
    squares = tiles * -(-height // SQUARE) * -(-width // SQUARE)
    enough = channels >= 8 and squares >= 4
    return enough and (size, stride) == (3, 1) and squares * SQUARE**2 <= 4 / 3 * tiles * height * width


def convolve(x: Tensor, weight: Tensor, backward: bool = False) -> Tensor:
    """Convolution of tiles [P, T, H, W, C, L] with weights [P * O, C, 3, 3] to [P, T, H, W, O, L].

    If `backward`, x is the gradient of such a convolution's output and the result is
    the gradient of its input; the weights are then [P * C, O, 3, 3].
    """
    members, tiles, height, width, inputs, _ = x.shape
    outputs = weight.numel() // (9 * members * inputs)
    matrix = WEIGHTS_TO_POINTS.flip(1) if backward else WEIGHTS_TO_POINTS  # flipped: turned by 180 degrees
    u = matrix @ weight.reshape(members, inputs * outputs, 9).transpose(1, 2)  # [P, 36, O * C]
    across, down = -(-width // SQUARE), -(-height // SQUARE)  # K and R
    y = x.new_empty(members, tiles, height, width, outputs, TILE)
    a = x.new_zeros(POINTS, across * SQUARE + 2, inputs, TILE)  # its border stays zero: the padding
    v, z = (x.new_empty(POINTS, across * n + 1, TILE) for n in (inputs, outputs))
    b = x.new_empty(POINTS, across * SQUARE, outputs, TILE)
    blank, beyond = x.new_zeros(width, inputs, TILE), x.new_empty(width, outputs, TILE)
    sizes, split = cut(outputs, kernels.OUTPUT_BLOCK)
    counts = members, tiles, height, width, across, down, outputs, split, inputs
    steps = (1, outputs) if backward else (inputs, 1)
    _convolve(sizes, *steps)(y, x, u, a, v, z, b, blank, beyond, *counts)
    return y


@cache
def _convolve(sizes: tuple[int, ...], wo: int, wc: int) -> Compiled:
    """A convolution y of x, or the gradient y of its input, from weights at points u[m, point, o, c].

    sizes, split, wo and wc are those of `kernels.gather`; a, v, z and b are scratch memory.
    `blank` is read for rows of pixels above and below x; `beyond` takes rows below y.
    """
    f = Kernel("y x u a v z b blank beyond", "M T H W K R O split C")
    with f.loop(0, f.M) as m, f.loop(0, f.T) as t, f.loop(0, f.R) as r:
        a, b = _pixel_rows(f.a, f.K, f.C, border=1), _pixel_rows(f.b, f.K, f.O)
        v, z = _point_values(f.v, f.K * f.C), _point_values(f.z, f.K * f.O)
        rows = _image_rows(f, f.x, m * f.T + t, r * SQUARE - 1, POINTS, f.W * f.C, f.blank)
        _transform(f, INPUTS_TO_POINTS, f.W * f.C, rows, [a(i, 0) for i in range(POINTS)])
        with f.loop(0, POINTS) as i:
            with f.loop(0, f.K) as k:
                pixels = [a(i, k * SQUARE + (j - 1)) for j in range(POINTS)]
                _transform(f, INPUTS_TO_POINTS, f.C, pixels, [v(j, k * f.C) for j in range(POINTS)])
            with f.loop(0, POINTS) as j:
                u = ((m * POINTS + i) * POINTS + j) * f.O * f.C
                for size, o in f.blocks(sizes, f.split, f.O):
                    with f.loop(0, f.K) as k:
                        sums = [f.accumulators(len(PARTS)) for _ in range(size)]
                        kernels.add_products(f, sums, *v(j, k * f.C), f.u, u + o * wo, wo, wc)
                        kernels.store_sums(f, sums, *z(j, k * f.O + o))
            with f.loop(0, f.K) as k:
                pixels = [b(i, k * SQUARE + j) for j in range(SQUARE)]
                _transform(f, POINTS_TO_OUTPUTS, f.O, [z(j, k * f.O) for j in range(POINTS)], pixels)
        rows = _image_rows(f, f.y, m * f.T + t, r * SQUARE, SQUARE, f.W * f.O, f.beyond)
        _transform(f, POINTS_TO_OUTPUTS, f.W * f.O, [b(i, 0) for i in range(POINTS)], rows)
    return f.compile()


def correlate(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient [P * O, C, 3, 3] of a convolution's weights; x is its input, dy the gradient of its output."""
    members, tiles, height, width, inputs, _ = x.shape
    outputs, across, down = dy.shape[4], -(-width // SQUARE), -(-height // SQUARE)
    bands = -(-SQUARES // across)
    s = x.new_zeros(members, POINTS**2, outputs * inputs)
    a = x.new_zeros(bands, POINTS, across * SQUARE + 2, inputs, TILE)
    b = x.new_zeros(bands, POINTS, across * SQUARE, outputs, TILE)
    v, z = (x.new_empty(POINTS, n * bands * across + 1, TILE) for n in (inputs, outputs))
    blank = x.new_zeros(width, max(inputs, outputs), TILE)
    (rows, o_split), (columns, c_split) = map(cut, (outputs, inputs), kernels.WEIGHT_BLOCK)
    counts = members, tiles, height, width, across, down, outputs, o_split, inputs, c_split, bands
    _correlate(rows, columns)(s, dy, x, a, b, v, z, blank, *counts)
    return (WEIGHTS_TO_POINTS.T @ s).transpose(1, 2).reshape(members * outputs, inputs, 3, 3)


@cache
def _correlate(rows: tuple[int, ...], columns: tuple[int, ...]) -> Compiled:
    """The gradient of weights at points: s[m, point, o, c] += the sum over squares and lanes of dy x there.

    rows, columns and their splits are those of `kernels.correlate`; a, b, v and z are scratch
    memory. `blank` is read for rows of pixels above and below x and dy.
    """
    f = Kernel("s dy x a b v z blank", "M T H W K R O o_split C c_split G")
    with f.loop(0, f.M) as m, f.loop(0, f.T * f.R, f.G) as first:
        bands, squares = f.minimum(f.G, f.T * f.R - first), f.G * f.K
        a, b = _pixel_rows(f.a, f.K, f.C, border=1), _pixel_rows(f.b, f.K, f.O)
        v, z = _point_values(f.v, f.C * squares), _point_values(f.z, f.O * squares)
        with f.loop(0, bands) as g:
            image, row = m * f.T + (first + g) // f.R, (first + g) % f.R * SQUARE
            xs = _image_rows(f, f.x, image, row - 1, POINTS, f.W * f.C, f.blank)
            _transform(f, INPUTS_TO_POINTS, f.W * f.C, xs, [a(g * POINTS + i, 0) for i in range(POINTS)])
            ys = _image_rows(f, f.dy, image, row, SQUARE, f.W * f.O, f.blank)
            _transform(f, OUTPUTS_TO_POINTS, f.W * f.O, ys, [b(g * POINTS + i, 0) for i in range(POINTS)])
        with f.loop(0, POINTS) as i:
            with f.loop(0, bands) as g, f.loop(0, f.K) as k:
                n = g * f.K + k  # number of the square among those of all bands
                xs = [a(g * POINTS + i, k * SQUARE + (j - 1)) for j in range(POINTS)]
                _transform(f, INPUTS_TO_POINTS, f.C, xs, [v(j, n) for j in range(POINTS)], squares)
                ys = [b(g * POINTS + i, k * SQUARE + j) for j in range(SQUARE)]
                _transform(f, OUTPUTS_TO_POINTS, f.O, ys, [z(j, n) for j in range(POINTS)], squares)
            with f.loop(0, POINTS) as j:
                for height, o in f.blocks(rows, f.o_split, f.O):
                    for width, c in f.blocks(columns, f.c_split, f.C):
                        sums = [f.accumulators(width) for _ in range(height)]
                        with f.loop(0, bands * f.K) as n:
                            ys = [z(j, (o + p) * squares + n) for p in range(height)]
                            xs = [v(j, (c + q) * squares + n) for q in range(width)]
                            kernels.add_outer_product(f, sums, ys, xs)
                        s = ((m * POINTS + i) * POINTS + j) * f.O + o
                        kernels.add_lane_sums(f, sums, f.s, [(s + p) * f.C + c for p in range(height)])
    return f.compile()


# Where things lie in memory. A place is an array and an offset in it, in units of 16 floats.


def _pixel_rows(
    array: ir.Value, squares: Int, channels: Int, border: int = 0
) -> Callable[[Int | int, Int | int], Place]:
    """A function from (row, pixel) to its place, in rows of `squares` with `border` pixels on both sides."""
    pixels = squares * SQUARE + 2 * border
    return lambda row, pixel: (array, (pixels * row + pixel + border) * channels)


def _point_values(array: ir.Value, count: Int) -> Callable[[Int | int, Int], Place]:
    """A function from (point in its row, index) to its place; each point has `count` of these places."""
    apart = count + 1  # points at multiples of 4,096 bytes would displace each other in the cache
    return lambda point, index: (array, apart * point + index)


def _image_rows(
    f: Kernel, images: ir.Value, image: Int, first: Int, count: int, numbers: Int, outside: ir.Value
) -> list[Place]:
    """Where `count` rows of an image begin, from `first` on, each of `numbers` times 16 floats.

    An image has f.H rows; the array `outside` replaces rows above and below it.
    """
    places: list[Place] = []
    for y in (first + i for i in range(count)):
        inside = f.builder.icmp_unsigned("<", y.value, f.H.value)  # unsigned: a row before 0 is not inside
        row = f.address(images, (image * f.H + y) * numbers * TILE)
        places.append((f.builder.select(inside, row, outside), 0))
    return places


def _transform(
    f: Kernel,
    matrices: Sequence[np.ndarray],
    count: Int,
    sources: list[Place],
    targets: list[Place],
    step: Int | int = 1,
) -> None:
    """Multiply the column of sources by the matrices, one after another, and store it at the targets.

    This is done `count` times, at neighbouring sources and at targets that lie `step` apart.
    """
    with f.loop(0, count) as at:
        for part in PARTS:
            vectors = [f.load(array, (at + index) * TILE + part) for array, index in sources]
            for matrix in matrices:
                vectors = f.multiply(matrix, vectors)
            for vector, (array, index) in zip(vectors, targets, strict=True):
                f.store(vector, array, (at * step + index) * TILE + part)
