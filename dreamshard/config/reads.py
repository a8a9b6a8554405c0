"""Refuse settings that what was chosen does not read.

A configuration declares beside its choices what each of them reads: a class attribute `reads`, a
tuple of `Table` (one row of settings per value of a choice) and `When` (a condition). Settings that
no row and no condition names are always read. `unread` compares what was given with the defaults
of its place, so that a whole configuration that was printed reads back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self

from dreamshard.errors import Problem

OWN = "module:Class"
"""Row of a choice that is an import path of the user's own."""
MAX_SHOWN = 60


@dataclass(frozen=True)
class Table:
    """Say which settings each value of a choice reads.

    Args:
        choice: name of the setting that chooses; of a list, every entry counts.
        rows: value, or `OWN`, to the settings it reads, by name, dotted below a section.
    """

    choice: str
    rows: Mapping[object, str]

    @property
    def governed(self) -> list[str]:
        """Settings that some value reads."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row.split()))

    def read(self, config: object) -> set[str]:
        """Return the governed settings that this configuration's choice reads."""
        chosen = attrgetter(self.choice)(config)
        values = chosen if isinstance(chosen, list | tuple) else [chosen]
        rows = [self.rows.get(OWN if ":" in str(value) else value, "") for value in values]
        return {name for row in rows for name in row.split()}

    def why(self, config: object, name: str) -> tuple[str, str]:
        """Say what was chosen, and what would read a setting."""
        readers = [str(value) for value, row in self.rows.items() if name in row.split()]
        chosen = f"with {self.choice} {_show(attrgetter(self.choice)(config))}"
        return chosen, f"{self.choice} {' | '.join(readers)}"


@dataclass(frozen=True)
class When:
    """Say under which condition some settings are read.

    Args:
        words: the condition, as it follows "it is read".
        names: the settings, as in a table's row.
        test: the condition, of the configuration; None where these are never read here.
        choice: name of the setting that decides it, if it is one of the same configuration.
    """

    words: str
    names: str
    test: Callable[[Any], bool] | None = None
    choice: str = ""

    @property
    def governed(self) -> list[str]:
        """Settings that the condition is about."""
        return self.names.split()

    def read(self, config: object) -> set[str]:
        """Return those settings where the condition holds, none where it does not."""
        return set(self.governed) if self.test is not None and self.test(config) else set()

    def why(self, config: object, name: str) -> tuple[str, str]:
        """Say that the condition does not hold, and what it is."""
        return "here", self.words


Rule = Table | When


@dataclass(frozen=True)
class Unread(Problem):
    """Describe a setting that was given and that nothing reads; `choice` is what decides that."""

    choice: str = ""

    def under(self, prefix: str) -> Self:
        """Return the same problem with its keys below another."""
        choice = self.choice and f"{prefix}.{self.choice}"
        return dataclasses.replace(super().under(prefix), choice=choice)


def rules_of(cls: type) -> list[Rule]:
    """Return what a configuration and those it inherits from declare."""
    return [rule for base in cls.__mro__ for rule in base.__dict__.get("reads", ())]


def unread(config: object, default: object = None) -> Iterator[Unread]:
    """Yield the settings that were given and that nothing reads.

    Args:
        config: a configuration with `reads`.
        default: what it is where nothing is given; None: as its class says.
    """
    seen: set[str] = set()
    default = default_of(type(config)) if default is None else default
    for rule in rules_of(type(config)):
        for name in sorted(set(rule.governed) - rule.read(config)):
            pair = attrgetter(name)(config), attrgetter(name)(default)
            for key, got, usual in _given(name, *pair):
                if key not in seen:
                    seen.add(key)
                    chosen, readers = rule.why(config, name)
                    hint = f"It is read {_with(readers)}: leave it out, or set that."
                    allowed = f"{_show(usual)} {chosen}, which does not read it"
                    yield Unread(key, _show(got), allowed, hint, choice=rule.choice)


def default_of(cls: type) -> Any:
    """Return a configuration in which nothing was given; required settings are None."""
    given: dict[str, Any] = {
        item.name: None
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    return cls(**given)


def _given(key: str, got: Any, usual: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting at or below a key that is not as usual."""
    if dataclasses.is_dataclass(got) and type(got) is type(usual):
        for item in dataclasses.fields(got):
            below = getattr(got, item.name), getattr(usual, item.name)
            yield from _given(f"{key}.{item.name}", *below)
    elif got != usual:
        yield key, got, usual


def _with(readers: str) -> str:
    return readers if readers.startswith(("with", "by", "where", "when")) else f"with {readers}"


def _show(value: object) -> str:
    if isinstance(value, str):
        return value or "nothing"
    text = json.dumps(value, default=dataclasses.asdict)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
