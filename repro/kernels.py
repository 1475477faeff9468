"""Loops of a convolution, compiled for the processor at hand: what PyTorch has is slow for few channels.

Images lie in tiles of 16 (`repro.tiles`), so a vector holds the same number of
each of several images, and no lane is idle however few channels there are. A
kernel knows nothing of shapes: which pixels meet in which weight it reads from a
table. Products are summed in one order on every processor.

Written for LLVM, which llvmlite brings along, so no machine needs a compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache

from llvmlite import binding as llvm
from llvmlite import ir

TILE = 16  # images, as in `repro.tiles`
LANES = 8  # of a vector; two of them are a tile
PARTS = range(0, TILE, LANES)

INT, FLOAT = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


class Int:
    """A number of the compiled function, with the arithmetic that addresses take."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _with(self, other: Int | int) -> ir.Value:
        return other.value if isinstance(other, Int) else ir.Constant(INT, other)

    def __add__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.add(self.value, self._with(other)))

    def __sub__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.sub(self.value, self._with(other)))

    def __mul__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.mul(self.value, self._with(other)))

    def __lt__(self, other: Int) -> ir.Value:
        return self.builder.icmp_signed("<", self.value, other.value)


class Kernel:
    """A function of arrays and numbers, being written."""

    def __init__(self, arrays: str, numbers: str) -> None:
        self.module, names = ir.Module(), [*arrays.split(), *numbers.split()]
        self.types = [ir.PointerType() if name in arrays.split() else INT for name in names]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), self.types), "kernel")
        self.builder = ir.IRBuilder(function.append_basic_block())
        for name, argument in zip(names, function.args, strict=True):
            setattr(self, name, argument if argument.type != INT else Int(self.builder, argument))
        self.fma = ir.Function(self.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32")
        total = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        self.total = ir.Function(self.module, total, f"llvm.vector.reduce.fadd.v{LANES}f32")

    def number(self, value: int) -> Int:
        return Int(self.builder, ir.Constant(INT, value))

    def variable(self, kind: ir.Type) -> ir.Value:
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    @contextlib.contextmanager
    def loop(self, start: Int | int, end: Int, step: int = 1) -> Iterator[Int]:
        builder, at = self.builder, self.variable(INT)
        start = start if isinstance(start, Int) else self.number(start)
        builder.store(start.value, at)
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        i = Int(builder, builder.load(at, typ=INT))
        builder.cbranch(i < end, body, after)
        builder.position_at_end(body)
        yield i
        builder.store((i + step).value, at)
        builder.branch(head)
        builder.position_at_end(after)

    def address(self, array: ir.Value, index: Int, kind: ir.Type = FLOAT) -> ir.Value:
        return self.builder.gep(array, [index.value], source_etype=kind)

    def integer(self, array: ir.Value, index: Int) -> Int:
        return Int(self.builder, self.builder.load(self.address(array, index, INT), typ=INT))

    def vector(self, array: ir.Value, index: Int) -> ir.Value:
        return self.builder.load(self.address(array, index), typ=VECTOR, align=4)

    def everywhere(self, array: ir.Value, index: Int) -> ir.Value:
        """One number in all lanes."""
        one = self.builder.load(self.address(array, index), typ=FLOAT)
        first = self.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), one, ir.Constant(INT, 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), lanes)

    def zeros(self, count: int) -> list[ir.Value]:
        """So many vectors to sum in, which stay in registers."""
        sums = [self.variable(VECTOR) for _ in range(count)]
        for place in sums:
            self.builder.store(ZERO, place)
        return sums

    def product(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c."""
        return self.builder.call(self.fma, [a, b, c])

    def add_product(self, a: ir.Value, b: ir.Value, place: ir.Value) -> None:
        self.builder.store(self.product(a, b, self.value(place)), place)

    def value(self, place: ir.Value) -> ir.Value:
        return self.builder.load(place, typ=VECTOR)

    def slope(self, at: Int, relu: bool) -> ir.Value:
        """dy there, 0 where y is."""
        dy = self.vector(self.dy, at)
        return self.positive(self.vector(self.y, at), dy) if relu else dy

    def accumulate(self, g: ir.Value, v: ir.Value, channel: Int, part: int) -> None:
        """Adds g and g * v to the sums of a channel."""
        first, second = channel * TILE + part, (self.M * self.C + channel) * TILE + part
        self.put(self.builder.fadd(self.vector(self.s, first), g), self.s, first)
        self.put(self.product(g, v, self.vector(self.s, second)), self.s, second)

    def put(self, vector: ir.Value, array: ir.Value, index: Int) -> None:
        self.builder.store(vector, self.address(array, index), align=4)

    def positive(self, x: ir.Value, value: ir.Value) -> ir.Value:
        """`value` where x is above zero or no number, 0 elsewhere."""
        return self.builder.select(self.builder.fcmp_ordered("<=", x, ZERO), ZERO, value)

    def add_total(self, place: ir.Value, array: ir.Value, index: Int) -> None:
        """The sum of a vector's lanes, to a number in memory."""
        vector, at = self.value(place), self.address(array, index)
        total = self.builder.call(
            self.total, [self.builder.load(at, typ=FLOAT), vector], fastmath=("reassoc",)
        )
        self.builder.store(total, at)

    def compiled(self) -> ctypes._CFuncPtr:
        self.builder.ret_void()
        machine, module = _machine(), llvm.parse_assembly(str(self.module))
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        kinds = [ctypes.c_int64 if kind == INT else ctypes.c_void_p for kind in self.types]
        call = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))
        call.engine = engine  # whose end would be that of the code
        return call


@cache
def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def cut(count: int, most: int) -> tuple[tuple[int, ...], int]:
    """A count as blocks of at most so many: their one or two sizes, and how much the larger ones take."""
    blocks = -(-count // most)
    size = -(-count // blocks)
    larger = count - blocks * (size - 1)
    return ((size, size - 1) if larger < blocks else (size,)), larger * size


@cache
def gather(sizes: tuple[int, ...], wo: int, wc: int) -> ctypes._CFuncPtr:
    """y[m, t, p, o] = sum over the pairs of p, source pixel q and tap k, and c: w[m, o, k, c] x[m, t, q, c].

    The pairs of pixel p are the entries first[p] to first[p + 1] of `source` and
    `tap`. Numbers: members, tiles, outputs, how many of them are in blocks of the
    first of `sizes`, inputs, pixels of y and x, steps in w from member to member and
    tap to tap. `wo` and `wc` are its steps from output to output and input to input.
    """
    f = Kernel("y x w first source tap", "M T O split C P Q wm wk")

    def outputs(image: Int, m: Int, p: Int, o: Int, count: int) -> None:
        sums = [f.zeros(len(PARTS)) for _ in range(count)]
        with f.loop(f.integer(f.first, p), f.integer(f.first, p + 1)) as pair:
            x = (image * f.Q + f.integer(f.source, pair)) * f.C
            w = m * f.wm + f.integer(f.tap, pair) * f.wk + o * wo
            with f.loop(0, f.C) as c:
                parts = [f.vector(f.x, (x + c) * TILE + part) for part in PARTS]
                for i in range(count):
                    weight = f.everywhere(f.w, w + c * wc + wo * i)
                    for part, place in zip(parts, sums[i], strict=True):
                        f.add_product(part, weight, place)
        y = (image * f.P + p) * f.O + o
        for i in range(count):
            for part, place in zip(PARTS, sums[i], strict=True):
                f.put(f.value(place), f.y, (y + i) * TILE + part)

    with f.loop(0, f.M) as m, f.loop(0, f.T) as t, f.loop(0, f.P) as p:
        for size, start, end in zip(sizes, (0, f.split), (f.split, f.O), strict=False):
            with f.loop(start, end, size) as o:
                outputs(m * f.T + t, m, p, o, size)
    return f.compiled()


@cache
def correlate(rows: tuple[int, ...], columns: tuple[int, ...]) -> ctypes._CFuncPtr:
    """w[m, o, k, c] += sum over the pairs of a group, pixels p and q, of y[m, p, o] x[m, q, c].

    Group g has the entries first[g] to first[g + 1] of `target` (p) and `source`
    (q), pixels of all tiles, and all of them the same tap[g] (k). Numbers: members,
    outputs, how many of them are in blocks of the first of `rows`, the same of inputs
    and `columns`, groups, pixels of y and x, taps.
    """
    f = Kernel("w y x first target source tap", "M O o_split C c_split G P Q K")

    def weights(m: Int, g: Int, o: Int, c: Int, height: int, width: int) -> None:
        sums = [f.zeros(width) for _ in range(height)]
        with f.loop(f.integer(f.first, g), f.integer(f.first, g + 1)) as pair:
            y = ((m * f.P + f.integer(f.target, pair)) * f.O + o) * TILE
            x = ((m * f.Q + f.integer(f.source, pair)) * f.C + c) * TILE
            for part in PARTS:
                ys = [f.vector(f.y, y + (i * TILE + part)) for i in range(height)]
                for j in range(width):
                    xs = f.vector(f.x, x + (j * TILE + part))
                    for i in range(height):
                        f.add_product(xs, ys[i], sums[i][j])
        for i in range(height):
            w = ((m * f.O + o + i) * f.K + f.integer(f.tap, g)) * f.C + c
            for j in range(width):
                f.add_total(sums[i][j], f.w, w + j)

    with f.loop(0, f.M) as m, f.loop(0, f.G) as g:
        for height, *o_ends in zip(rows, (0, f.o_split), (f.o_split, f.O), strict=False):
            for width, *c_ends in zip(columns, (0, f.c_split), (f.c_split, f.C), strict=False):
                with f.loop(*o_ends, height) as o, f.loop(*c_ends, width) as c:
                    weights(m, g, o, c, height, width)
    return f.compiled()


@contextlib.contextmanager
def _every_vector(f: Kernel) -> Iterator[tuple[Int, Int]]:
    """Where each vector of arrays [m, p, c, lanes] begins, and the number of its member's channel."""
    with f.loop(0, f.M) as m, f.loop(0, f.P) as p, f.loop(0, f.C) as c:
        yield ((m * f.P + p) * f.C + c) * TILE, m * f.C + c


@cache
def moments() -> ctypes._CFuncPtr:
    """In each lane, s[0, m, c] += sum over pixels of v = x[m, p, c] - k[m, c]; s[1, m, c] that of v * v."""
    f = Kernel("s x k", "M P C")
    with _every_vector(f) as (at, channel):
        k = f.everywhere(f.k, channel)
        for part in PARTS:
            v = f.builder.fsub(f.vector(f.x, at + part), k)
            f.accumulate(v, v, channel, part)
    return f.compiled()


@cache
def affine(relu: bool, residual: bool) -> ctypes._CFuncPtr:
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
def slopes(relu: bool) -> ctypes._CFuncPtr:
    """In each lane, s[0, m, c] += sum over pixels of g, and s[1, m, c] that of g * (x[m, p, c] - k[m, c]).

    The slope g is dy[m, p, c], or 0 where `relu` made y zero.
    """
    f = Kernel("s dy y x k", "M P C")
    with _every_vector(f) as (at, channel):
        k = f.everywhere(f.k, channel)
        for part in PARTS:
            g = f.slope(at + part, relu)
            f.accumulate(g, f.builder.fsub(f.vector(f.x, at + part), k), channel, part)
    return f.compiled()


@cache
def affine_slopes(relu: bool, residual: bool) -> ctypes._CFuncPtr:
    """dx[m, p, c] = a[m, c] g + b[m, c] (x[m, p, c] - k[m, c]) + d[m, c] and dr = g, as in `slopes`."""
    f = Kernel("dx dr dy y x k a b d", "M P C")
    with _every_vector(f) as (at, channel):
        k, a, b, d = (f.everywhere(array, channel) for array in (f.k, f.a, f.b, f.d))
        for part in PARTS:
            g = f.slope(at + part, relu)
            v = f.builder.fsub(f.vector(f.x, at + part), k)
            f.put(f.product(g, a, f.product(v, b, d)), f.dx, at + part)
            if residual:
                f.put(g, f.dr, at + part)
    return f.compiled()
