"""What counts as a try, and what is told of an error that came through Ray."""

from __future__ import annotations

import pytest

from dreamshard.errors import DataError
from pipeline.cluster.outcomes import Failed, Lost, Returned, Tries, one_line, unwrap


def test_only_what_may_be_due_to_the_work_counts() -> None:
    tries, error = Tries(), OSError("x")
    for event in (Failed(1, error), Lost(1, error), Lost(1, error, alone=False)):
        tries.note(event)
    tries.note(Returned(1, error))
    assert (tries.failures, tries.deaths) == (1, 1)


class Wrapped(Exception):
    def __init__(self, cause: object) -> None:
        super().__init__("Traceback of the actor")
        self.cause = cause


def test_our_own_error_is_found_however_deep_it_lies() -> None:
    ours, other = DataError("source: gone"), OSError("disk")
    assert unwrap(Wrapped(ours)) is ours
    started = RuntimeError("the actor died while it was made")
    started.__cause__ = Wrapped(ours)
    assert unwrap(started) is ours
    assert unwrap(Wrapped(other)) is other
    lost = Wrapped("no exception at all")
    assert unwrap(lost) is lost


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "OSError: "), ("a\n\n b \n\n", "OSError: b"), ("x" * 999, "OSError: " + "x" * 491)],
)
def test_an_error_in_a_line(text: str, line: str) -> None:
    assert one_line(OSError(text)) == line
