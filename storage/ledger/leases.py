"""Leases: which runs are alive, and the removal of what dead ones left behind.

All that is not final lies in the dataset's `staging/` folder: `<run>.lease` (touched by a
heartbeat), `<run>/` with that run's temporary files, `claims/` and `put/`. A run is dead when its
lease is gone, its process is gone (same host), or its lease was not touched for LEASE_TTL_S.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable

from dreamshard.errors import DataError
from storage.fs.local import STAGING, Files
from storage.fs.owners import is_dead, owner
from storage.ledger.publish import CLAIMS, claim, dead_claims
from storage.schema import check_name

LEASE_TTL_S = 30.0
BEAT_S = LEASE_TTL_S / 5
_ENDING = ".lease"
_SHARED = ("claims", "put")  # folders of staging/ that belong to no run

log = logging.getLogger(__name__)


class Lease:
    """Keep a run's right to its temporary files while it lives, as a context manager.

    Entering sweeps what dead runs left, and leaving removes this run's own leftovers.

    Args:
        run_id: name of the run; writers put their temporary files under it.
        sweep: removes what dead runs left.
    """

    def __init__(self, files: Files, run_id: str, *, sweep: Callable[[], int]) -> None:
        self.run_id = check_name(run_id, what="run_id")
        if run_id in _SHARED:
            raise DataError(f"run_id: got {run_id!r}, which is reserved. Choose another.")
        self._files, self._sweep = files, sweep
        self._key = f"{STAGING}/{run_id}{_ENDING}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self._sweep()
        if not self._put(if_absent=True):
            raise DataError(
                f"{self._files.path(self._key)}: got a live run of this name, allowed one at a "
                "time. Wait for it, or choose another run_id."
            )
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._files.remove(self._key)
        self._sweep()

    def _put(self, *, if_absent: bool) -> bool:
        record = json.dumps({"owner": owner(), "started": time.time()}).encode()
        return self._files.write(self._key, record, if_absent=if_absent, fsync=False)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self._files.touch(self._key)
            except FileNotFoundError:  # paused for long and swept: what was staged is lost
                log.warning("lease %s had lapsed; units in progress will be made again", self._key)
                with contextlib.suppress(DataError):
                    self._put(if_absent=False)
            except OSError as error:
                log.warning("lease %s cannot be renewed: %s", self._key, error)


def run_folder(run_id: str) -> str:
    """Return the folder of a run's temporary files."""
    return f"{STAGING}/{check_name(run_id, what='run_id')}"


def has_live_run(files: Files) -> bool:
    """Say whether a run, or another process that moves files, is at work on a dataset."""
    names = files.names(STAGING)
    leases = [f"{STAGING}/{name}" for name in names if name.endswith(_ENDING)]
    if leases:
        now = files.now()
        if any(not _lapsed(files, lease, now) for lease in leases):
            return True
    return len(files.names(CLAIMS)) > len(dead_claims(files))


def sweep(files: Files, *, restore: Callable[[int], int]) -> int:
    """Remove what dead runs left behind, and nothing of live ones.

    Args:
        files: the dataset's files.
        restore: called under a claim for each unit a run died on while moving its files; removes
            final files that no commit record covers and returns how many.

    Returns:
        How many files were removed.
    """
    entries = set(files.names(STAGING))
    if not entries:
        return 0
    removed = sum(_recover(files, key, unit, restore) for key, unit in dead_claims(files))
    now = files.now()
    runs = {name.removesuffix(_ENDING) for name in entries} - set(_SHARED)
    for run in runs:
        lease = f"{STAGING}/{run}{_ENDING}"
        if _lapsed(files, lease, now):
            removed += files.remove_tree(f"{STAGING}/{run}")
            removed += files.remove(lease)
    for name in files.names(f"{STAGING}/put"):
        key = f"{STAGING}/put/{name}"
        if is_dead(name.partition(".")[0]) or now - (files.modified(key) or now) > LEASE_TTL_S:
            removed += files.remove(key)
    files.prune(STAGING)
    return removed


def _recover(files: Files, key: str, unit: int, restore: Callable[[int], int]) -> int:
    with claim(files, unit):
        return restore(unit) + files.remove(key)


def _lapsed(files: Files, lease: str, now: float) -> bool:
    modified = files.modified(lease)
    if modified is None or now - modified > LEASE_TTL_S:
        return True
    with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
        return bool(is_dead(str(json.loads(files.read(lease, limit=1 << 16)).get("owner", ""))))
    return False
