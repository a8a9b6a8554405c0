"""What a stop does, and what is left of a library's own handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.learning.signals import STOPS, as_found


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def leave(number: int, frame: object) -> None:
    raise SystemExit(number)  # as Ray's does


def test_a_librarys_handler_goes_with_it() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with as_found() as interrupt:
        signal.signal(signal.SIGTERM, leave)
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_caller_does_of_a_stop_stays() -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with as_found() as interrupt:
        signal.signal(signal.SIGTERM, leave)
        interrupt()
        for number in STOPS:
            os.kill(os.getpid(), number)
    assert asked == [signal.SIGTERM] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
