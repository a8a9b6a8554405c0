"""Custom metrics for Ray's dashboard and Prometheus; where there is no Ray, nobody counts.

Ray exports them as `ray_dreamshard_images` and so on, tagged with what the process does (`part`:
offline, online) and the run's name. Counters add up over processes; gauges are one per process.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from typing import Any, Literal

from dreamshard.foreign import trusted

Part = Literal["offline", "online"]

PERIOD_S = 1.0
"""Least seconds between two settings of the gauges."""
COUNTERS = {
    "dreamshard_images": "Samples made.",
    "dreamshard_bytes": "Bytes stored (offline) or sent (online).",
    "dreamshard_retries": "Units or batches that had to be made again.",
}
GAUGES = {
    "dreamshard_busy_share": "Share of the time in which the teacher computes, 0 .. 1.",
    "dreamshard_write_wait_s": "Seconds per second that the teacher waits for the writer.",
}


@functools.cache
def _metric(name: str) -> Any:
    """Make a metric once per process; a second one of that name would replace it."""
    kinds = trusted.module("ray.util.metrics")
    if name in COUNTERS:
        return kinds.Counter(name, description=COUNTERS[name], tag_keys=("part", "run"))
    return kinds.Gauge(name, description=GAUGES[name], tag_keys=("part", "run"))


class Metrics:
    """Report what a process does; safe to use from several threads.

    Args:
        part: offline or online.
        run: name of the run, to tell it from others on the same cluster.
    """

    def __init__(self, part: Part, run: str) -> None:
        self._tags = {"part": part, "run": run}
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._busy_s = self._wait_s = 0.0

    def count(self, *, images: int = 0, bytes: int = 0, retries: int = 0) -> None:
        """Add to the counters (counts; bytes)."""
        amounts = {"images": images, "bytes": bytes, "retries": retries}
        for name, amount in amounts.items():
            if amount > 0 and _in_ray():
                _metric(f"dreamshard_{name}").inc(amount, tags=self._tags)

    def spend(self, *, busy_s: float, write_wait_s: float = 0.0) -> None:
        """Count time spent, and set the gauges once a period has passed.

        Args:
            busy_s: seconds the teacher computed since the last call.
            write_wait_s: seconds it waited for the writer since then.
        """
        with self._lock:
            self._busy_s += busy_s
            self._wait_s += write_wait_s
            passed = time.monotonic() - self._since
            if passed < PERIOD_S:
                return
            busy, wait = self._busy_s / passed, self._wait_s / passed
            self._since, self._busy_s, self._wait_s = time.monotonic(), 0.0, 0.0
        if _in_ray():
            _metric("dreamshard_busy_share").set(min(1.0, busy), tags=self._tags)
            _metric("dreamshard_write_wait_s").set(wait, tags=self._tags)


def _in_ray() -> bool:
    """Say whether this process belongs to a cluster; Ray is not imported to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and getattr(ray, "is_initialized", lambda: False)()
