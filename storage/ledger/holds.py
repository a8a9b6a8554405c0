"""Holds: who must not lose a dataset to `gc`; and removals, which look for them.

`pins/<name>.json` is a pin: it stays until it is taken off. `pins/readers/<run>~<owner>~<n>` is a
reader's: a heart beat touches it, and it ends with its process, like a lease.

A removal announces itself (`pins/removals/<owner>~<n>`) and then looks for pins, readers and runs;
these are put first and then look for removals, so that of the two at least one sees the other: the
removal gives way, the others wait for it to say so. It becomes final in one step, when its
announcement takes the place of `dataset.json`. Who finds the announcement of a removal that died
takes it away, and with it the removal's means to become final should it wake up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Iterator

from dreamshard.errors import DataError
from dreamshard.foreign.sealed import sealed_json
from dreamshard.owner.processes import owner
from storage.fs.local import STAGING, Files
from storage.ledger import evidence
from storage.ledger.description import KEY, REMOVED
from storage.schema import check_name

PINS = "pins"
READERS = f"{PINS}/readers"
REMOVALS = f"{PINS}/removals"
HOLD_TTL_S = 30.0
BEAT_S = HOLD_TTL_S / 5
TOMBSTONE = json.dumps({"format": REMOVED}).encode()
"""What `dataset.json` says while its folder is being removed."""

log = logging.getLogger(__name__)
_counter = itertools.count()
_run = ["reader"]


def as_name(text: str) -> str:
    """Return a text with all that a name may not have replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text).lstrip(".")[:80] or "run"


def name_readers(run: str) -> None:
    """Set the name under which this process's readers are listed from now on."""
    _run[0] = check_name(run, what="name of a reader")


# -- pins ------------------------------------------------------------------------------------------


def pin(files: Files, *, name: str, reason: str, again: bool = False) -> bool:
    """Keep a dataset from being removed until the pin of that name is taken off.

    Args:
        files: the dataset's files.
        name: of the pin.
        reason: why, for the record.
        again: write the record of a pin that is there anew.

    Returns:
        Whether the record was written: there was no pin of that name.

    Raises:
        DataError: if the dataset is gone, or goes meanwhile.
    """
    key = _pin_key(name)
    record = sealed_json({"reason": reason, "time": time.time()})
    made = files.write(key, record, if_absent=not again)
    check_kept(files, own=key if made else "")
    return made


def unpin(files: Files, *, name: str) -> bool:
    """Take a pin off; say whether there was one."""
    return files.remove(_pin_key(name))


def pins(files: Files) -> list[str]:
    """Return the names of a dataset's pins."""
    names = files.names(PINS)
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _pin_key(name: str) -> str:
    return f"{PINS}/{check_name(name, what='pin')}.json"


# -- readers ---------------------------------------------------------------------------------------


class Reading:
    """Hold a dataset for this process's readers, one file for all of them.

    Raises:
        DataError: if the dataset is being removed.
    """

    def __init__(self, files: Files) -> None:
        self._files, self.process = files, os.getpid()
        self.key = f"{READERS}/{_run[0]}~{owner()}~{next(_counter)}"
        self.users, self._end, self._ended = 0, _nothing, False
        self._beating = threading.RLock()  # a finaliser may end it in the middle of a beat
        try:
            files.write(self.key, b"{}", fsync=False)
            files.prune(STAGING)
        except (DataError, OSError) as error:
            log.warning("%s: `gc` cannot be told that it is read: %s", files.url, error)
            return
        check_kept(files, own=self.key)
        self._end = evidence.start_beating(self.beat, every_s=BEAT_S, name="reading")

    def beat(self) -> None:
        """Show that this process still reads."""
        with self._beating:
            if not self._ended:
                self._beat()

    def _beat(self) -> None:
        try:
            self._files.touch(self.key)
        except FileNotFoundError:  # paused for long, and taken for dead
            with contextlib.suppress(DataError, OSError):
                if not self._ended and self._files.size(KEY) is not None:
                    self._files.write(self.key, b"{}", fsync=False)
        except OSError as error:
            log.warning("%s: the hold on it cannot be renewed: %s", self._files.url, error)

    def end(self) -> None:
        """Stop holding the dataset; a process forked from the one that did leaves it alone."""
        if self._end is _nothing or self.process != os.getpid():
            return
        self._end()  # not waited for: this may run in a finaliser, in whatever thread
        with self._beating, contextlib.suppress(DataError, OSError):
            self._ended = True
            self._files.remove(self.key)
            self._files.prune(PINS)


def _nothing() -> object:
    return None


_readings: dict[str, Reading] = {}
_guard = threading.RLock()  # a finaliser may come in between, in the same thread


def hold_for(reader: object, files: Files) -> None:
    """Hold a dataset as long as an object lives, or this process.

    Raises:
        DataError: if the dataset is being removed.
    """
    with _guard:
        reading = _readings.get(files.url)
        if reading is None or reading.process != os.getpid():
            reading = _readings[files.url] = Reading(files)
        reading.users += 1
    weakref.finalize(reader, _let_go, files.url, reading)


def _let_go(url: str, reading: Reading) -> None:
    """Count one reader less, in a thread that may wait.

    A finaliser runs in any thread, that of an object store's event loop among them: there nothing
    may be asked of the store, and whoever has the guard may be waiting for that loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _leave(url, reading)
    else:
        threading.Thread(target=_leave, args=(url, reading), name="reading ends").start()


def _leave(url: str, reading: Reading) -> None:
    with _guard:
        reading.users -= 1
        if reading.users == 0:
            if _readings.get(url) is reading:
                del _readings[url]
            reading.end()


def readers(files: Files) -> list[str]:
    """Return the names of the readers that are not known to be dead."""
    keys = [f"{READERS}/{name}" for name in files.names(READERS)]
    return sorted({_parts(k)[0] for k in keys if _state(files, k) != "dead"})


def unknown(files: Files) -> bool:
    """Say whether there are readers or removals that were not watched for long enough to tell."""
    folders = (READERS, REMOVALS)
    keys = [f"{folder}/{name}" for folder in folders for name in files.names(folder)]
    states = [_state(files, key) for key in keys]  # each is looked at: that is what watching means
    return "unknown" in states


def sweep(files: Files) -> int:
    """Remove the holds of readers that died; return how many."""
    keys = [f"{READERS}/{name}" for name in files.names(READERS)]
    return sum(files.remove(key) for key in keys if _state(files, key) == "dead")


# -- removals --------------------------------------------------------------------------------------


@contextlib.contextmanager
def removal(files: Files) -> Iterator[str]:
    """Announce that a dataset is to be removed; what holds it is to be looked for after that."""
    key = f"{REMOVALS}/{owner()}~{next(_counter)}"

    def beat() -> None:
        with contextlib.suppress(OSError):
            files.touch(key)

    files.write(key, TOMBSTONE, fsync=False)
    try:
        with evidence.beating(beat, every_s=BEAT_S, name="removal"):
            yield key
    finally:
        files.remove(key)


def make_final(files: Files, removal_key: str) -> bool:
    """Make of a dataset one that is gone, in one step; False if somebody has stopped the removal.

    An object store has no such step: there the announcement is looked for, and then used.
    """
    try:
        if files.renames:
            files.rename(removal_key, KEY)
            return True
        return files.size(removal_key) is not None and files.write(KEY, TOMBSTONE)
    except FileNotFoundError:
        return False


def check_kept(files: Files, *, own: str = "") -> None:
    """Wait until no removal of a dataset is under way; to be called by who holds it since just now.

    Args:
        files: the dataset's files.
        own: the file that holds it; taken away if the dataset is gone.

    Raises:
        DataError: if the dataset is gone.
    """
    while names := files.names(REMOVALS):
        for key in (f"{REMOVALS}/{name}" for name in names):
            if _state(files, key) == "dead":
                files.remove(key)
        if files.names(REMOVALS):
            evidence.sleep(files.poll_s)
    if is_gone(files):
        if own:
            files.remove(own)
            files.prune("")
        raise DataError(
            f"{files.url}: got a dataset that `dreamshard gc` has removed or is removing, allowed "
            "one that stays. Run `dreamshard gc ROOT --yes` if it was stopped on the way, then the "
            "command that made the dataset."
        )


def is_gone(files: Files) -> bool:
    """Say whether a folder is no dataset any more."""
    size = files.size(KEY)
    if size is None:
        return True
    try:
        return size == len(TOMBSTONE) and files.read(KEY) == TOMBSTONE
    except FileNotFoundError:
        return True


def _parts(key: str) -> tuple[str, str]:
    """Split a file's name into the run and the owner; a removal has no run."""
    parts = key.rpartition("/")[2].split("~")
    return ("", parts[0]) if len(parts) == 2 else (parts[0], parts[1] if len(parts) > 2 else "")


def _state(files: Files, key: str) -> evidence.State:
    watch = evidence.watch_of(files)
    return watch.state(files, key, ttl_s=HOLD_TTL_S, owner=_parts(key)[1])
