"""What a table's columns must be before anything is read: named once, there, keys that tell apart.

A name that the user gave and that no file has is a slip of the pen, never an absent column.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.text import parse_json
from pipeline.images.listing import key_of
from pipeline.images.source import SourceConfig

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""How folders of partitions call a missing value."""
HUGGING_FACE = b"huggingface"
"""Key of what the datasets library keeps in a table's schema."""


def check_named(
    config: SourceConfig, found: Mapping[str, bool], *, names: Iterable[str], where: str
) -> None:
    """Refuse a column that is asked for by a name of its own and that is nowhere.

    Args:
        config: of the source.
        found: setting, such as `label_column`, -> whether any file has what it names.
        names: what the files have.
        where: they are, for messages.

    Raises:
        ConfigError: naming every such setting.
    """
    plain = {item.name: item.default for item in dataclasses.fields(SourceConfig)}
    known, problems = sorted(set(names)), []
    for setting, is_there in found.items():
        name = getattr(config, setting)
        if is_there or not name or name == plain[setting]:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Leave it out with --source.{setting} ''."
        allowed = ", ".join(known) or "nothing: there is none"
        problems.append(Problem(f"source.{setting}", f"{name}, not in {where}", allowed, hint))
    if problems:
        raise ConfigError(problems)


def check_once(schema: pa.Schema, names: Iterable[str], path: str) -> None:
    """Refuse a column that a table has twice: which of them is meant cannot be told.

    Raises: ConfigError.
    """
    for name in names:
        if (times := schema.names.count(name)) > 1:
            hint = "Name the columns apart, or set another in the source's settings."
            got = f"{times} columns {name} in {path}"
            raise ConfigError(Problem("source.path", got, "one column of a name", hint))


def keys_of(values: Sequence[Any], *, column: str, where: str) -> list[str]:
    """Return a column's values as the samples' names.

    Raises:
        ConfigError: a name that is missing, or neither text nor a whole number.
    """
    hint = "Name another column, or give --source.key_column '' for file and row."
    allowed = "a text or a whole number in every row"
    keys: list[str] = []
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            value = key_of(value.decode("utf-8", "surrogateescape"))
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            got = f"{value!r:.60} in row {row} of column {column} of {where}"
            raise ConfigError(Problem("source.key_column", got, allowed, hint))
        keys.append(str(value))
    return keys


def partition_value(name: str, column: str) -> tuple[bool, str | None]:
    """Say whether a file's folders tell a column, such as `label=cat/0.parquet`, and its value."""
    for part in name.split("/")[:-1]:
        told, equals, value = part.partition("=")
        if equals and told == column:
            return True, None if value == NO_VALUE else unquote(value)
    return False, None


def class_names(schema: pa.Schema, column: str, path: str) -> tuple[str, ...]:
    """Return the names of a column's classes that the datasets library wrote beside it, if any."""
    text = (schema.metadata or {}).get(HUGGING_FACE)
    if text is None:
        return ()
    node: Any = parse_json(text, where=f"{path}: the schema's note of Hugging Face datasets")
    for name in ("info", "features", column, "names"):
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, list) or not all(isinstance(name, str) for name in node):
        return ()
    return tuple(node)
