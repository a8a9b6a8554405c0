"""Stop when asked, not in the middle of something."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send."""

log = logging.getLogger(__name__)


class StopSignal:
    """Take Ctrl-C and SIGTERM as a wish to stop, as a context manager; called, it tells of it.

    The first one is noted, and whoever works finishes what it has begun. The second one raises
    KeyboardInterrupt at once. Outside the main thread Python has no signals: then it never tells.
    Enter it after `ray.init`, which puts its own handler in place.

    Args:
        doing: what comes first, for the line that the first signal logs.
    """

    def __init__(self, doing: str = "finishing the units in flight") -> None:
        self._asked, self._doing = False, doing
        self._before: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        """Tell whether it was asked to stop."""
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _restore(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        name = signal.Signals(number).name
        log.warning("%s: %s; once more stops at once", name, self._doing)


@contextmanager
def as_found() -> Iterator[Callable[[], None]]:
    """Leave the handlers as they were found, whatever a library puts in their place.

    Yields what to call once the library has put its own in place: SIGTERM interrupts then as Ctrl-C
    does, unless it did something else before. Ray's leaves with the signal's number as exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def interrupt() -> None:
        own = before[signal.SIGTERM]
        _restore(signal.SIGTERM, signal.default_int_handler if own is signal.SIG_DFL else own)

    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            _restore(number, handler)


def _restore(number: int, handler: object) -> None:
    if callable(handler) or isinstance(handler, signal.Handlers):  # else one that is not Python's
        signal.signal(number, handler)
