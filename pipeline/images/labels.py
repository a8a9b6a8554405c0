"""Labels as a source holds them, made into class numbers once, when the source is listed.

Encoding needs no labels: what cannot be a class number is refused here, before anything runs, with
the setting that leaves labels out; a single value that is none costs its own sample.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem

NO_LABEL = -1
UNKNOWN = -2
SHOWN = 10
"""Classes named in a message (count)."""
LARGEST = 2**63 - 1
WHOLE = re.compile(r"[+-]?[0-9]+")
"""A text that is a number. Python's own rule takes `1_0` for ten, and digits of other scripts."""
MAX_CLASSES = 1 << 20
"""Different texts in a column beyond which it is taken for names or captions, not classes."""


@dataclass
class Labels:
    """Class numbers of N samples, and what the numbers are called.

    Args:
        numbers: int64 (N,), -1 where there is none.
        classes: names by number; empty where the source has numbers only.
        errors: what is wrong with a sample's label, by row.
    """

    numbers: np.ndarray
    classes: tuple[str, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """Say what a class is called; its number where it has no name."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)

    @property
    def digest(self) -> str:
        """SHA-256 of the class names and the numbers, hex."""
        sha = hashlib.sha256("\0".join(self.classes).encode() + b"\n")
        sha.update(np.ascontiguousarray(self.numbers, "<i8").tobytes())
        return sha.hexdigest()


def read_labels(values: Sequence[object], *, where: str, way_out: str) -> Labels:
    """Make class numbers of a column of values.

    Whole numbers (and floats and texts that are whole numbers, and booleans) are taken as they are;
    missing values (None, NaN, blank text) are -1. Where no value is a number, texts are classes,
    numbered in sorted order, without blanks around them. One text among numbers, or a number beyond
    int64, is an error of its sample.

    Args:
        values: N values, one per sample.
        where: names the column, such as `column label of a.parquet`.
        way_out: the setting that leaves labels out, such as `--source.label_column ''`.

    Raises:
        ConfigError: lists, fractions, too many different texts, or two that are one number (`01`
            and `1`).
    """
    numbers = np.full(len(values), NO_LABEL, np.int64)
    texts: dict[int, str] = {}
    errors: dict[int, str] = {}
    written: dict[int, str] = {}
    numeric = False
    for row, value in enumerate(values):
        if isinstance(value, bytes | str):
            value = _text(value)
        if value is None or value == "" or (isinstance(value, float) and value != value):
            continue
        number = _number(value, where, way_out)
        numeric |= number is not None
        if isinstance(value, str) and number is not None:
            _check_spelling(written.setdefault(number, value), value, where, way_out)
        if number is None:
            texts[row] = str(value)
        elif abs(number) > LARGEST:
            errors[row] = f"label {number!s:.40} is beyond 64 bits"
        else:
            numbers[row] = number
    if texts and not numeric:
        return _classes(numbers, texts, errors, where, way_out)
    for row, text in texts.items():
        errors[row] = f"label {text!r:.60} is no number, as the others of {where} are"
    return Labels(numbers, errors=errors)


def _text(value: bytes | str) -> str:
    """Return a text without blanks around it; editors of some systems begin one with a mark."""
    text = value.decode("utf-8-sig", "replace") if isinstance(value, bytes) else value
    return text.strip()


def _number(value: object, where: str, way_out: str) -> int | None:
    """Return a value as a whole number, None if it is a text of another kind."""
    if isinstance(value, bool | int | np.integer | np.bool_):
        return int(value)
    if isinstance(value, float | np.floating):
        if float(value).is_integer():
            return int(value)
        raise _refusal(where, f"the fraction {value}", way_out)
    if isinstance(value, str):
        return int(value) if len(value) < 4000 and WHOLE.fullmatch(value) else None
    raise _refusal(where, f"{type(value).__name__} values", way_out)


def _check_spelling(first: str, value: str, where: str, way_out: str) -> None:
    """Refuse a number that is written in two ways: as classes they would be two."""
    if first != value:
        got = f"the texts {first!r} and {value!r}, which are one number,"
        raise _refusal(where, got, way_out)


def _classes(
    numbers: np.ndarray, texts: dict[int, str], errors: dict[int, str], where: str, way_out: str
) -> Labels:
    names = sorted(set(texts.values()))
    if len(names) > MAX_CLASSES:
        raise _refusal(where, f"{len(names):,} different texts", way_out)
    table = {name: number for number, name in enumerate(names)}
    for row, text in texts.items():
        numbers[row] = table[text]
    return Labels(numbers, tuple(names), errors)


def _refusal(where: str, got: str, way_out: str) -> ConfigError:
    allowed = "whole numbers, or texts that are class names"
    hint = f"Encoding needs no labels: leave them out with {way_out}, or name another column."
    return ConfigError(Problem("source.label_column", f"{got} in {where}", allowed, hint))


def renumbered(labels: Labels, *, like: Labels, key: str, other: str) -> Labels:
    """Give classes the numbers that those of the same name have in another source.

    Class numbers of texts and folders are places in a sorted list, and mean nothing beside another
    list. A class without a name is called by its number; among equal names the n-th of one source
    is the n-th of the other.

    Args:
        labels: of the source to judge on.
        like: those of the source to learn from, whose numbers count.
        key: dotted key of the first, for messages.
        other: dotted key of the second.

    Raises:
        DataError: a class that no sample of the other source has, named.
    """
    table = labels.numbers
    if labels.classes or like.classes:
        plain = not labels.classes or not like.classes
        known = {name: number for number, name in _names(like, plain=plain).items()}
        own = _names(labels, plain=plain)
        classes, inverse = np.unique(table, return_inverse=True)
        numbers = [known.get(own.get(n), UNKNOWN) if n >= 0 else n for n in classes.tolist()]
        table = np.array(numbers, np.int64)[inverse.reshape(-1)]
    learnt = np.unique(like.numbers[like.numbers >= 0])
    unknown = np.unique(labels.numbers[(labels.numbers >= 0) & ~np.isin(table, learnt)])
    if len(unknown):
        theirs = _listed(like.name(number) for number in learnt.tolist())
        ours = _listed(labels.name(number) for number in unknown.tolist())
        kinds = ""
        if bool(labels.classes) != bool(like.classes):
            kinds = " One source has names of classes, the other numbers: give both alike."
        raise DataError(
            f"{key}: got classes {ours} that no image of {other} has, allowed {theirs}. Leave "
            f"those images out, or add images of their classes to {other}.{kinds}"
        )
    return Labels(table, like.classes, labels.errors)


def absent(labels: Labels, *, like: Labels) -> list[str]:
    """Name the classes that another source has samples of and this one, of the same table, not."""
    missing = np.setdiff1d(like.numbers[like.numbers >= 0], labels.numbers)
    return [like.name(number) for number in missing.tolist()]


def _names(labels: Labels, *, plain: bool) -> dict[int, object]:
    """Return what each number is called; plain: whole-number names as numbers, where all differ."""
    if not labels.classes:
        return {int(number): int(number) for number in np.unique(labels.numbers) if number >= 0}
    met: dict[str, int] = {}
    names: dict[int, object] = {}
    for number, written in enumerate(labels.classes):
        name = unicodedata.normalize("NFC", written)  # systems write é as one letter or as two
        met[name] = met.get(name, -1) + 1
        names[number] = (name, met[name])
    if plain:
        whole = {n: int(name) for n, name in enumerate(labels.classes) if _is_whole(name)}
        if len(set(whole.values())) == len(names):
            return dict(whole)
    return names


def _is_whole(name: str) -> bool:
    return name.strip().isdecimal() and len(name) < 20


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
