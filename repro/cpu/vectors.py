"""Loops over arrays, written in Python and compiled by LLVM for the processor at hand.

PyTorch has no fast operations for tiles (16 images side by side in memory, see
`repro.cpu.tiles`), and llvmlite includes LLVM, so no machine needs a C++ compiler.

A `Kernel` is a function of arrays and integers. Its methods append instructions:
Python calls them once, to write the kernel; the instructions run at every call of the
compiled kernel. A vector is `LANES` float32 numbers side by side in memory, which
the processor computes at once; a lane is one of its places, here for one image of a
tile. This module knows no axes: arrays are flat, and an index counts their numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partialmethod

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from torch import Tensor

Compiled = Callable[..., None]  # takes contiguous tensors, then ints, in the order of the kernel's names

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
INT, FLOAT = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


class Int:
    """An integer of the compiled kernel; operators append its arithmetic, // and % unsigned."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _instruction(self, name: str, other: Int | int) -> Int:
        return Int(self.builder, getattr(self.builder, name)(self.value, _value(other)))

    __add__ = partialmethod(_instruction, "add")
    __sub__ = partialmethod(_instruction, "sub")
    __mul__ = partialmethod(_instruction, "mul")
    __floordiv__ = partialmethod(_instruction, "udiv")
    __mod__ = partialmethod(_instruction, "urem")

    def __lt__(self, other: Int | int) -> ir.Value:
        return self.builder.icmp_signed("<", self.value, _value(other))


def _value(number: Int | int) -> ir.Value:
    return number.value if isinstance(number, Int) else ir.Constant(INT, number)


class Kernel:
    """A function under construction; its arguments, arrays first, become attributes by their names."""

    def __init__(self, arrays: str, numbers: str) -> None:
        self.module, names = ir.Module(), [*arrays.split(), *numbers.split()]
        self.types = [ir.PointerType() if name in arrays.split() else INT for name in names]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), self.types), "kernel")
        self.builder = ir.IRBuilder(function.append_basic_block())
        for name, argument in zip(names, function.args, strict=True):
            assert not hasattr(self, name), f"an argument called {name} would hide a method"
            setattr(self, name, argument if argument.type != INT else Int(self.builder, argument))
        self._fma = ir.Function(self.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32")

    @contextlib.contextmanager
    def loop(self, start: Int | int, end: Int | int, step: Int | int = 1) -> Iterator[Int]:
        """A loop over start, start + step, ... below end; its body is what the `with` block appends."""
        builder, at = self.builder, self._variable(INT)
        builder.store(_value(start), at)
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

    def blocks(self, sizes: tuple[int, ...], split: Int, end: Int) -> Iterator[tuple[int, Int]]:
        """Loops over blocks that cover 0 to end: of sizes[0] up to split, then of sizes[1], if there are two.

        Yields a block's size and start, once per size: the size is a constant of the
        code, so each size has a loop of its own.
        """
        for size, *ends in zip(sizes, (0, split), (split, end), strict=False):
            with self.loop(*ends, size) as i:
                yield size, i

    def minimum(self, a: Int, b: Int) -> Int:
        return Int(self.builder, self.builder.select(a < b, a.value, b.value))

    def address(self, array: ir.Value, index: Int, kind: ir.Type = FLOAT) -> ir.Value:
        return self.builder.gep(array, [index.value], source_etype=kind)

    def load_integer(self, array: ir.Value, index: Int) -> Int:
        return Int(self.builder, self.builder.load(self.address(array, index, INT), typ=INT))

    def load(self, array: ir.Value, index: Int) -> ir.Value:
        """The vector that begins at array[index]."""
        return self.builder.load(self.address(array, index), typ=VECTOR, align=4)

    def broadcast(self, array: ir.Value, index: Int) -> ir.Value:
        """The number array[index] in every lane."""
        number = self.builder.load(self.address(array, index), typ=FLOAT)
        first = self.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.Constant(INT, 0))
        return self._shuffle(first, None, [0] * LANES)

    def store(self, vector: ir.Value, array: ir.Value, index: Int) -> None:
        self.builder.store(vector, self.address(array, index), align=4)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, rounded once."""
        return self.builder.call(self._fma, [a, b, c])

    def where_positive(self, x: ir.Value, value: ir.Value) -> ir.Value:
        """`value` in lanes where x is positive or NaN, 0 in the others."""
        return self.builder.select(self.builder.fcmp_ordered("<=", x, ZERO), ZERO, value)

    def multiply(self, matrix: np.ndarray, vectors: list[ir.Value]) -> list[ir.Value]:
        """A constant matrix times a column of vectors; zeros of the matrix cost nothing."""
        products = []
        for row in matrix:
            total = None
            for i in np.flatnonzero(row):
                factor = ir.Constant(VECTOR, [float(np.float32(row[i]))] * LANES)
                if total is not None:
                    total = self.fma(vectors[i], factor, total)
                else:
                    total = vectors[i] if row[i] == 1 else self.builder.fmul(vectors[i], factor)
            products.append(total)
        return products

    def _variable(self, kind: ir.Type) -> ir.Value:
        """A variable on the stack, which LLVM turns into a register."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    def accumulators(self, count: int) -> list[ir.Value]:
        """`count` variables for vectors, set to zero."""
        places = [self._variable(VECTOR) for _ in range(count)]
        for place in places:
            self.builder.store(ZERO, place)
        return places

    def read(self, place: ir.Value) -> ir.Value:
        return self.builder.load(place, typ=VECTOR)

    def accumulate(self, place: ir.Value, a: ir.Value, b: ir.Value) -> None:
        """place += a * b."""
        self.builder.store(self.fma(a, b, self.read(place)), place)

    def add_lane_sums(self, places: list[ir.Value], array: ir.Value, index: Int) -> None:
        """array[index + i] += the sum of the lanes of places[i]."""
        vectors, lanes = [self.read(place) for place in places], LANES
        vectors += [ZERO] * (2 ** (len(places) - 1).bit_length() - len(places))  # up to a power of two
        while lanes > 1:  # each pass halves the lanes left per sum, and packs two vectors into one
            pairs = zip(vectors[::2], vectors[1::2], strict=True) if vectors[1:] else [(vectors[0], None)]
            vectors, lanes = [self._halve(*pair, lanes) for pair in pairs], lanes // 2
        sums = self._shuffle(vectors[0], None, range(len(places)))
        at = self.address(array, index)
        before = self.builder.load(at, typ=sums.type, align=4)
        self.builder.store(self.builder.fadd(before, sums), at, align=4)

    def _halve(self, a: ir.Value, b: ir.Value | None, lanes: int) -> ir.Value:
        """For each `lanes` numbers of a, then of b: their first half plus their second."""
        count = a.type.count * (1 if b is None else 2)
        first = [i for i in range(count) if i % lanes < lanes // 2]
        second = [i + lanes // 2 for i in first]
        return self.builder.fadd(self._shuffle(a, b, first), self._shuffle(a, b, second))

    def _shuffle(self, a: ir.Value, b: ir.Value | None, lanes: Sequence[int]) -> ir.Value:
        """The vector of these lanes, where lanes of b are numbered after those of a."""
        b = ir.Constant(a.type, ir.Undefined) if b is None else b
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(a, b, mask)

    def compile(self) -> Compiled:
        self.builder.ret_void()
        machine, module = _machine(), llvm.parse_assembly(str(self.module))
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        kinds = [ctypes.c_int64 if kind == INT else ctypes.c_void_p for kind in self.types]
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))
        function.engine = engine  # keeps it alive: freeing the engine unmaps the machine code

        def call(*arguments: Tensor | int) -> None:
            function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))

        return call


@cache
def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
