"""How long work may take, by what others took."""

from __future__ import annotations

from pipeline.cluster.deadline import Deadline


def test_the_deadline_follows_the_median() -> None:
    deadline = Deadline()
    for seconds in (30.0, 20.0):
        deadline.note(seconds)
    assert deadline.limit_s == float("inf")
    deadline.note(1000.0)
    assert deadline.limit_s == 300.0
    for _ in range(200):
        deadline.note(0.1)
    assert deadline.limit_s == 60.0 and Deadline(7.0).limit_s == 7.0


def test_the_first_ones_have_a_limit_of_their_own_and_the_share_is_added_to() -> None:
    deadline = Deadline(factor=4.0, least_s=0.0, more_s=0.5, first_s=60.0, enough=1)
    assert deadline.limit_s == 60.0
    for seconds, limit in ((0.25, 1.5), (0.75, 2.5)):
        deadline.note(seconds)
        assert deadline.limit_s == limit
