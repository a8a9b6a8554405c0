"""Collect a configuration's defaults, YAML files and overrides into one dict of plain values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal

import yaml

from dreamshard.config.types import (
    annotation_at,
    bare,
    describe,
    field_default,
    field_types,
    members,
    nested,
    plain,
)
from dreamshard.config.yaml12 import parse_yaml, read_yaml
from dreamshard.errors import Problem


@dataclasses.dataclass
class Sources:
    """Hold what the command line and its files said."""

    raw: dict[str, Any]
    problems: list[Problem]
    print_config: bool = False


def read_sources(cls: type, argv: Sequence[str]) -> Sources:
    """Merge defaults, `--config` files and dotted overrides, in this order.

    Args:
        cls: configuration dataclass.
        argv: arguments without the program's name.

    Returns:
        The merged values, not yet validated, and what could not be read.
    """
    options, problems = _split(argv)
    sources = Sources(raw=defaults(cls), problems=problems)
    for name, text in options:
        if name == "config":
            layer, problem = read_yaml(text)
            sources.problems += [problem] if problem else []
            sources.raw = merge(cls, sources.raw, layer)
    for name, text in options:
        if name == "print_config":
            sources.print_config = True
        elif name not in ("config", "debug"):
            _override(cls, sources, name, text)
    return sources


def _split(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Split arguments into (option, text) pairs and complaints about what is no such pair."""
    options: list[tuple[str, str]] = []
    problems = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word[2:].partition("=")
        if not word.startswith("--") or not name:
            hint = "Settings are written --name value; a list is one value: --name '[a, b]'."
            problems.append(Problem(word, "a stray argument", "options that start with --", hint))
        elif name.replace("-", "_") in ("print_config", "debug"):
            options.append((name.replace("-", "_"), ""))
        elif equals:
            options.append((name, text))
        elif words and not words[0].startswith("--"):
            options.append((name, words.pop(0)))
        else:
            hint = f"Write --{name} VALUE, or --{name}=VALUE if the value starts with --."
            problems.append(Problem(name, "no value", "one value", hint))
    return options, problems


def _override(cls: type, sources: Sources, name: str, text: str) -> None:
    name, append, _ = name.partition("+")
    path = name.split(".")
    annotation = annotation_at(cls, path)
    try:
        value = text if _takes_text(annotation, text) else parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        allowed = "a YAML value" if annotation is None else describe(annotation)
        sources.problems.append(Problem(name, repr(text), allowed, "Check brackets and quotes."))
        return
    node, inner = sources.raw, nested(annotation)
    for depth, key in enumerate(path[:-1], 1):
        if not isinstance(node.get(key), dict):
            owner = nested(annotation_at(cls, path[:depth]))
            node[key] = defaults(owner) if owner is not None else {}
        node = node[key]
    below = node.get(path[-1])
    if append and isinstance(below, list):
        value = [*below, *(value if isinstance(value, list) else [value])]
    elif inner is not None and isinstance(value, dict):
        value = _lay(inner, below, value)
    node[path[-1]] = value


def _takes_text(annotation: Any, text: str) -> bool:
    """Tell whether an override is text as it stands: no YAML, so that 007 and off stay as typed."""
    if annotation is None:
        return False
    kinds = [bare(member) for member in members(annotation)]
    if type(None) in kinds and text in ("null", "~"):
        return False
    kinds = [kind for kind in kinds if kind is not type(None)]
    return all(kind is str or _is_word(kind) for kind in kinds)


def _is_word(kind: Any) -> bool:
    """Tell whether an annotation is a Literal of texts only."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else (None,)
    return all(isinstance(choice, str) for choice in choices)


def defaults(cls: type) -> dict[str, Any]:
    """Return a configuration's defaults as nested dicts; required fields are absent."""
    raw = {}
    for field in dataclasses.fields(cls):
        value = field_default(field)
        if field.init and value is not dataclasses.MISSING:
            raw[field.name] = plain(value)
    return raw


def merge(cls: type, base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Lay one dict of settings over another; only nested configurations merge key by key."""
    merged = dict(base)
    for key, value in layer.items():
        inner = nested(field_types(cls).get(key))
        if inner is not None and isinstance(value, dict):
            value = _lay(inner, merged.get(key), value)
        merged[key] = value
    return merged


def _lay(cls: type, below: Any, layer: dict[str, Any]) -> dict[str, Any]:
    """Lay settings of a nested configuration over those below, or over its defaults."""
    return merge(cls, below if isinstance(below, dict) else defaults(cls), layer)
