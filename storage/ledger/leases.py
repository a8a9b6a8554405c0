"""Leases: which runs are alive, and the removal of what dead ones left behind.

All that is not final lies in the dataset's `staging/` folder: `<run>.lease` (touched by a
heartbeat), `<run>/` with that run's temporary files, `claims/` and `put/`. A run is dead when its
lease is gone, its process is gone (same host), or somebody has watched its lease for LEASE_TTL_S of
his own clock and it did not change (`evidence`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence

from dreamshard.errors import DataError
from dreamshard.foreign.text import parse_json
from dreamshard.owner.processes import owner
from storage.fs.local import STAGING, Files
from storage.fs.proof import MEANING, Proof, explain
from storage.ledger import evidence, holds
from storage.ledger.publish import (
    CLAIMS,
    DEAD,
    UNKNOWN,
    Claim,
    claim,
    dead_claims,
    unknown_claims,
)
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
        self._beating = contextlib.ExitStack()
        self._proof: Proof = "proved"

    def __enter__(self) -> Lease:
        self._sweep()
        self._proof = self._files.proof(again=True)  # settings of a store change
        while not self._put(if_absent=True):
            state = _state(self._files, self._key)
            if state == "alive":
                raise DataError(
                    f"{self._files.path(self._key)}: got a live run of this name, allowed one at a "
                    "time. Wait for it, or choose another run_id."
                )
            if state == DEAD:
                self._sweep()
            else:
                evidence.sleep(self._files.poll_s)
        # From here on: looking about may take longer than a lease lasts that nobody renews.
        self._beating.enter_context(evidence.beating(self._beat, every_s=BEAT_S, name="lease"))
        try:
            holds.check_kept(self._files, own=self._key)
            self._check_alone()
        except BaseException:
            self._beating.close()
            self._files.remove(self._key)
            self._files.prune(STAGING)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._beating.close()
        self._files.remove(self._key)
        self._sweep()

    def _put(self, *, if_absent: bool) -> bool:
        alone = self._proof != "proved"
        record = json.dumps({"owner": owner(), "started": time.time(), "alone": alone}).encode()
        return self._files.write(self._key, record, if_absent=if_absent, fsync=False)

    def _check_alone(self) -> None:
        """Where the store does not say who was first, let one run write at a time.

        Raises:
            DataError: if there is another one; of two that start at once both may be refused.
        """
        others = [key for key in _leases(self._files) if key != self._key]
        alone = self._proof != "proved"
        if alone:
            log.warning(
                "%s: conditional put is not proved (%s): one run at a time may write there",
                self._files.url,
                MEANING[self._proof],
            )
        for key in others:
            if not alone and not _record(self._files, key).get("alone"):
                continue
            while _state(self._files, key) == UNKNOWN:
                evidence.sleep(self._files.poll_s)
            if _state(self._files, key) != DEAD:
                self._files.remove(self._key)
                raise explain(self._files.url, self._proof if alone else "ignored")

    def _beat(self) -> None:
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
    """Say whether a run, or another process that moves files, is at work, or may well be."""
    if any(_state(files, lease) != DEAD for lease in _leases(files)):
        return True
    return len(files.names(CLAIMS)) > len(dead_claims(files))


def watch_until_known(datasets: Sequence[Files]) -> None:
    """Watch the leases, claims and readers of other hosts until it is known which are dead.

    Takes LEASE_TTL_S where there are dead ones, no time where there are none of other hosts.
    """

    def unknown(files: Files) -> bool:
        leases = [_state(files, lease) == UNKNOWN for lease in _leases(files)]
        return any((*leases, unknown_claims(files), holds.unknown(files)))  # each is looked at

    watched = [files for files in datasets if unknown(files)]
    if watched:
        log.info("watching for up to %.0f s whether runs of other hosts live", LEASE_TTL_S)
    while watched:
        evidence.sleep(max(files.poll_s for files in watched))
        watched = [files for files in watched if unknown(files)]


def sweep(files: Files, *, restore: Callable[[Claim], int]) -> int:
    """Remove what dead runs left behind, and nothing of live ones or of those not known to be dead.

    Args:
        files: the dataset's files.
        restore: called with a claim on each unit that a run died on while moving its files; removes
            final files that no commit record covers and returns how many.

    Returns:
        How many files were removed.
    """
    removed, entries = holds.sweep(files), set(files.names(STAGING))
    if not entries:
        return removed
    removed += sum(_recover(files, key, unit, restore) for key, unit in dead_claims(files))
    runs = {name.removesuffix(_ENDING) for name in entries} - set(_SHARED)
    for run in runs:
        lease = f"{STAGING}/{run}{_ENDING}"
        if _state(files, lease) == DEAD:
            removed += files.remove_tree(f"{STAGING}/{run}")
            removed += files.remove(lease)
    for name in files.names(f"{STAGING}/put"):
        key, owned = f"{STAGING}/put/{name}", name.partition(".")[0]
        watch = evidence.watch_of(files)
        if watch.state(files, key, ttl_s=LEASE_TTL_S, owner=owned) == DEAD:
            removed += files.remove(key)
    files.prune(STAGING)
    return removed


def _recover(files: Files, key: str, unit: int, restore: Callable[[Claim], int]) -> int:
    with claim(files, unit) as held:
        return restore(held) + files.remove(key)


def _leases(files: Files) -> list[str]:
    return [f"{STAGING}/{name}" for name in files.names(STAGING) if name.endswith(_ENDING)]


def _record(files: Files, lease: str) -> dict[str, object]:
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        value = parse_json(files.read(lease, limit=1 << 16), where=files.path(lease))
        return value if isinstance(value, dict) else {}
    return {}


def _state(files: Files, lease: str) -> evidence.State:
    owned = str(_record(files, lease).get("owner", ""))
    return evidence.watch_of(files).state(files, lease, ttl_s=LEASE_TTL_S, owner=owned)
