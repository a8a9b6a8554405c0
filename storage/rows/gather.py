"""Copy rows between addresses at memory speed, without holding the interpreter lock.

Import this module late: it imports numba and compiles (or loads from numba's cache) one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDTH = 32  # bytes per register: measured 15-20 % faster than libc's memcpy and than 64 bytes
_UNROLL = 4
STEP = _WIDTH * _UNROLL  # bytes per turn of the loop
_STEP = np.uint64(STEP)  # addresses stay unsigned: numba makes a float of signed with unsigned
_AHEAD = 256  # bytes between the copy and its prefetch: rows are too short for the hardware's own

_INT32, _INT64, _BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8)
_VECTOR = ir.VectorType(_INT64, _WIDTH // 8)
_COPY = types.void(types.uint64, types.uint64, types.uint64)


def _load_store(builder: Any, target: Any, source: Any) -> None:
    values = []
    for step in range(_UNROLL):
        address = builder.add(source, ir.Constant(_INT64, step * _WIDTH))
        value = builder.load(builder.inttoptr(address, ir.PointerType(_VECTOR)))
        value.align = 1
        values.append(value)
    for step, value in enumerate(values):
        address = builder.add(target, ir.Constant(_INT64, step * _WIDTH))
        builder.store(value, builder.inttoptr(address, ir.PointerType(_VECTOR)), align=1)


def _prefetch(builder: Any, source: Any) -> None:
    prefetch = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [ir.PointerType(_BYTE), _INT32, _INT32, _INT32]),
        "llvm.prefetch.p0",
    )
    read, keep, data = (ir.Constant(_INT32, flag) for flag in (0, 3, 1))
    for line in range(0, STEP, 64):
        address = builder.add(source, ir.Constant(_INT64, _AHEAD + line))
        pointer = builder.inttoptr(address, ir.PointerType(_BYTE))
        builder.call(prefetch, [pointer, read, keep, data])  # harmless past the end of a mapping


def _steps(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes, a multiple of STEP, in wide registers with a prefetch ahead."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, size = arguments
        with cgutils.for_range_slice(
            builder, ir.Constant(_INT64, 0), size, ir.Constant(_INT64, STEP)
        ) as (offset, _count):
            _prefetch(builder, builder.add(source, offset))
            _load_store(builder, builder.add(target, offset), builder.add(source, offset))
        return context.get_dummy_value()

    return _COPY, generate


def _bytes(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy any number of bytes by the C library's memcpy."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (
            builder.inttoptr(address, ir.PointerType(_BYTE)) for address in arguments[:2]
        )
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return _COPY, generate


_copy_steps: Any = intrinsic(_steps)  # called without the typing context
_copy_bytes: Any = intrinsic(_bytes)


def _gather(sources: Any, row_bytes: Any, targets: Any) -> None:
    for array in range(sources.shape[0]):
        size, target = row_bytes[array], targets[array]
        steps = size // _STEP * _STEP
        for row in range(sources.shape[1]):
            source = sources[array, row]
            if steps:
                _copy_steps(target, source, steps)
            if steps != size:
                _copy_bytes(target + steps, source + steps, size - steps)
            target += size


def _compile() -> Callable[..., None]:
    signature = types.void(types.uint64[:, ::1], types.uint64[::1], types.uint64[::1])
    try:
        return numba.njit(signature, nogil=True, cache=True)(_gather)
    except (RuntimeError, OSError):  # nowhere to keep the compiled code: a read-only installation
        return numba.njit(signature, nogil=True)(_gather)


gather = _compile()
"""gather(sources uint64 (A, N), row_bytes uint64 (A,), targets uint64 (A,)): for every array a and
row n, copy row_bytes[a] bytes from address sources[a, n] to targets[a] + n * row_bytes[a]."""
