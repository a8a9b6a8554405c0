"""The machine that runs pickles without Python's unpickler: it builds plain values, nothing else.

A pickle is a program; its operations are in `pickles`. Python's machine calls whatever the program
names; this one has no way to import: a name leads to an entry of the reader's table, which is ours,
or is refused. Everything it makes is charged to a budget before it is made, so that a short program
cannot ask for much memory: repeated references, huge counts, packed numbers, endless texts.

Bytes come as views of the file. Source: the comments of CPython's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

BUDGET = 128 << 20
"""The most that a program may make beside the views of its file (bytes)."""
MAX_NUMBER = 64
"""Bytes of a whole number."""
MAX_NAME = 300
MAX_TEXT = 4 << 20
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
CALL, TUPLE, DICT, SLOT, NUMBER = 128, 64, 256, 32, 48
"""What each kind of step is charged (bytes), above what CPython needs."""


class RefusedError(ValueError):
    """Report a name that a program asks for and that is in no table of ours.

    Args:
        name: `module.name`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name:.300}")
        self.name = name


@dataclass(frozen=True)
class Maker:
    """Stand for a name that a program may call.

    Args:
        name: `module.name`, for messages.
        make: turns the call's arguments into a value; it may trust nothing about them.
    """

    name: str
    make: Callable[..., Any]


@dataclass(eq=False)
class Passive:
    """Hold what a program says of an object that is never made.

    Args:
        name: `module.name` of its class.
        arguments: of the call.
        state: what would be its attributes.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def build(self, state: Any) -> None:
        """Take the attributes."""
        self.state = state


def passive(name: str) -> Maker:
    """Return the table's entry for a class whose objects are described and never made."""
    return Maker(name, lambda *arguments: Passive(name, arguments))


class Budget:
    """Count what is made; shared by a program and those inside it."""

    def __init__(self, limit: int = BUDGET) -> None:
        self.left = limit

    def charge(self, size: int) -> None:
        """Take some bytes, or refuse."""
        self.left -= size
        if self.left < 0:
            raise ValueError("a description that asks for more memory than any network needs")


class Machine:
    """Run one program.

    Args:
        data: the file, from the program's first byte on.
        find: name -> what it stands for; raises `RefusedError`.
        budget: see `Budget`.
        persistent: turns a persistent id into a value; None: there must be none.
    """

    def __init__(
        self,
        data: memoryview,
        find: Callable[[str], Any],
        *,
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, self.find, self.budget, self.persistent = data, find, budget, persistent
        self.at = 0
        """Byte that is read next; after a program, the first after it."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        end = self.at + size
        if size < 0 or end > len(self.data):
            raise ValueError(f"a pickle cut short: {size:,} bytes at {self.at:,}")
        taken, self.at = self.data[self.at : end], end
        return taken

    def unpack(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Return the next line of text, without its end."""
        for size in (1 << 8, 1 << 16):
            window = bytes(self.data[self.at : self.at + size])
            if (length := window.find(b"\n")) >= 0:
                break
        if length < 0:
            raise ValueError(f"a line without an end at byte {self.at:,}")
        self.at += length + 1
        self.budget.charge(length)
        return window[:length].decode("latin-1")

    def push(self, value: Any, cost: int = 0) -> None:
        """Put a value on the stack."""
        if cost:
            self.budget.charge(cost)
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the top value, which must be above the last mark."""
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise ValueError("a pickle that takes more than it made")
        return self.stack.pop()

    def top(self) -> Any:
        """Return the top value."""
        value = self.pop()
        self.stack.append(value)
        return value

    def mark(self) -> None:
        """Begin a group of values."""
        self.budget.charge(NUMBER)
        self.marks.append(len(self.stack))

    def above_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        self.budget.charge(8 * len(items))
        del self.stack[start:]
        return items

    def named(self, module: str, name: str) -> None:
        """Push what a name stands for."""
        full = f"{OLD_MODULES.get(module, module)}.{name}"
        if len(full) > MAX_NAME:
            raise RefusedError(full)
        self.push(self.find(full))

    def call(self, function: Any, arguments: Any) -> None:
        """Push what an entry of the table makes of arguments."""
        if not isinstance(function, Maker):
            raise ValueError(f"a call of a {type(function).__name__}, which is no name")
        if not isinstance(arguments, tuple):
            raise ValueError(f"{function.name}: called with a {type(arguments).__name__}")
        self.budget.charge(CALL)
        try:
            self.push(function.make(*arguments))
        except TypeError as error:
            raise ValueError(f"{function.name}: {error}") from error

    def text(self, raw: memoryview) -> None:
        """Push a text of UTF-8."""
        check_text(raw)
        value = bytes(raw)
        self.push(value.decode("utf-8", "surrogatepass"), 64 + len(raw) * (5, 1)[value.isascii()])

    def remember(self, number: int) -> None:
        """Keep the top value under a number."""
        if number < 0:
            raise ValueError(f"a memo of number {number}")
        self.budget.charge(CALL)
        self.memo[number] = self.top()

    def recall(self, number: int) -> None:
        """Push what is kept under a number."""
        if number not in self.memo:
            raise ValueError(f"a reference to {number:,}, which nothing was kept under")
        self.push(self.memo[number])

    def fill(self, pairs: list[Any]) -> None:
        """Put keys and values, alternating, into the dict on top."""
        target = self.top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError(f"items of a {type(target).__name__}")
        self.budget.charge(CALL * len(pairs) // 2)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[checked_key(key)] = value

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on top."""
        target = self.top()
        if isinstance(target, Passive):  # a container of a framework's own
            target = target.items
        if not isinstance(target, list):
            raise ValueError(f"entries of a {type(target).__name__}")
        self.budget.charge(SLOT * len(values))
        target += values

    def build(self) -> None:
        """Give the object on top its attributes."""
        state, target = self.pop(), self.top()
        if hasattr(target, "build"):
            target.build(state)
        elif not isinstance(target, dict):
            raise ValueError(f"attributes of a {type(target).__name__}")

    def persist(self, name: Any) -> None:
        """Push what a persistent id stands for."""
        if self.persistent is None:
            told = name if isinstance(name, str | int) else type(name).__name__
            raise RefusedError(f"the persistent id {told!r:.80}")
        self.push(self.persistent(name), CALL)

    def instance(self, arguments: list[Any]) -> None:
        """Push an object as protocol 0 and 1 make it: a class, then its arguments."""
        if not arguments:
            raise ValueError("an object without a class")
        self.call(arguments[0], tuple(arguments[1:]))


def check_text(raw: memoryview) -> None:
    """Refuse a text longer than any source file or name."""
    if len(raw) > MAX_TEXT:
        raise ValueError(f"a text of {len(raw):,} bytes, more than {MAX_TEXT:,}")


def checked_key(key: Any, depth: int = 2) -> Any:
    """Return a dict's key or a set's entry: a plain value, or a short tuple of such."""
    if key is None or type(key) in (str, int, float, bool):
        return key
    if isinstance(key, memoryview) and len(key) <= MAX_NAME:
        return bytes(key)
    if type(key) is tuple and depth and len(key) <= 16:
        return tuple(checked_key(part, depth - 1) for part in key)
    raise ValueError(f"a key that is a {type(key).__name__}")


def plain_set(values: Iterable[Any] = ()) -> set[Any]:
    """Make a set of plain values."""
    if not isinstance(values, list | tuple | set | frozenset):
        raise ValueError(f"a set of a {type(values).__name__}")
    return {checked_key(value) for value in values}
