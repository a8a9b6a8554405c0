"""Read configuration dataclasses from YAML files and dotted overrides.

A configuration is a plain `@dataclass(kw_only=True)`, nested as needed. The docstring literal under
a field is its help; `Annotated[int, Field(ge=0, le=999)]` gives its range; a method
`problems(self) -> list[Problem]` checks what one field alone cannot tell; the class attribute
`main_settings` names what `--help` shows (`--help all` shows all). Layers, later ones win: the
defaults, each `--config FILE` in turn, the overrides. Nested configurations merge key by key; lists
and free mappings given by a file replace what was there; `--a.b.key value` sets one key.

pydantic checks and describes; the glue in reading order: sources (argv and YAML to one dict), check
(dict to dataclass, or all problems at once), allowed (what may be set, in words), help (`--help`
and `--print_config`). May import dreamshard.errors alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field
from pydantic_core import to_jsonable_python

from dreamshard.config.allowed import schema_of
from dreamshard.config.check import NOTHING, check
from dreamshard.config.help import format_config, format_help
from dreamshard.config.sources import leave_out, read_sources, split
from dreamshard.config.yaml12 import dump_yaml
from dreamshard.errors import ConfigError

__all__ = ["FolderName", "check", "dump_yaml", "flatten", "load_config", "to_dict", "to_yaml"]

T = TypeVar("T")
FolderName = Annotated[str, Field(min_length=1)]
"""Where something is written: no name would be the working folder."""


def load_config(cls: type[T], argv: Sequence[str], *, prog: str, description: str) -> T:
    """Build a configuration from the command line's arguments.

    Args:
        cls: configuration dataclass.
        argv: `--config FILE` (repeatable), dotted overrides (`--a.b 3` or `--a.b=3`, values read as
            YAML), `--print_config`, `--help` (`--help all`), `--debug`.
        prog: what the user typed to get here, such as "dreamshard encode".
        description: one sentence on what the command does.

    Raises:
        ConfigError: with every unknown key, wrong type and value out of range at once.
        SystemExit: after `--help` or `--print_config`, with code 0.
    """
    if {"-h", "--help"} & set(argv):
        full = "--help all" in " ".join(argv)
        sys.stdout.write(format_help(cls, prog=prog, description=description, full=full))
        raise SystemExit(0)
    options, flags, problems = split(schema_of(cls), argv)
    raw, unreadable = read_sources(schema_of(cls), options)
    config, wrong = check(cls, raw)
    if (kept := leave_out(schema_of(cls), raw, wrong, options)) is not raw:
        raw, (config, wrong) = kept, check(cls, kept)
    problems += unreadable + wrong
    if "print_config" in flags:
        problems = [problem for problem in problems if problem.got != NOTHING]
    if problems:
        raise ConfigError(problems)
    if "print_config" in flags:
        sys.stdout.write(format_config(cls, raw))
        raise SystemExit(0)
    assert config is not None
    return config


def to_dict(config: object) -> dict[str, object]:
    """Return a configuration as plain dicts, lists and scalars, fit for JSON and YAML."""
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"not a configuration dataclass: {type(config).__name__}")
    return to_jsonable_python(config)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def to_yaml(config: object) -> str:
    """Return a configuration as YAML that `--config` reads back to the same values."""
    return dump_yaml(to_dict(config))
