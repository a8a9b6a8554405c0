"""Tell whether others live by what they do, and show them that this process does.

Who holds a claim, a lease or a pin touches its file again and again (`beating`). Who wants to know
whether it is still held watches the file: what did not change for a span of the watcher's own
monotonic clock belongs to nobody any more. No clock is ever compared with another's, nor with a
file's time: a clock that is set, or a file server's that goes wrong, takes nothing from anybody.
Processes of the watcher's own host are asked for directly, and known to be dead at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from dreamshard.owner.processes import is_dead
from storage.fs.local import Files

State = Literal["alive", "dead", "unknown"]
_MAX_SEEN = 1 << 14


def clock() -> float:
    """Return seconds that only pass while this machine runs: what a watcher goes by."""
    return time.monotonic()


def elapsed() -> float:
    """Return seconds that pass while this machine is suspended, too: what a holder goes by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _HAS_BOOTTIME else time.monotonic()


_HAS_BOOTTIME = hasattr(time, "CLOCK_BOOTTIME")


class Watch:
    """Remember when the files of a dataset that others hold were last seen to change."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float, bool]] = {}  # key: stamp, since when, changed
        self._lock = threading.Lock()

    def state(self, files: Files, key: str, *, ttl_s: float, owner: str) -> State:
        """Say what is known of a file's holder: unknown until it was watched for long enough.

        Args:
            files: where it lies.
            key: the file.
            ttl_s: it is dead if nothing changed for so long.
            owner: who made the file, as `owners.owner` says it; "" if that is not known.
        """
        stamp = files.stamp(key)
        with self._lock:
            if stamp is None:
                self._seen.pop(key, None)
                return "dead"
            gone = is_dead(owner)
            if gone:
                return "dead"
            now = clock()
            before = self._seen.get(key)
            if before is None or before[0] != stamp:
                while len(self._seen) >= _MAX_SEEN:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[key] = before = (stamp, now, before is not None)
            if now - before[1] >= ttl_s:
                return "dead"
            return "alive" if before[2] or gone is False else "unknown"


_watches: dict[str, Watch] = {}


def watch_of(files: Files) -> Watch:
    """Return this process's watch of a dataset: all its looks count together."""
    return _watches.setdefault(files.url, Watch())


def start_beating(
    beat: Callable[[], object], *, every_s: float, name: str
) -> Callable[[], threading.Thread]:
    """Call something again and again from a thread of its own; return what ends that."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            beat()

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()

    def end() -> threading.Thread:
        stop.set()
        return thread

    return end


@contextlib.contextmanager
def beating(beat: Callable[[], object], *, every_s: float, name: str) -> Iterator[None]:
    """Call something again and again while the context lasts, and not after it."""
    end = start_beating(beat, every_s=every_s, name=name)
    try:
        yield
    finally:
        end().join()


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)
