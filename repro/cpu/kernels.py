"""Loops of convolutions and batch norms, for few channels, where PyTorch's own are slow.

Images lie in tiles of 16 (`repro.cpu.tiles`): a vector holds the same number of
each of several images, so no lane is idle however few channels there are. The
kernels of convolutions know nothing of sizes and strides: tables say which
pixels meet in which tap, a place of the 3 x 3 or 1 x 1 weights. Products are
summed in one order on every processor, but for sums over lanes.

Letters in formulas: m member, t tile, p pixel of an output, q pixel of an input,
k tap, o output channel, c input channel. The lanes are left out. Capitals are
their counts, and arguments of the kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

from llvmlite import ir

from repro.cpu.vectors import LANES, Compiled, Int, Kernel

TILE = 16  # images
PARTS = range(0, TILE, LANES)  # where the vectors of a tile begin: AVX2's hold half of it
OUTPUT_BLOCK = 6  # output channels of an inner loop: with AVX2 12 sums, of 16 registers
WEIGHT_BLOCK = 3, 4  # output and input channels of an inner loop, so 12 sums, for gradients of weights

Place = tuple[ir.Value, Int | int]  # an array, and where in it, counted in 16 floats


def cut(count: int, most: int) -> tuple[tuple[int, ...], int]:
    """`count` as few and even blocks of at most `most`: their one or two sizes; where the smaller begin."""
    blocks = -(-count // most)
    size = -(-count // blocks)
    larger = count - blocks * (size - 1)
    return ((size, size - 1) if larger < blocks else (size,)), larger * size


# Sums, with an accumulator for each. For an output: sums[o][part]; for a gradient of weights: sums[o][c].


def add_products(
    f: Kernel, sums: list, x: ir.Value, at: Int, w: ir.Value, first: Int, wo: int, wc: int
) -> None:
    """sums[o] += the sum over c of w[first + wo o + wc c] x[at + c]: one pixel of the input."""
    with f.loop(0, f.C) as c:
        parts = [f.load(x, (at + c) * TILE + part) for part in PARTS]
        for o, places in enumerate(sums):
            weight = f.broadcast(w, first + c * wc + wo * o)
            for part, place in zip(parts, places, strict=True):
                f.accumulate(place, part, weight)


def store_sums(f: Kernel, sums: list, y: ir.Value, at: Int) -> None:
    """y[at + o] = sums[o]."""
    for o, places in enumerate(sums):
        for part, place in zip(PARTS, places, strict=True):
            f.store(f.read(place), y, (at + o) * TILE + part)


def add_outer_product(f: Kernel, sums: list, ys: list[Place], xs: list[Place]) -> None:
    """sums[o][c] += y[o] x[c], lane by lane."""
    for part in PARTS:
        rows = [f.load(array, at * TILE + part) for array, at in ys]
        for c, (array, at) in enumerate(xs):
            column = f.load(array, at * TILE + part)
            for o, row in enumerate(rows):
                f.accumulate(sums[o][c], column, row)


def add_lane_sums(f: Kernel, sums: list, w: ir.Value, rows: list[Int]) -> None:
    """w[rows[o] + c] += the lanes of sums[o][c]."""
    for row, places in zip(rows, sums, strict=True):
        f.add_lane_sums(places, w, row)


# Convolutions


@cache
def gather(sizes: tuple[int, ...], wo: int, wc: int) -> Compiled:
    """y[m, t, p, o] = the sum over c, and over the pairs (q, k) of pixel p, of w[m, o, k, c] x[m, t, q, c].

    The pairs of p are source[i], tap[i] for i from first[p] to first[p + 1]. Output
    channels come in blocks of `sizes`, the smaller ones from `split` on (`cut`). In
    w, `wo` lies between output channels, `wc` between input channels, wm between
    members and wk between taps.
    """
    f = Kernel("y x w first source tap", "M T O split C P Q wm wk")
    with f.loop(0, f.M) as m, f.loop(0, f.T) as t, f.loop(0, f.P) as p:
        image = m * f.T + t
        for size, o in f.blocks(sizes, f.split, f.O):
            sums = [f.accumulators(len(PARTS)) for _ in range(size)]
            with f.loop(f.load_integer(f.first, p), f.load_integer(f.first, p + 1)) as pair:
                x = (image * f.Q + f.load_integer(f.source, pair)) * f.C
                w = m * f.wm + f.load_integer(f.tap, pair) * f.wk + o * wo
                add_products(f, sums, f.x, x, f.w, w, wo, wc)
            store_sums(f, sums, f.y, (image * f.P + p) * f.O + o)
    return f.compile()


@cache
def correlate(rows: tuple[int, ...], columns: tuple[int, ...]) -> Compiled:
    """w[m, o, k, c] += the sum over the pairs (p, q) of a group, and over lanes, of y[m, p, o] x[m, q, c].

    All pairs of group g have the tap k = tap[g]. They are target[i], source[i] for i
    from first[g] to first[g + 1], and count pixels through all tiles: there are P of
    y and Q of x in a member. Output channels come in blocks of `rows`, input
    channels in blocks of `columns`, each with its split (`cut`).
    """
    f = Kernel("w y x first target source tap", "M O o_split C c_split G P Q K")
    with f.loop(0, f.M) as m, f.loop(0, f.G) as g:
        for height, o in f.blocks(rows, f.o_split, f.O):
            for width, c in f.blocks(columns, f.c_split, f.C):
                sums = [f.accumulators(width) for _ in range(height)]
                with f.loop(f.load_integer(f.first, g), f.load_integer(f.first, g + 1)) as pair:
                    y = (m * f.P + f.load_integer(f.target, pair)) * f.O + o
                    x = (m * f.Q + f.load_integer(f.source, pair)) * f.C + c
                    ys, xs = [(f.y, y + i) for i in range(height)], [(f.x, x + j) for j in range(width)]
                    add_outer_product(f, sums, ys, xs)
                k = f.load_integer(f.tap, g)
                add_lane_sums(f, sums, f.w, [((m * f.O + o + i) * f.K + k) * f.C + c for i in range(height)])
    return f.compile()


# Batch norms. Here p counts the pixels of all tiles of a member.


@contextlib.contextmanager
def _every_vector(f: Kernel) -> Iterator[tuple[Int, Int]]:
    """A loop over all (m, p, c): where [m, p, c] begins in tiles, and [m, c] in an array of channels."""
    with f.loop(0, f.M) as m, f.loop(0, f.P) as p, f.loop(0, f.C) as c:
        yield ((m * f.P + p) * f.C + c) * TILE, m * f.C + c


def _before_relu(
    f: Kernel, at: Int, x: ir.Value, a: ir.Value, b: ir.Value, relu: bool, residual: bool
) -> ir.Value:
    """The gradient before ReLU: dy where y is positive, else 0.

    Without a residual y's sign is found from x, which is cheaper than reading y.
    """
    dy = f.load(f.dy, at)
    if not relu:
        return dy
    return f.where_positive(f.load(f.y, at) if residual else f.fma(x, a, b), dy)


def _add_moments(f: Kernel, g: ir.Value, v: ir.Value, channel: Int, part: int) -> None:
    """s[0, m, c] += g and s[1, m, c] += g v, lane by lane."""
    first, second = channel * TILE + part, (f.M * f.C + channel) * TILE + part
    f.store(f.builder.fadd(f.load(f.s, first), g), f.s, first)
    f.store(f.fma(g, v, f.load(f.s, second)), f.s, second)


@cache
def moments() -> Compiled:
    """In each lane, s[0, m, c] += the sum over p of v = x[m, p, c] - k[m, c], and s[1, m, c] that of v v."""
    f = Kernel("s x k", "M P C")
    with _every_vector(f) as (at, channel):
        k = f.broadcast(f.k, channel)
        for part in PARTS:
            v = f.builder.fsub(f.load(f.x, at + part), k)
            _add_moments(f, v, v, channel, part)
    return f.compile()


@cache
def affine(relu: bool, residual: bool) -> Compiled:
    """y[m, p, c] = a[m, c] x[m, p, c] + b[m, c], plus the residual r[m, p, c], then ReLU, if asked for."""
    f = Kernel("y x r a b", "M P C")
    with _every_vector(f) as (at, channel):
        a, b = f.broadcast(f.a, channel), f.broadcast(f.b, channel)
        for part in PARTS:
            y = f.fma(f.load(f.x, at + part), a, b)
            if residual:
                y = f.builder.fadd(y, f.load(f.r, at + part))
            f.store(f.where_positive(y, y) if relu else y, f.y, at + part)
    return f.compile()


@cache
def gradient_sums(relu: bool, residual: bool) -> Compiled:
    """In each lane, s[0, m, c] += the sum over p of g, and s[1, m, c] that of g (x[m, p, c] - k[m, c]).

    g is the gradient before ReLU; a and b are those of `affine`.
    """
    f = Kernel("s dy y x k a b", "M P C")
    with _every_vector(f) as (at, channel):
        k, a, b = (f.broadcast(array, channel) for array in (f.k, f.a, f.b))
        for part in PARTS:
            x = f.load(f.x, at + part)
            g = _before_relu(f, at + part, x, a, b, relu, residual)
            _add_moments(f, g, f.builder.fsub(x, k), channel, part)
    return f.compile()


@cache
def affine_gradient(relu: bool, residual: bool) -> Compiled:
    """dx[m, p, c] = a[m, c] g + c[m, c] (x[m, p, c] - k[m, c]) + d[m, c], and dr[m, p, c] = g.

    g, a and b are those of `gradient_sums`; dr is written if there is a residual.
    """
    f = Kernel("dx dr dy y x k a b c d", "M P C")
    with _every_vector(f) as (at, channel):
        k, a, b, c, d = (f.broadcast(array, channel) for array in (f.k, f.a, f.b, f.c, f.d))
        for part in PARTS:
            x = f.load(f.x, at + part)
            g = _before_relu(f, at + part, x, a, b, relu, residual)
            f.store(f.fma(g, a, f.fma(f.builder.fsub(x, k), c, d)), f.dx, at + part)
            if residual:
                f.store(g, f.dr, at + part)
    return f.compile()
