"""Read configuration dataclasses from YAML files and dotted overrides.

A configuration is a plain `@dataclass(kw_only=True)`, nested as needed. The docstring literal under
a field is its help; `Annotated[int, Field(ge=0, le=999)]` gives its range; a method
`problems(self) -> list[Problem]` checks what one field alone cannot tell. Layers, later ones win:
the defaults, each `--config FILE` in turn, the overrides. Nested configurations merge key by key;
lists and free mappings given by a file replace what was there; `--a.b.key value` sets one key.

The reading order of this folder: sources (argv and YAML to one dict), check (dict to dataclass, or
all problems at once), wording (what a problem says), types (what the annotations say), help
(`--help` and `--print_config`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from dreamshard.config.check import ask, check
from dreamshard.config.sources import defaults, read_sources
from dreamshard.config.types import plain
from dreamshard.config.wording import NOTHING
from dreamshard.config.yaml12 import dump_yaml
from dreamshard.errors import ConfigError

__all__ = ["ask", "check", "dump_yaml", "load_config", "to_dict", "to_yaml"]

T = TypeVar("T")


def load_config(cls: type[T], argv: Sequence[str], *, prog: str, description: str) -> T:
    """Build a configuration from the command line's arguments.

    Args:
        cls: configuration dataclass.
        argv: `--config FILE` (repeatable), dotted overrides (`--a.b 3` or `--a.b=3`, values read as
            YAML), `--print_config`, `--help`, `--debug`.
        prog: what the user typed to get here, such as "dreamshard encode".
        description: one sentence on what the command does.

    Raises:
        ConfigError: with every unknown key, wrong type and value out of range at once.
        SystemExit: after `--help` or `--print_config`, with code 0.
    """
    if "--help" in argv or "-h" in argv:
        from dreamshard.config.help import format_help  # slow to import, and rarely needed

        text = format_help(cls, defaults(cls), prog=prog, description=description)
        sys.stdout.write(text)
        raise SystemExit(0)
    sources = read_sources(cls, argv)
    config, problems = check(cls, sources.raw)
    problems = sources.problems + problems
    if sources.print_config:
        problems = [problem for problem in problems if problem.got != NOTHING]
    if problems:
        raise ConfigError(problems)
    if sources.print_config:
        from dreamshard.config.help import format_config

        sys.stdout.write(format_config(cls, sources.raw))
        raise SystemExit(0)
    assert config is not None
    return config


def to_dict(config: object) -> dict[str, object]:
    """Return a configuration as plain dicts, lists and scalars, fit for JSON and YAML."""
    values = plain(config)
    if not isinstance(values, dict):
        raise TypeError(f"not a configuration dataclass: {type(config).__name__}")
    return values


def to_yaml(config: object) -> str:
    """Return a configuration as YAML that `--config` reads back to the same values."""
    return dump_yaml(to_dict(config))
