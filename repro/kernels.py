"""The loops of convolutions and batch norms: what PyTorch has is slow for few channels.

Images lie in tiles of 16 (`repro.tiles`), so a vector holds the same number of
each of several images, and no lane is idle however few channels there are. A
kernel knows nothing of shapes: which pixels meet in which weight it reads from a
table. Products are summed in one order on every processor, but over lanes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

from llvmlite import ir

from repro.loops import LANES, Compiled, Int, Kernel

TILE = 16  # images
PARTS = range(0, TILE, LANES)  # of a tile, vectors
OUTPUTS = 6  # of a convolution, whose sums for a tile stay in a core's registers
WEIGHTS = 3, 4  # outputs and inputs, the sums of whose weights' gradients do


def cut(count: int, most: int) -> tuple[tuple[int, ...], int]:
    """A count as blocks of at most so many: their one or two sizes, and how much the larger ones take."""
    blocks = -(-count // most)
    size = -(-count // blocks)
    larger = count - blocks * (size - 1)
    return ((size, size - 1) if larger < blocks else (size,)), larger * size


Place = tuple[ir.Value, Int]  # an array and the index of a number of tiles in it


def weigh(f: Kernel, sums: list, x: ir.Value, at: Int, w: ir.Value, first: Int, wo: int, wc: int) -> None:
    """sums[o] += the sum over inputs c of w[first + wo o + wc c] x[at + c], for one pixel."""
    with f.loop(0, f.C) as c:
        parts = [f.vector(x, (at + c) * TILE + part) for part in PARTS]
        for o, places in enumerate(sums):
            weight = f.everywhere(w, first + c * wc + wo * o)
            for part, place in zip(parts, places, strict=True):
                f.add_product(part, weight, place)


def put_sums(f: Kernel, sums: list, y: ir.Value, at: Int) -> None:
    for o, places in enumerate(sums):
        for part, place in zip(PARTS, places, strict=True):
            f.put(f.value(place), y, (at + o) * TILE + part)


def meet(f: Kernel, sums: list, ys: list[Place], xs: list[Place]) -> None:
    """sums[o][c] += y[o] x[c], lane by lane."""
    for part in PARTS:
        rows = [f.vector(array, at * TILE + part) for array, at in ys]
        for c, (array, at) in enumerate(xs):
            column = f.vector(array, at * TILE + part)
            for o, row in enumerate(rows):
                f.add_product(column, row, sums[o][c])


def add_totals(f: Kernel, sums: list, w: ir.Value, rows: list[Int]) -> None:
    """w[rows[o] + c] += the lanes of sums[o][c]."""
    for row, places in zip(rows, sums, strict=True):
        f.add_totals(places, w, row)


@cache
def gather(sizes: tuple[int, ...], wo: int, wc: int) -> Compiled:
    """y[m, t, p, o] = sum over the pairs of p, source pixel q and tap k, and c: w[m, o, k, c] x[m, t, q, c].

    The pairs of pixel p are the entries first[p] to first[p + 1] of `source` and
    `tap`. Numbers: members, tiles, outputs, how many of them are in blocks of the
    first of `sizes`, inputs, pixels of y and x, steps in w from member to member and
    tap to tap. `wo` and `wc` are its steps from output to output and input to input.
    """
    f = Kernel("y x w first source tap", "M T O split C P Q wm wk")
    with f.loop(0, f.M) as m, f.loop(0, f.T) as t, f.loop(0, f.P) as p:
        image = m * f.T + t
        for size, o in f.blocks(sizes, f.split, f.O):
            sums = [f.zeros(len(PARTS)) for _ in range(size)]
            with f.loop(f.integer(f.first, p), f.integer(f.first, p + 1)) as pair:
                x = (image * f.Q + f.integer(f.source, pair)) * f.C
                w = m * f.wm + f.integer(f.tap, pair) * f.wk + o * wo
                weigh(f, sums, f.x, x, f.w, w, wo, wc)
            put_sums(f, sums, f.y, (image * f.P + p) * f.O + o)
    return f.compiled()


@cache
def correlate(rows: tuple[int, ...], columns: tuple[int, ...]) -> Compiled:
    """w[m, o, k, c] += sum over the pairs of a group, pixels p and q, of y[m, p, o] x[m, q, c].

    Group g has the entries first[g] to first[g + 1] of `target` (p) and `source`
    (q), pixels of all tiles, and all of them the same tap[g] (k). Numbers: members,
    outputs, how many of them are in blocks of the first of `rows`, the same of inputs
    and `columns`, groups, pixels of y and x, taps.
    """
    f = Kernel("w y x first target source tap", "M O o_split C c_split G P Q K")
    with f.loop(0, f.M) as m, f.loop(0, f.G) as g:
        for height, o in f.blocks(rows, f.o_split, f.O):
            for width, c in f.blocks(columns, f.c_split, f.C):
                sums = [f.zeros(width) for _ in range(height)]
                with f.loop(f.integer(f.first, g), f.integer(f.first, g + 1)) as pair:
                    y = (m * f.P + f.integer(f.target, pair)) * f.O + o
                    x = (m * f.Q + f.integer(f.source, pair)) * f.C + c
                    meet(f, sums, [(f.y, y + i) for i in range(height)], [(f.x, x + j) for j in range(width)])
                k = f.integer(f.tap, g)
                add_totals(f, sums, f.w, [((m * f.O + o + i) * f.K + k) * f.C + c for i in range(height)])
    return f.compiled()


@contextlib.contextmanager
def _every_vector(f: Kernel) -> Iterator[tuple[Int, Int]]:
    """Where each vector of arrays [m, p, c, lanes] begins, and the number of its member's channel."""
    with f.loop(0, f.M) as m, f.loop(0, f.P) as p, f.loop(0, f.C) as c:
        yield ((m * f.P + p) * f.C + c) * TILE, m * f.C + c


def _slope(f: Kernel, at: Int, x: ir.Value, a: ir.Value, b: ir.Value, relu: bool, residual: bool) -> ir.Value:
    """dy there, or 0 where `relu` made y zero: y is read if it has a residual, else computed anew from x."""
    dy = f.vector(f.dy, at)
    if not relu:
        return dy
    return f.positive(f.vector(f.y, at) if residual else f.product(x, a, b), dy)


def _accumulate(f: Kernel, g: ir.Value, v: ir.Value, channel: Int, part: int) -> None:
    """Adds g and g * v to the sums of a channel, s[0] and s[1]."""
    first, second = channel * TILE + part, (f.M * f.C + channel) * TILE + part
    f.put(f.builder.fadd(f.vector(f.s, first), g), f.s, first)
    f.put(f.product(g, v, f.vector(f.s, second)), f.s, second)


@cache
def moments() -> Compiled:
    """In each lane, s[0, m, c] += sum over pixels of v = x[m, p, c] - k[m, c]; s[1, m, c] that of v * v."""
    f = Kernel("s x k", "M P C")
    with _every_vector(f) as (at, channel):
        k = f.everywhere(f.k, channel)
        for part in PARTS:
            v = f.builder.fsub(f.vector(f.x, at + part), k)
            _accumulate(f, v, v, channel, part)
    return f.compiled()


@cache
def affine(relu: bool, residual: bool) -> Compiled:
    """y[m, p, c] = a[m, c] x[m, p, c] + b[m, c], plus r[m, p, c] and made positive where that is asked."""
    f = Kernel("y x r a b", "M P C")
    with _every_vector(f) as (at, channel):
        a, b = f.everywhere(f.a, channel), f.everywhere(f.b, channel)
        for part in PARTS:
            y = f.product(f.vector(f.x, at + part), a, b)
            if residual:
                y = f.builder.fadd(y, f.vector(f.r, at + part))
            f.put(f.positive(y, y) if relu else y, f.y, at + part)
    return f.compiled()


@cache
def slopes(relu: bool, residual: bool) -> Compiled:
    """In each lane, s[0, m, c] += sum over pixels of g, and s[1, m, c] that of g * (x[m, p, c] - k[m, c]).

    The slope g is that of `_slope`; a and b are those of `affine`.
    """
    f = Kernel("s dy y x k a b", "M P C")
    with _every_vector(f) as (at, channel):
        k, a, b = (f.everywhere(array, channel) for array in (f.k, f.a, f.b))
        for part in PARTS:
            x = f.vector(f.x, at + part)
            g = _slope(f, at + part, x, a, b, relu, residual)
            _accumulate(f, g, f.builder.fsub(x, k), channel, part)
    return f.compiled()


@cache
def affine_slopes(relu: bool, residual: bool) -> Compiled:
    """dx[m, p, c] = a[m, c] g + c[m, c] (x[m, p, c] - k[m, c]) + d[m, c] and dr = g, as in `slopes`."""
    f = Kernel("dx dr dy y x k a b c d", "M P C")
    with _every_vector(f) as (at, channel):
        k, a, b, c, d = (f.everywhere(array, channel) for array in (f.k, f.a, f.b, f.c, f.d))
        for part in PARTS:
            x = f.vector(f.x, at + part)
            g = _slope(f, at + part, x, a, b, relu, residual)
            f.put(f.product(g, a, f.product(f.builder.fsub(x, k), c, d)), f.dx, at + part)
            if residual:
                f.put(g, f.dr, at + part)
    return f.compiled()
