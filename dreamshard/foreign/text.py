"""JSON and YAML within bounds of size, depth, counts and number range."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreamshard.errors import DreamshardError
from dreamshard.foreign.files import MAX_BYTES, read_bytes
from dreamshard.foreign.guard import UnreadableError, reading

MAX_DEPTH = 64
MAX_VALUES = 4_000_000
MAX_WRITTEN, MAX_YAML = 30_000, 4 << 20
"""Values and characters of a YAML document, which is parsed in Python: 30,000 take seconds."""
MAX_DIGITS = 18
"""Of a number in a file's name."""
MAX_NODES = 100_000
"""Values of a YAML document, every alias counted as often as it stands for something."""
_LONG_NUMBER = re.compile(rb"[0-9]{19}|[0-9][eE]\+?[0-9]{3}|[0-9]{200}")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(
    data: bytes | str,
    *,
    where: str,
    error: type[DreamshardError] = UnreadableError,
    limit: int = MAX_BYTES,
    values: int = MAX_VALUES,
    infinite: bool = False,
    hint: str = "",
) -> Any:
    """Parse JSON.

    Args:
        data: UTF-8.
        where: the file, for messages.
        error: class to raise.
        limit: the most it may be (bytes).
        values: the most it may hold (count).
        infinite: whether Infinity and NaN are values.
        hint: what to do next, a full sentence.

    Raises: `error` for more bytes, values or depth than allowed, numbers beyond 64 bits, halves of
        surrogate pairs, and anything that is no JSON.
    """
    with reading(where, "JSON", error=error, hint=hint):
        raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
        if len(raw) > limit:
            raise ValueError(f"{len(raw):,} bytes, more than {limit:,}")
        count = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        if count > values:
            raise ValueError(f"{count:,} values, more than {values:,}")
        _check_brackets(raw)
        hooks: dict[str, Any] = {} if infinite else {"parse_constant": _refuse}
        if _LONG_NUMBER.search(raw):
            hooks |= {"parse_int": _whole, "parse_float": _finite}
        value = json.loads(raw.decode("utf-8"), **hooks)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # no half of a pair is a letter
        return value


def read_json(
    path: Path,
    *,
    error: type[DreamshardError] = UnreadableError,
    limit: int = MAX_BYTES,
    values: int = MAX_VALUES,
    infinite: bool = False,
    hint: str = "",
) -> Any:
    """Read a JSON file; arguments and errors as `parse_json`, and for what cannot be read."""
    with reading(str(path), "JSON", error=error, hint=hint):
        data = read_bytes(path, limit=limit, error=error)
    return parse_json(
        data,
        where=str(path),
        error=error,
        limit=limit,
        values=values,
        infinite=infinite,
        hint=hint,
    )


def number_in(name: str) -> int | None:
    """Return the whole number that a file's name is, as we write them; None if it is none.

    Digits of ASCII alone, and no more of them than 64 bits hold.
    """
    return int(name) if name.isascii() and name.isdecimal() and len(name) <= MAX_DIGITS else None


def parse_yaml(text: str, loader: Any, *, limit: int = MAX_YAML) -> Any:
    """Parse YAML: one document, aliases within bounds.

    Args:
        text: of the file.
        loader: class of the loader, a safe one.
        limit: the most it may be (characters).

    Raises:
        yaml.YAMLError, ValueError: no YAML, or more than is allowed.
    """
    if len(text) > limit:
        raise ValueError(f"{len(text):,} characters, more than {limit:,}")
    try:
        reader = loader(text)
        plainly, written = reader.compose_node, itertools.count(1)

        def compose_node(parent: Any, index: Any) -> Any:
            if next(written) > MAX_WRITTEN:
                raise ValueError(f"more than {MAX_WRITTEN:,} values")
            return plainly(parent, index)

        reader.compose_node = compose_node
        node = reader.get_single_node()
        _count_nodes(node, {}, ())
        return None if node is None else reader.construct_document(node)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (KeyError, AttributeError, TypeError, OverflowError) as error:  # by a tag's constructor
        raise ValueError(f"a value that is not of its tag ({error})") from error


def _count_nodes(node: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Count values below a node as if every alias were written out."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) in above:
        raise ValueError("an alias that stands for something around it")
    if len(above) >= MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if id(node) not in known:
        inside = (*above, id(node))
        parts: Iterable[Any] = node.value
        if node.value and isinstance(node.value[0], tuple):
            parts = (part for pair in node.value for part in pair)
        total = 1
        for part in parts:
            total += _count_nodes(part, known, inside)
            if total > MAX_NODES:
                raise ValueError(f"more than {MAX_NODES:,} values, aliases written out")
        known[id(node)] = total
    return known[id(node)]


def _check_brackets(raw: bytes) -> None:
    """Refuse deep nesting before it is parsed: Python miscounts after its own recursion error."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(raw):
        if match[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep")
        elif match[0] in b"]}":
            depth -= 1


def _refuse(name: str) -> None:
    raise ValueError(f"the number {name}")


def _whole(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= (value := int(text)) < 1 << 64:
        raise ValueError("a whole number beyond 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of floats")
    return value
