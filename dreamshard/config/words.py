"""Spell settings as the words of a command line, for the commands that are proposed."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from dreamshard.config.reads import default_of
from dreamshard.config.yaml12 import dump_yaml


def changed_words(config: Any, prefix: str) -> list[str]:
    """Return `--prefix.name value` for every setting that is not its class's default.

    Args:
        config: a configuration dataclass without others in it.
        prefix: dotted key it stands under; "" for none.
    """
    usual, words = default_of(type(config)), []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value != getattr(usual, item.name):
            key = f"{prefix}.{item.name}" if prefix else item.name
            words += [f"--{key}", value if isinstance(value, str) else spelled(value)]
    return words


def spelled(value: Any) -> str:
    """Return a value as it is typed: YAML in one line, lists without spaces."""
    if isinstance(value, list) and all(isinstance(item, (int, str)) for item in value):
        return f"[{','.join(map(str, value))}]"
    return dump_yaml(value, one_line=True)


def command_line(*words: str) -> str:
    """Return a command for a shell, quoted where a shell asks for it; `[a,b]` stays readable."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    plain = word.strip("[]").replace(",", "")
    is_list = word[:1] == "[" and word[-1:] == "]" and shlex.quote(plain) == plain
    return word if is_list and "*" not in word else shlex.quote(word)
