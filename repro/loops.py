"""Loops over arrays in memory, written for LLVM and compiled for the processor at hand.

llvmlite brings LLVM along, so no machine needs a compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from torch import Tensor

Compiled = Callable[..., None]  # of tensors, whose memory it takes, and of whole numbers

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8  # of a vector
INT, FLOAT = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


class Int:
    """A number of the compiled function, with the arithmetic that addresses take."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.add(self.value, _value(other)))

    def __mul__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.mul(self.value, _value(other)))

    def __floordiv__(self, other: Int) -> Int:
        return Int(self.builder, self.builder.udiv(self.value, other.value))

    def __mod__(self, other: Int) -> Int:
        return Int(self.builder, self.builder.urem(self.value, other.value))

    def __sub__(self, other: Int) -> Int:
        return Int(self.builder, self.builder.sub(self.value, other.value))

    def __lt__(self, other: Int | int) -> ir.Value:
        return self.builder.icmp_signed("<", self.value, _value(other))


def _value(number: Int | int) -> ir.Value:
    return number.value if isinstance(number, Int) else ir.Constant(INT, number)


class Kernel:
    """A function of arrays and numbers, being written."""

    def __init__(self, arrays: str, numbers: str) -> None:
        self.module, names = ir.Module(), [*arrays.split(), *numbers.split()]
        self.types = [ir.PointerType() if name in arrays.split() else INT for name in names]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), self.types), "kernel")
        self.builder = ir.IRBuilder(function.append_basic_block())
        for name, argument in zip(names, function.args, strict=True):
            assert not hasattr(self, name), f"an argument called {name} would hide a method"
            setattr(self, name, argument if argument.type != INT else Int(self.builder, argument))
        self.fma = ir.Function(self.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32")

    def variable(self, kind: ir.Type) -> ir.Value:
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    @contextlib.contextmanager
    def loop(self, start: Int | int, end: Int | int, step: Int | int = 1) -> Iterator[Int]:
        builder, at = self.builder, self.variable(INT)
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
        return self._lanes(first, None, [0] * LANES)

    def least(self, a: Int, b: Int) -> Int:
        return Int(self.builder, self.builder.select(a < b, a.value, b.value))

    def blocks(self, sizes: tuple[int, ...], split: Int, end: Int) -> Iterator[tuple[int, Int]]:
        """Counts up to `end`, in blocks of the first of `sizes` up to `split`, then of the second."""
        for size, *ends in zip(sizes, (0, split), (split, end), strict=False):
            with self.loop(*ends, size) as i:
                yield size, i

    def zeros(self, count: int) -> list[ir.Value]:
        """So many vectors to sum in, which stay in registers."""
        sums = [self.variable(VECTOR) for _ in range(count)]
        for place in sums:
            self.builder.store(ZERO, place)
        return sums

    def linear(self, matrix: np.ndarray, vectors: list[ir.Value]) -> list[ir.Value]:
        """The matrix times a column of vectors."""
        results = []
        for row in matrix:
            total = None
            for i in np.flatnonzero(row):
                factor = ir.Constant(VECTOR, [float(np.float32(row[i]))] * LANES)
                if total is not None:
                    total = self.product(vectors[i], factor, total)
                else:
                    total = vectors[i] if row[i] == 1 else self.builder.fmul(vectors[i], factor)
            results.append(total)
        return results

    def product(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c."""
        return self.builder.call(self.fma, [a, b, c])

    def add_product(self, a: ir.Value, b: ir.Value, place: ir.Value) -> None:
        self.builder.store(self.product(a, b, self.value(place)), place)

    def value(self, place: ir.Value) -> ir.Value:
        return self.builder.load(place, typ=VECTOR)

    def put(self, vector: ir.Value, array: ir.Value, index: Int) -> None:
        self.builder.store(vector, self.address(array, index), align=4)

    def positive(self, x: ir.Value, value: ir.Value) -> ir.Value:
        """`value` where x is above zero or no number, 0 elsewhere."""
        return self.builder.select(self.builder.fcmp_ordered("<=", x, ZERO), ZERO, value)

    def add_totals(self, places: list[ir.Value], array: ir.Value, index: Int) -> None:
        """The sum of each vector's lanes, to as many numbers in memory."""
        vectors, lanes = [self.value(place) for place in places], LANES
        vectors += [ZERO] * (2 ** (len(places) - 1).bit_length() - len(places))
        while lanes > 1:  # of each sum are left; their halves are added, of two vectors at once
            pairs = zip(vectors[::2], vectors[1::2], strict=True) if vectors[1:] else [(vectors[0], None)]
            vectors, lanes = [self._halved(*pair, lanes) for pair in pairs], lanes // 2
        found = self._lanes(vectors[0], None, range(len(places)))
        at = self.address(array, index)
        before = self.builder.load(at, typ=found.type, align=4)
        self.builder.store(self.builder.fadd(before, found), at, align=4)

    def _halved(self, a: ir.Value, b: ir.Value | None, lanes: int) -> ir.Value:
        """The first half of every so many lanes plus the second, of a and then of b."""
        every = range(a.type.count * (1 if b is None else 2))
        first = [i for i in every if i % lanes < lanes // 2]
        return self.builder.fadd(self._lanes(a, b, first), self._lanes(a, b, [i + lanes // 2 for i in first]))

    def _lanes(self, a: ir.Value, b: ir.Value | None, which: Sequence[int]) -> ir.Value:
        """Some of the lanes of a and b, counted through both."""
        b = ir.Constant(a.type, ir.Undefined) if b is None else b
        return self.builder.shuffle_vector(
            a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(which)), list(which))
        )

    def compiled(self) -> Compiled:
        self.builder.ret_void()
        machine, module = _machine(), llvm.parse_assembly(str(self.module))
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        kinds = [ctypes.c_int64 if kind == INT else ctypes.c_void_p for kind in self.types]
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("kernel"))
        function.engine = engine  # whose end would be that of the code

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
