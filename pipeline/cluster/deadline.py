"""When work has taken too long: as the user says, or by how long the others took."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 33
"""Times the median is taken of: the latest ones."""


class Deadline:
    """Say how long a unit or a micro-batch may take.

    Args:
        given_s: seconds; None for `factor` times the median.
        factor: of the median time.
        least_s: at least that, whatever the median is (seconds).
        more_s: added to the factor's share (seconds).
        first_s: while fewer than `enough` times are known (seconds).
        enough: times that must be known (count).
    """

    def __init__(
        self,
        given_s: float | None = None,
        *,
        factor: float = 10.0,
        least_s: float = 60.0,
        more_s: float = 0.0,
        first_s: float = float("inf"),
        enough: int = 3,
    ) -> None:
        self._given_s, self._factor, self._enough = given_s, factor, enough
        self._least_s, self._more_s = least_s, more_s
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._limit_s = first_s if given_s is None else given_s
        self._stale = False

    def note(self, seconds: float) -> None:
        """Take in how long one took."""
        self._recent.append(seconds)
        self._stale = True

    @property
    def limit_s(self) -> float:
        """Seconds after which it is late."""
        if self._given_s is None and self._stale and len(self._recent) >= self._enough:
            usual = self._factor * statistics.median(self._recent)
            self._limit_s = max(self._least_s, self._more_s + usual)
            self._stale = False
        return self._limit_s
