"""When a unit has taken too long: as the user says, or by how long the others took."""

from __future__ import annotations

import statistics
from collections import deque

FACTOR = 10.0
"""Of the median time of a unit: then it is late, if the user gave no deadline."""
LEAST_S = 60.0
ENOUGH = 3
"""Units whose times must be known before one can be late by them."""
WINDOW = 101
"""Units the median is taken of: the latest ones."""
GRACE = 2.0
"""Times the deadline, until the actor that is late is taken for stuck and replaced."""


class Deadline:
    """Say how long a unit may take.

    Args:
        given_s: seconds; None for ten times the median, a minute at least.
    """

    def __init__(self, given_s: float | None = None) -> None:
        self._given_s = given_s
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._limit_s = float("inf") if given_s is None else given_s
        self._stale = False

    def note(self, seconds: float) -> None:
        """Take in how long a unit took."""
        self._recent.append(seconds)
        self._stale = True

    @property
    def limit_s(self) -> float:
        """Seconds after which a unit is late; infinite while too little is known."""
        if self._given_s is None and self._stale and len(self._recent) >= ENOUGH:
            self._limit_s = max(LEAST_S, FACTOR * statistics.median(self._recent))
            self._stale = False
        return self._limit_s
