"""Stop when asked, not in the middle of something."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

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
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if callable(handler) or isinstance(handler, signal.Handlers):
                _restore(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        name = signal.Signals(number).name
        log.warning("%s: %s; once more stops at once", name, self._doing)


def _restore(number: int, handler: Callable[..., object] | signal.Handlers) -> None:
    signal.signal(number, handler)
