"""Print a configuration's help and its values, both with the fields' docstrings."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import docstring_parser
from jsonargparse import SUPPRESS, ArgumentParser

from dreamshard.config.sources import defaults
from dreamshard.config.types import bare, describe, field_types, join, members, nested, range_text
from dreamshard.config.yaml12 import dump_yaml

_REQUIRED: Any = object()  # stands for the value of a setting that has none yet
_INDENT = "  "
_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Hold one setting, or the heading of a nested configuration (then `annotation` is None)."""

    key: str
    doc: str
    annotation: Any = None
    plain_type: Any = None
    value: Any = _REQUIRED


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field as one line, inherited fields included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            parsed = docstring_parser.parse_from_object(base)
            docs |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return docs


def _walk(cls: type, values: dict[str, Any], prefix: str = "") -> Iterator[_Setting]:
    """Yield a configuration's own settings, then each nested one's heading and settings.

    Of a nested configuration that is not there (null), the settings are those it would have.
    """
    inner = []
    plain_types = typing.get_type_hints(cls)
    for name, annotation in field_types(cls).items():
        key, doc, owner = join(prefix, name), field_docs(cls).get(name, ""), nested(annotation)
        value = values.get(name, _REQUIRED)
        if owner is None:
            yield _Setting(key, doc, annotation, plain_types[name], value)
        else:
            inner.append((_Setting(key, doc, value=value), owner))
    for heading, owner in inner:
        yield heading
        inside = heading.value if isinstance(heading.value, dict) else defaults(owner)
        yield from _walk(owner, inside, heading.key)


def _placeholder(annotation: Any) -> str | None:
    """Return what stands for the value in the help; None leaves it to the parser."""
    kinds = [bare(member) for member in members(annotation)]
    names = {_PLACEHOLDERS.get(kind) for kind in kinds if kind is not type(None)}
    return names.pop() if len(names) == 1 else None


def _meaning(setting: _Setting) -> str:
    """Return a setting's docstring and range."""
    limits = range_text(setting.annotation)
    return f"{setting.doc} Range: {limits}.".strip() if limits else setting.doc


def format_help(cls: type, values: dict[str, Any], *, prog: str, description: str) -> str:
    """Format the help of a configuration: every setting with meaning, range, type and default.

    Args:
        cls: configuration dataclass.
        values: its defaults as nested dicts; what is absent is required.
        prog: what the user typed to get here.
        description: one sentence on what the command does.
    """
    usage = f"{prog} [--config FILE] [--SETTING VALUE ...]"
    parser = ArgumentParser(prog=prog, description=description, usage=usage)
    config = "YAML file of settings; repeatable: the next one is laid over the one before"
    parser.add_argument("--config", metavar="FILE", default=SUPPRESS, help=config)
    show = "print the settings that would be used, with their meaning, and stop"
    parser.add_argument("--print_config", action="store_true", default=SUPPRESS, help=show)
    debug = "show the traceback of errors"
    parser.add_argument("--debug", action="store_true", default=SUPPRESS, help=debug)
    group = parser.add_argument_group("settings")
    for setting in _walk(cls, values):
        if setting.annotation is None:
            off = " Not used (null) unless one of these is set." if setting.value is None else ""
            group = parser.add_argument_group(setting.key, setting.doc + off)
            continue
        required = setting.value is _REQUIRED
        placeholder = _placeholder(setting.annotation)
        names: dict[str, Any] = {"metavar": placeholder} if placeholder else {}
        group.add_argument(
            f"--{setting.key}",
            type=setting.plain_type,
            required=required,
            default=None if required else setting.value,
            help=_meaning(setting) or " ",  # without any help the type would not be shown
            **names,
        )
    return parser.format_help()


def format_config(cls: type, values: dict[str, Any]) -> str:
    """Format settings as YAML with their meaning as comments; `--config` reads it back.

    Args:
        cls: configuration dataclass.
        values: settings as nested dicts; what is absent is written as `null  # required`.
    """
    lines, off = [], "."
    for setting in _walk(cls, values):
        depth, name = setting.key.count("."), setting.key.rpartition(".")[2]
        if setting.key.startswith(f"{off}."):
            continue
        text = _meaning(setting)
        block = [f"# {line}" for line in textwrap.wrap(text, 96 - len(_INDENT) * depth)]
        if setting.value is _REQUIRED and setting.annotation is not None:
            block.append(f"{name}: null  # required: {describe(setting.annotation)}")
        elif setting.annotation is not None or setting.value is None:
            block.append(f"{name}: {dump_yaml(setting.value, one_line=True)}")
            off = setting.key  # of a nested configuration that is null, nothing more is shown
        else:
            block = [*([""] if lines else []), *block, f"{name}:"]
        lines += [f"{_INDENT * depth}{line}".rstrip() for line in block]
    return "\n".join(lines) + "\n"
