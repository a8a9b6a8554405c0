"""Settings given in Python: the keys of the recipes, dotted or nested, over a recipe file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from typing import Any, TypeVar

from dreamshard.config import load_config
from dreamshard.config.allowed import Schema, at, schema_of, settings
from dreamshard.config.sources import takes_text

T = TypeVar("T")
Recipe = str | PathLike[str] | Mapping[str, Any] | None
"""A recipe's file, or its settings."""


def config_of(cls: type[T], recipe: Recipe, overrides: Mapping[str, Any], *, verb: str) -> T:
    """Build a command's configuration.

    Args:
        cls: configuration dataclass.
        recipe: a file, or settings as it holds them, nested or by dotted key; None for defaults.
        overrides: the same, laid over it.
        verb: of the command.

    Raises:
        ConfigError: everything that is wrong with them, by dotted key.
    """
    argv = arguments(cls, recipe, overrides)
    return load_config(cls, argv, prog=f"dreamshard {verb}", description="")


def arguments(cls: type, recipe: Recipe, overrides: Mapping[str, Any]) -> list[str]:
    """Return the command-line arguments that mean the same; arguments as those of `config_of`."""
    argv: list[str] = []
    if isinstance(recipe, Mapping):
        overrides = {**recipe, **overrides}
    elif recipe is not None:
        argv = ["--config", fspath(recipe)]
    for key, value in _leaves(cls, overrides):
        argv.append(f"--{key}={_text(value, at(schema_of(cls), key.split('.')))}")
    return argv


def _leaves(cls: type, given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; nested configurations are entered, free mappings are values."""
    schema = schema_of(cls)
    for name, value in given.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and settings(at(schema, key.split("."))) is not None:
            yield from _leaves(cls, value, f"{key}.")
        else:
            yield key, value


def _text(value: Any, node: Schema | None) -> str:
    """Write a value as a command line has it; a text stays one, whatever YAML reads in it."""
    if isinstance(value, str | PathLike) and takes_text(node, fspath(value)):
        return fspath(value)
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """Return what JSON can hold: paths as text, tuples and numpy's numbers as Python's."""
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} is no setting: allowed are numbers, texts, lists and dicts")
