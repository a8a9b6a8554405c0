"""Pickles within bounds: what a program of protocol 0 to 5 may do, and the plain names it may use.

Nothing is imported or called by what a file says; see `machine`. A name is looked up in a table of
ours: containers, numpy's numbers and arrays here, tensors in `tensors`, further ones by the reader.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from typing import Any

from dreamshard.foreign.machine import (
    CALL,
    DICT,
    MAX_NUMBER,
    NUMBER,
    SLOT,
    TUPLE,
    Machine,
    check_text,
    plain_set,
)


def run(machine: Machine) -> Any:
    """Run the program that begins at the machine's place; return the value that it makes.

    Raises:
        RefusedError: it asks for a name that is not allowed.
        ValueError, and whatever damaged bytes lead to: use it inside `guard.reading`.
    """
    data, charge = machine.data, machine.budget.charge
    while True:
        if machine.at >= len(data):
            raise ValueError("a pickle cut short: it has no end")
        code = data[machine.at]
        machine.at += 1
        if code == STOP:
            if len(machine.stack) != 1 or machine.marks:
                raise ValueError("a pickle that ends in the middle")
            machine.memo.clear()
            return machine.stack.pop()
        step = STEPS.get(code)
        if step is None:
            at = machine.at - 1
            raise ValueError(f"operation {code:#04x} at byte {at:,}, which no pickle of data has")
        charge(SLOT)
        step(machine)


def _short(machine: Machine) -> None:
    items = machine.pop()
    machine.fill([machine.pop(), items])


def _count(machine: Machine, form: str) -> memoryview:
    return machine.take(machine.unpack(form))


def _number(machine: Machine, raw: memoryview) -> None:
    if len(raw) > MAX_NUMBER:
        raise ValueError(f"a whole number of {len(raw):,} bytes")
    machine.push(int.from_bytes(raw, "little", signed=True), 2 * NUMBER)


def _line_number(machine: Machine) -> int:
    text = machine.line()
    if len(text) > 2 * MAX_NUMBER:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text.removesuffix("L"))


def _int_line(machine: Machine) -> None:
    start = bytes(machine.data[machine.at : machine.at + 3])
    number = _line_number(machine)
    machine.push({b"00\n": False, b"01\n": True}.get(start, number), 2 * NUMBER)


def _string_line(machine: Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        raise ValueError("a text without quotes")
    raw = codecs.escape_decode(text[1:-1].encode("latin-1"))[0]  # type: ignore[attr-defined]
    machine.push(raw.decode("latin-1"), 64 + len(raw))


def _latin(machine: Machine, raw: memoryview) -> None:
    check_text(raw)
    machine.push(bytes(raw).decode("latin-1"), 64 + 2 * len(raw))


def _skip_frame(machine: Machine) -> None:
    if machine.unpack("<Q") > len(machine.data) - machine.at:
        raise ValueError(f"a pickle cut short: a frame at byte {machine.at - 8:,}")


def _protocol(machine: Machine) -> None:
    if (number := machine.unpack("<B")) > 5:
        raise ValueError(f"protocol {number} of pickle, allowed 0 to 5")


def _tuple(machine: Machine, size: int) -> None:
    parts = [machine.pop() for _ in range(size)][::-1]
    machine.push(tuple(parts), TUPLE + 8 * size)


def _tuple_of_mark(machine: Machine) -> None:
    machine.push(tuple(machine.above_mark()), TUPLE)


def _dict_of_mark(machine: Machine) -> None:
    pairs = machine.above_mark()
    machine.push({}, DICT)
    machine.fill(pairs)


def _set_of_mark(machine: Machine, kind: type) -> None:
    values = machine.above_mark()
    machine.push(kind(plain_set(values)), DICT + CALL * len(values))


def _add(machine: Machine) -> None:
    values, target = machine.above_mark(), machine.top()
    if not isinstance(target, set):
        raise ValueError(f"entries of a {type(target).__name__}")
    machine.budget.charge(CALL * len(values))
    target |= plain_set(values)


def _global_of_stack(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("a name that is no text")
    machine.named(module, name)


def _reduce(machine: Machine) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _new_with_words(machine: Machine) -> None:
    if machine.pop() != {}:
        raise ValueError("an object made with named arguments")
    _reduce(machine)


def _instance_line(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    arguments = machine.above_mark()
    machine.named(module, name)
    machine.call(machine.pop(), tuple(arguments))


def _pop_mark(machine: Machine) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


STOP = 0x2E
STEPS: Mapping[int, Callable[[Machine], Any]] = {
    0x80: _protocol,
    0x95: _skip_frame,
    ord("("): lambda m: m.mark(),
    ord("0"): _pop_mark,
    ord("1"): lambda m: m.above_mark(),
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _int_line,
    ord("L"): lambda m: m.push(_line_number(m), 2 * NUMBER),
    ord("J"): lambda m: m.push(m.unpack("<i"), NUMBER),
    ord("K"): lambda m: m.push(m.unpack("<B"), NUMBER),
    ord("M"): lambda m: m.push(m.unpack("<H"), NUMBER),
    0x8A: lambda m: _number(m, _count(m, "<B")),
    0x8B: lambda m: _number(m, _count(m, "<i")),
    ord("F"): lambda m: m.push(float(m.line()), NUMBER),
    ord("G"): lambda m: m.push(m.unpack(">d"), NUMBER),
    ord("S"): _string_line,
    ord("T"): lambda m: _latin(m, _count(m, "<i")),
    ord("U"): lambda m: _latin(m, _count(m, "<B")),
    ord("V"): lambda m: m.text(
        memoryview(
            m.line().encode("latin-1").decode("raw-unicode-escape").encode("utf-8", "surrogatepass")
        )
    ),
    ord("X"): lambda m: m.text(_count(m, "<I")),
    0x8C: lambda m: m.text(_count(m, "<B")),
    0x8D: lambda m: m.text(_count(m, "<Q")),
    ord("B"): lambda m: m.push(_count(m, "<I"), 2 * CALL),
    ord("C"): lambda m: m.push(_count(m, "<B"), 2 * CALL),
    0x8E: lambda m: m.push(_count(m, "<Q"), 2 * CALL),
    0x96: lambda m: m.push(_count(m, "<Q"), 2 * CALL),
    ord("]"): lambda m: m.push([], TUPLE + NUMBER),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.above_mark()),
    ord("l"): lambda m: m.push(m.above_mark(), TUPLE),
    ord(")"): lambda m: m.push(()),
    ord("t"): _tuple_of_mark,
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("}"): lambda m: m.push({}, DICT),
    ord("d"): _dict_of_mark,
    ord("s"): _short,
    ord("u"): lambda m: m.fill(m.above_mark()),
    0x8F: lambda m: m.push(set(), DICT),
    0x90: _add,
    0x91: lambda m: _set_of_mark(m, frozenset),
    ord("g"): lambda m: m.recall(_line_number(m)),
    ord("h"): lambda m: m.recall(m.unpack("<B")),
    ord("j"): lambda m: m.recall(m.unpack("<I")),
    ord("p"): lambda m: m.remember(_line_number(m)),
    ord("q"): lambda m: m.remember(m.unpack("<B")),
    ord("r"): lambda m: m.remember(m.unpack("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: _global_of_stack,
    ord("R"): _reduce,
    0x81: _reduce,
    0x92: _new_with_words,
    ord("b"): lambda m: m.build(),
    ord("i"): _instance_line,
    ord("o"): lambda m: m.instance(m.above_mark()),
    ord("P"): lambda m: m.persist(m.line()),
    ord("Q"): lambda m: m.persist(m.pop()),
}
"""Operation -> step; of those left out, extension codes (0x82 to 0x84) call what was registered
with Python, and buffers out of band (0x97, 0x98) are no part of a file."""
