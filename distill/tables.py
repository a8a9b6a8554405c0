"""Look up a part by its name in a table, or by an import path of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from dreamshard.errors import Problem
from dreamshard.foreign import trusted


def name_problem(name: str, *, table: Mapping[str, str], key: str) -> Problem | None:
    """Say what is wrong with a part's name, without importing anything.

    Args:
        name: a name of the table, or "module:Class".
        table: name to "module:Class".
        key: the dotted config key the name came from.

    Returns:
        A problem that lists the names and the closest one, or None.
    """
    if name in table or ":" in name:
        return None
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    return Problem(key, repr(name), f"{', '.join(table)} or module:Class", hint)


def load_part(name: str, *, table: Mapping[str, str]) -> type:
    """Import the class behind a name of the table, or behind the user's own "module:Class".

    Raises:
        ImportError, AttributeError: the path does not lead to a class.
    """
    return trusted.find(name, table=table)
