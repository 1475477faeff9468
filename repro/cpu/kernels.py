"""Kernels (compiled loops) of convolutions and batch norms with few channels, where PyTorch's are slow.

A tile is 16 images stored so that their 16 values of one pixel and channel are
neighbours in memory. A processor's vector takes 8 or 16 of these (its lanes), so it is
full however few the channels. A function that returns `Compiled` builds one kernel, for
the forward or backward pass as its docstring says. Kernels of convolutions take tables
instead of sizes and strides: pairs of an input and an output pixel that meet at a tap,
a place in the 3 x 3 or 1 x 1 weights. Products are summed in the same order on every
processor, except in sums over lanes.

Letters in formulas: m member (a network of several trained together), t tile, p output
pixel, q input pixel, k tap, o output channel, c input channel; the lane is left out.
Capitals are their counts, which are arguments of the kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

from llvmlite import ir

from repro.cpu.vectors import LANES, Compiled, Int, Kernel

TILE = 16  # images in a tile
PARTS = range(0, TILE, LANES)  # where vectors begin in 16 lanes: one with AVX-512, else two of 8
OUTPUT_BLOCK = 6  # output channels per inner loop: 12 sums in AVX2's 16 registers
WEIGHT_BLOCK = 3, 4  # output and input channels per inner loop, so 12 sums, for gradients of weights

Place = tuple[ir.Value, Int | int]  # an array and an offset in it, in units of 16 floats


def cut(count: int, most: int) -> tuple[tuple[int, ...], int]:
    """Cut `count` into few, even blocks of at most `most`: one or two sizes, and where the smaller begin."""
    blocks = -(-count // most)
    size = -(-count // blocks)
    larger = count - blocks * (size - 1)
    return ((size, size - 1) if larger < blocks else (size,)), larger * size


# Inner loops. `sums` holds accumulators: sums[o][part] of outputs, or sums[o][c] of gradients of weights.


def add_products(
    f: Kernel, sums: list, x: ir.Value, at: Int, w: ir.Value, first: Int, wo: int, wc: int
) -> None:
    """sums[o] += the sum over c of w[first + wo o + wc c] x[at + c], for one pixel of the input."""
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
    """w[rows[o] + c] += the sum of the lanes of sums[o][c]."""
    for row, places in zip(rows, sums, strict=True):
        f.add_lane_sums(places, w, row)


# Convolutions


@cache
def gather(sizes: tuple[int, ...], wo: int, wc: int) -> Compiled:
    """A convolution forward; or its input's gradient y, from its output's gradient x and swapped tables.

    y[m, t, p, o] = the sum over c, and over pairs (q, k) of p, of w[m, o, k, c] x[m, t, q, c]. The
    pairs of p are source[i], tap[i] for first[p] <= i < first[p + 1]. Output channels come in blocks
    of `sizes`, the smaller ones from `split` on (`cut`). In w, neighbouring output channels lie `wo`
    apart, input channels `wc`, members wm, and taps wk.
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
    """The gradient of a convolution's weights, from its input x and its output's gradient y.

    w[m, o, k, c] += the sum over pairs (p, q) of a group, and over lanes, of y[m, p, o] x[m, q, c].
    The pairs of group g are target[i], source[i] for first[g] <= i < first[g + 1], all with tap
    k = tap[g]. Here p and q count the P and Q pixels of all tiles of a member. Output channels
    come in blocks of `rows`, input channels in blocks of `columns`, each with its split (`cut`).
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


# Batch norms. Here p counts pixels through all tiles of a member, and k is a number per channel, not a tap.


@contextlib.contextmanager
def _every_vector(f: Kernel) -> Iterator[tuple[Int, Int]]:
    """A loop over all (m, p, c): yields the offsets of [m, p, c] in tiles and of [m, c] in channels."""
    with f.loop(0, f.M) as m, f.loop(0, f.P) as p, f.loop(0, f.C) as c:
        yield ((m * f.P + p) * f.C + c) * TILE, m * f.C + c


def _before_relu(
    f: Kernel, at: Int, x: ir.Value, a: ir.Value, b: ir.Value, relu: bool, residual: bool
) -> ir.Value:
    """The gradient of ReLU's input: dy where y is positive, else 0; without ReLU, dy.

    Without a residual, y's sign is that of a x + b, which is cheaper than reading y.
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
    """Forward, lane by lane: s[0, m, c] += sum over p of v = x[m, p, c] - k[m, c]; s[1, m, c] that of v v."""
    f = Kernel("s x k", "M P C")
    with _every_vector(f) as (at, channel):
        k = f.broadcast(f.k, channel)
        for part in PARTS:
            v = f.builder.fsub(f.load(f.x, at + part), k)
            _add_moments(f, v, v, channel, part)
    return f.compile()


@cache
def affine(relu: bool, residual: bool) -> Compiled:
    """Forward: y[m, p, c] = a[m, c] x[m, p, c] + b[m, c] (+ r[m, p, c] if `residual`); ReLU if `relu`."""
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
    """Backward: sums for the gradients of bias, weight and input. g is the gradient of ReLU's input.

    In each lane, s[0, m, c] += the sum over p of g; s[1, m, c] that of g (x[m, p, c] - k[m, c]);
    a and b are those of `affine`.
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
    """Backward: dx[m, p, c] = a[m, c] g + c[m, c] (x[m, p, c] - k[m, c]) + d[m, c], and dr[m, p, c] = g.

    dx and dr are gradients of the input and of the residual, dr only if `residual`.
    g, a and b are those of `gradient_sums`.
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
