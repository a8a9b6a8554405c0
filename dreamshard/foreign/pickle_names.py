"""Names that pickles of plain data use: containers, numpy's numbers and arrays, made by us."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamshard.foreign.machine import CALL, Budget, Maker, plain_set

NUMBERS = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1 c8 c16".split())
"""Kinds of numbers that may be in a file, as numpy writes them."""
MAX_DIMENSIONS = 8


class NumberKind:
    """Stand for a `numpy.dtype`; a pickle makes it first, and tells its byte order then."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.lstrip("<>=|") if isinstance(code, str) else code
        if code not in NUMBERS:
            raise ValueError(f"numpy numbers of kind {code!r:.80}")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        """Take the byte order; refuse records, subarrays and objects."""
        if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]):
            raise ValueError(f"numpy numbers of kind {self.code} with parts")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"numpy numbers in order {state[1]!r:.20}")
        self.order = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype:
        """Return the kind itself."""
        return np.dtype(self.order + self.code)


class PickledArray:
    """Stand for a numpy array, whose numbers a pickle tells after it made it."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.value = budget, np.empty(0)

    def build(self, state: Any) -> None:
        """Take shape, kind and numbers; they must fit one another."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("a numpy array without its five parts")
        _, shape, kind, fortran, raw = state
        raw = _as_bytes(raw)
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("a numpy array without a shape")
        sides = tuple(side for side in shape if type(side) is int and side >= 0)
        if len(sides) != len(shape):
            raise ValueError("a numpy array with sizes that are no whole numbers")
        if not isinstance(kind, NumberKind):
            raise ValueError(f"a numpy array of {type(kind).__name__}")
        if math.prod(sides) * kind.dtype.itemsize != len(raw):
            raise ValueError(
                f"a numpy array of shape {sides} and {kind.code} in {len(raw):,} bytes"
            )
        self.budget.charge(len(raw))
        flat = np.frombuffer(raw, kind.dtype).astype(kind.dtype.newbyteorder("="))
        self.value = flat.reshape(sides, order="F" if fortran else "C")


def plain_names(budget: Budget) -> dict[str, Any]:
    """Return the table of plain names.

    Args:
        budget: charged for what they copy.
    """

    def ordered(pairs: Any = ()) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        budget.charge(2 * CALL)
        if not isinstance(pairs, list | tuple):
            raise ValueError(f"a dict of a {type(pairs).__name__}")
        budget.charge(CALL * len(pairs))
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) is not str:
                raise ValueError("a dict of what is no pair of a text and a value")
            made[pair[0]] = pair[1]
        return made

    def bag(values: Any = ()) -> set[Any]:
        budget.charge(2 * CALL + CALL * len(values))
        return plain_set(values)

    def encoded(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
            raise ValueError(f"an encoding of {type(text).__name__} as {encoding!r:.20}")
        budget.charge(4 * len(text) + CALL)
        return text.encode(encoding)

    def scalar(kind: Any, raw: Any = b"") -> Any:
        raw = _as_bytes(raw)
        if not isinstance(kind, NumberKind) or len(raw) != kind.dtype.itemsize:
            raise ValueError(f"a numpy number in {len(raw):,} bytes")
        return np.frombuffer(raw, kind.dtype)[0].item()

    makers: Mapping[str, Any] = {
        "collections.OrderedDict": ordered,
        "builtins.set": bag,
        "_codecs.encode": encoded,
        "numpy.dtype": NumberKind,
        "numpy.core.multiarray.scalar": scalar,
        "numpy.core.multiarray._reconstruct": lambda *_: PickledArray(budget),
        "numpy.ndarray": lambda *_: PickledArray(budget),
    }
    table = {name: Maker(name, make) for name, make in makers.items()}
    newer = {n.replace(".core.", "._core."): maker for n, maker in table.items() if ".core." in n}
    return table | newer


def _as_bytes(raw: Any) -> memoryview:
    if isinstance(raw, str):  # Python 2's bytes
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | memoryview):
        raise ValueError(f"numbers in a {type(raw).__name__}")
    return memoryview(raw)
