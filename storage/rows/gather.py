"""Copy rows between addresses by the C library's memcpy, without holding the interpreter lock.

Import this module late: it imports numba and compiles (or loads from numba's cache) one function.
Rows lie in many files and go to places in between, which no `take(out=)` of numpy or torch can do;
where one array is one mapping, those two are as fast as this (benchmarks/storage.py measures both).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import types

_U64 = types.uint64  # addresses stay unsigned: numba makes a float of signed with unsigned
_memcpy: Any = types.ExternalFunction("memcpy", _U64(_U64, _U64, _U64))


def _gather(sources: Any, row_bytes: Any, targets: Any) -> None:
    for array in range(sources.shape[0]):
        size, target = row_bytes[array], targets[array]
        for row in range(sources.shape[1]):
            _memcpy(target, sources[array, row], size)
            target += size


def _compile() -> Callable[..., None]:
    signature = types.void(_U64[:, ::1], _U64[::1], _U64[::1])
    try:
        return numba.njit(signature, nogil=True, cache=True)(_gather)
    except (RuntimeError, OSError):  # nowhere to keep the compiled code: a read-only installation
        return numba.njit(signature, nogil=True)(_gather)


gather = _compile()
"""gather(sources uint64 (A, N), row_bytes uint64 (A,), targets uint64 (A,)): for every array a and
row n, copy row_bytes[a] bytes from address sources[a, n] to targets[a] + n * row_bytes[a]."""
