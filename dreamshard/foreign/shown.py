"""Names and texts are data: on a terminal they show what they hold, and do nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
    # Joiners shape letters and pictures; beside ASCII they only hide.
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
"""Terminal escapes and other controls, marks that turn text round, halves of letters, and letters
that nobody sees, by which two names look alike; not tabs and line ends."""


def plain(text: str) -> str:
    r"""Return a text with every character that acts instead of showing spelt out, as `\x1b`."""
    return _ACTIVE.sub(_spelt, text)


def one_line(text: str) -> str:
    r"""Return a text that shows and is one line; its line ends are spelt out, as `\x0a`."""
    return re.sub("[\t\n]", _spelt, plain(text))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PlainStream:
    """Write to a stream what `plain` lets through.

    Args:
        raw: the stream; what draws on a terminal itself, such as a progress bar, takes it.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write a text; a carriage return at its start begins a line anew, as bars do."""
        start = "\r" if text.startswith("\r") else ""
        self.raw.write(start + plain(text[len(start) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts one after another."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def drawable(stream: TextIO) -> TextIO:
    """Return the stream that lets escapes through, for what draws with escapes of its own."""
    return cast("TextIO", getattr(stream, "raw", stream))


@contextmanager
def plain_streams() -> Iterator[None]:
    """Let standard output and standard error show texts and never act on them."""
    before = sys.stdout, sys.stderr
    out, err = (s if isinstance(s, PlainStream) else PlainStream(s) for s in before)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == (out, err):
            sys.stdout, sys.stderr = before
