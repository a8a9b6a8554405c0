"""Trusted names: the one door to code that is chosen by a name.

A name leads to code in three ways, all of them here: a name of a table of ours; `module:Class`,
which the user wrote on the command line or in a config; an attribute of a library, out of a list.
A name that was read from a file (a student's card, a run's folder, a checkpoint, a recipe inside a
dataset, a teacher's folder) is data: it is looked up in our tables, and never imported.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from dreamshard.errors import DataError

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")


def is_import_path(name: str) -> bool:
    """Tell whether a name is `module:Class` rather than one of a table."""
    return ":" in name


def find(name: str, *, table: Mapping[str, str]) -> Any:
    """Import what a name of the user's own stands for.

    Args:
        name: out of the table, or `module:Class`; from the command line or a config, never from
            another file (see `plain_name`).
        table: name -> `module:attribute`, all of them ours.

    Raises:
        ImportError, AttributeError: the path leads nowhere.
    """
    place, _, attribute = table.get(name, name).partition(":")
    if not place or not attribute:
        raise ImportError(f"{name!r} is no name of {', '.join(table)} and no module:Class")
    return getattr(importlib.import_module(place), attribute)


def listed(name: str, *, table: Mapping[str, str]) -> Any:
    """Import what a name of a table of ours stands for; any other is a KeyError."""
    place, _, attribute = table[name].partition(":")
    module = importlib.import_module(place)
    return getattr(module, attribute) if attribute else module


def module(name: str) -> ModuleType:
    """Import a module that our own source names, where a checker must not follow or need it."""
    return importlib.import_module(name)


def attribute(library: ModuleType, name: str, *, allowed: Collection[str]) -> Any:
    """Return an attribute of a library.

    Args:
        allowed: the names it may have.

    Raises:
        AttributeError: another name, or one that the library has not.
    """
    if name not in allowed:
        raise AttributeError(f"{name!r:.80} is none of {', '.join(sorted(allowed))}")
    return getattr(library, name)


def plain_name(name: object, *, where: str, key: str, flag: str, said: str = "") -> str:
    """Return a name that was read from a file, once it can only be one of a table.

    Args:
        name: as the file has it.
        where: the file.
        key: its dotted key there.
        flag: the command-line flag by which the user names a class of their own.
        said: what the user gave there.

    Raises:
        DataError: it is an import path that the user did not give.
    """
    if isinstance(name, str) and (_PLAIN.fullmatch(name) or (said and name == said)):
        return name
    if isinstance(name, str) and is_import_path(name):
        raise DataError(
            f"{where}: {key}: got {name!r:.80}, allowed a name of our own tables: nothing that a "
            f"file names is imported. If it is a class of yours, say so: {flag} {name:.80}"
        )
    raise DataError(f"{where}: {key}: got {name!r:.80}, allowed the name of a network.")
