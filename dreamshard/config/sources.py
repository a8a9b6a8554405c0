"""Collect a configuration's defaults, YAML files and overrides into one dict of plain values."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from operator import getitem
from typing import Any

import yaml

from dreamshard.config.allowed import Schema, at, defaults, describe, parts, settings
from dreamshard.config.reads import Unread
from dreamshard.config.yaml12 import parse_yaml, read_yaml
from dreamshard.errors import Problem

log = logging.getLogger(__name__)
Options = Sequence[tuple[str, str]]
MAX_NAMES = 64
"""Names of a dotted key: as deep as foreign text may be nested."""


def split(
    schema: Schema, argv: Sequence[str]
) -> tuple[list[tuple[str, str]], set[str], list[Problem]]:
    """Split arguments into (option, text) pairs, flags, and complaints about all else."""
    options: list[tuple[str, str]] = []
    flags, problems, words = set(), [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word[2:].partition("=")
        if not word.startswith("--") or not name:
            hint = "Settings are written --name value; a list is one value: --name '[a, b]'."
            problems.append(Problem(word, "a stray argument", "options that start with --", hint))
        elif name.replace("-", "_") in ("print_config", "debug"):
            flags.add(name.replace("-", "_"))
        elif name.count(".") >= MAX_NAMES:
            got = f"a setting of {name.count('.') + 1:,} names"
            problems.append(Problem(f"{name[:40]}...", got, f"up to {MAX_NAMES}"))
            words = words[not equals :]
        elif equals or (words and not words[0].startswith("--")):
            options.append((name, text if equals else words.pop(0)))
        elif name != "config" and at(schema, name.rstrip("+").split(".")) is None:
            options.append((name, "null"))  # unknown, whatever its value is
        else:
            hint = f"Write --{name} VALUE, or --{name}=VALUE if the value starts with --."
            problems.append(Problem(name, "no value", "one value", hint))
    return options, flags, problems


def read_sources(schema: Schema, options: Options) -> tuple[dict[str, Any], list[Problem]]:
    """Merge defaults, `--config` files and dotted overrides, in this order.

    Returns:
        The merged values, not yet validated; and what could not be read.
    """
    raw, problems = defaults(schema), []
    for name, text in sorted(options, key=lambda option: option[0] != "config"):
        if name == "config":
            value, problem = read_yaml(text)
            problems += [problem] if problem else []
            raw = lay(schema, raw, value)
            continue
        name, append, _ = name.partition("+")
        path = name.split(".")
        node = at(schema, path)
        try:
            value = text if takes_text(node, text) else parse_yaml(text)
        except (yaml.YAMLError, ValueError):
            allowed = "a YAML value" if node is None else describe(node)
            problems.append(Problem(name, repr(text), allowed, "Check brackets and quotes."))
        else:
            raw = lay(schema, raw, value, path, append=bool(append))
    return raw, problems


def leave_out(
    schema: Schema, raw: dict[str, Any], problems: Sequence[Problem], options: Options
) -> dict[str, Any]:
    """Return the settings without what a file set for a choice that an argument changed.

    `--method simsiam` over a file for another method means it. What is left out is logged.

    Args:
        schema: of the configuration.
        raw: merged settings; what is left out gets its default.
        problems: what is wrong with them.
        options: of the command line.
    """
    typed = {name.partition("+")[0] for name, _ in options} - {"config"}
    for problem in problems:
        path = problem.key.split(".")
        above = {".".join(path[:end]) for end in range(1, len(path) + 1)}
        if not isinstance(problem, Unread) or problem.choice not in typed or above & typed:
            continue
        with contextlib.suppress(LookupError, TypeError):  # an entry of a list has no default
            raw = lay(schema, raw, functools.reduce(getitem, path, defaults(schema)), path)
            words = "%s: %s of the file is left out: %s"
            log.warning(words, problem.key, problem.got, problem.hint)
    return raw


def takes_text(node: Schema | None, text: str) -> bool:
    """Tell whether an override is text as it stands: no YAML, so that 007 and off stay as typed."""
    kinds = {part.get("type") for part in parts(node or {})}
    is_null = "null" in kinds and text in ("null", "~")
    return kinds - {"null"} == {"string"} and not is_null


def lay(
    schema: Schema | None, below: Any, value: Any, path: Sequence[str] = (), *, append: bool = False
) -> Any:
    """Lay a value over what is below, or over the defaults; what no file names stays.

    Args:
        schema: of what is below; None where nothing is known.
        below: settings so far.
        value: what is laid over them; only nested configurations merge key by key.
        path: keys that lead to its place; on the way free mappings merge too.
        append: add to the list that is below.
    """
    known = settings(schema)
    if append and not path and isinstance(below, list):
        return [*below, *(value if isinstance(value, list) else [value])]
    if not path and (known is None or not isinstance(value, dict)):
        return value
    merged = dict(below) if isinstance(below, dict) else defaults(schema or {})
    for key, item in [(path[0], value)] if path else value.items():
        merged[key] = lay(at(schema, [key]), merged.get(key), item, path[1:], append=append)
    return merged
