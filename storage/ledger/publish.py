"""Make a unit's finished files visible, and its commit record: first wins, whoever races.

Files are moved to their final keys only under a *claim*: `staging/claims/<unit>~<owner>~<id>`, a
file that holds the would-be commit record. Announce, then look: a run creates its claim and then
lists the others'; if another live one is there it takes its own back and waits, so of two racing
runs at most one proceeds (the later one always sees the earlier). Under the claim the state is read
again, files are moved, and the claim itself is linked, put-if-absent, to the commit record's key.
So the bytes on disk are those of the run whose record won, even if the runs computed others.

A claim dies with its process (same host), or when it has not changed for CLAIM_TTL_S. A run that
was paused longer than that may wake up between two moves; it looks at the clock before each, and at
the end winner and loser both check that the files are theirs and withdraw the unit if they differ.

On an object store "moving" is sending, which may take long: the claim is renewed meanwhile.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dreamshard.errors import DataError
from storage.fs.local import STAGING, Files
from storage.fs.owners import is_dead, own_name
from storage.ledger.commits import Commit, latest_version, read_commit, record_key, withdraw

CLAIMS = f"{STAGING}/claims"
CLAIM_TTL_S = 30.0

Identity = tuple[int, int]


@dataclass
class Staged:
    """A finished file under its temporary key, and the final key it is meant for."""

    key: str
    final: str
    identity: Identity


def publish(
    files: Files, staged: Mapping[str, Staged], commit: Commit, *, fsync: bool = True
) -> Commit:
    """Move staged files to their final keys and create the commit record.

    Args:
        files: the dataset's files.
        staged: finished files by array name.
        commit: the record to make; its version is set here.
        fsync: flush the folders' entries to disk.

    Returns:
        The record that counts: this one, or another run's if that was first; then the staged files
        are left for the caller to remove.

    Raises:
        DataError: if the files were overwritten by a run that was paused for long; run again.
    """
    while True:
        winner = committed(files, commit.unit, count=commit.count)
        if winner is not None:
            return winner
        version = latest_version(files, commit.unit)[0] + 1
        wanted = replace(commit, version=version)
        with claim(files, commit.unit, content=wanted.to_json(), fsync=fsync) as held:
            if committed(files, commit.unit, count=commit.count) is not None:
                continue
            if latest_version(files, commit.unit)[0] + 1 != version:
                continue
            try:
                _move(files, staged, fsync=fsync)
                if not held.fresh():
                    raise _overtaken(files, commit.unit)
                won = files.link(held.key, record_key(commit.unit, version))
            except Exception:
                _take_back(files, staged, commit.unit)
                raise
            if fsync:
                files.sync_folders([record_key(commit.unit, version)])
            return _settle(files, staged, wanted, won=won)


def committed(files: Files, unit: int, *, count: int) -> Commit | None:
    """Return a unit's commit if it holds and covers `count` samples."""
    version, holds = latest_version(files, unit)
    if not holds:
        return None
    commit = read_commit(files, unit, version)
    return commit if commit.count >= count else None


@dataclass
class Claim:
    """The right to move a unit's files, while it is fresh."""

    key: str
    since: float

    def fresh(self) -> bool:
        """Say whether no other run can have taken this claim for dead."""
        return time.time() - self.since < CLAIM_TTL_S / 2


@contextlib.contextmanager
def claim(
    files: Files, unit: int, *, content: bytes = b"{}", fsync: bool = False
) -> Iterator[Claim]:
    """Wait for the right to move a unit's files.

    Args:
        files: the dataset's files.
        unit: number of the unit.
        content: what the claim's file holds: the commit record it may become.
        fsync: flush it to disk.
    """
    key = f"{CLAIMS}/{own_name(unit)}"
    watch = _Watch(files, unit, key)
    while True:
        watch.wait()
        held = Claim(key, time.time())
        try:
            files.write(key, content, fsync=fsync)
            if not watch.rivals():
                with _renewed(files, held):
                    yield held
                return
        finally:
            files.remove(key)
        time.sleep(random.uniform(0, 4 * files.poll_s))  # two that met again part by chance


@contextlib.contextmanager
def _renewed(files: Files, held: Claim) -> Iterator[None]:
    """Keep a claim fresh where moving files means sending them, which may take long."""
    if not files.remote:
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(CLAIM_TTL_S / 6):
            now = time.time()
            with contextlib.suppress(OSError):  # not renewed: `fresh` will tell
                files.touch(held.key)
                held.since = now

    thread = threading.Thread(target=beat, daemon=True, name="claim")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watch:
    """Watch the other claims on a unit; one that stays unchanged for CLAIM_TTL_S is dead.

    Judged by the file system's clock where the claim was old already, and by this process's own
    from then on, so that hosts need not agree on the time.
    """

    def __init__(self, files: Files, unit: int, own: str) -> None:
        self._files, self._prefix = files, f"{unit:09d}~"
        self._own = own.rpartition("/")[2]
        self._seen: dict[tuple[str, float], float] = {}

    def rivals(self) -> list[str]:
        """List the live claims of others."""
        return [
            name
            for name in self._files.names(CLAIMS)
            if name.startswith(self._prefix) and name != self._own and self._lives(name)
        ]

    def wait(self) -> None:
        """Wait until no other live claim is left."""
        while self.rivals():
            time.sleep(self._files.poll_s)

    def _lives(self, name: str) -> bool:
        dead = is_dead(name.split("~")[1]) if name.count("~") == 2 else None
        modified = self._files.modified(f"{CLAIMS}/{name}")
        if dead or modified is None:
            return False
        if (name, modified) not in self._seen:
            age = max(0.0, self._files.now() - modified)
            self._seen[name, modified] = time.monotonic() - age
        return time.monotonic() - self._seen[name, modified] < CLAIM_TTL_S


def _move(files: Files, staged: Mapping[str, Staged], *, fsync: bool) -> None:
    for item in staged.values():
        try:
            files.rename(item.key, item.final)
        except FileNotFoundError:
            raise DataError(
                f"{files.url}/{item.key}: got no such file: another run swept it, because this "
                "run's lease had lapsed. Run the same command again."
            ) from None
    if fsync:
        files.sync_folders(item.final for item in staged.values())


def _take_back(files: Files, staged: Mapping[str, Staged], unit: int) -> None:
    """Remove what was moved before a failure, unless an older version of the unit lives there."""
    if latest_version(files, unit)[1]:
        return
    for item in staged.values():
        if files.identity(item.final) == item.identity:
            files.remove(item.final)


def _settle(files: Files, staged: Mapping[str, Staged], commit: Commit, *, won: bool) -> Commit:
    """Check that the files on disk are those of the record that counts."""
    ours = [files.identity(item.final) == item.identity for item in staged.values()]
    if won and all(ours):
        return commit
    winner = read_commit(files, commit.unit, commit.version)
    if not won and (not any(ours) or winner.digests == commit.digests):
        return winner
    withdraw(files, commit.unit, commit.version, reason="two runs overwrote each other")
    raise _overtaken(files, commit.unit)


def _overtaken(files: Files, unit: int) -> DataError:
    return DataError(
        f"{files.url}: unit {unit}: this run was paused for so long that another took the unit "
        "over. Run the same command again."
    )


def dead_claims(files: Files) -> list[tuple[str, int]]:
    """List (key, unit) of claims whose process is dead or that are older than CLAIM_TTL_S."""
    dead_ones: list[tuple[str, int]] = []
    now: float | None = None
    for name in files.names(CLAIMS):
        unit, _, rest = name.partition("~")
        modified = files.modified(f"{CLAIMS}/{name}")
        if modified is None or not unit.isdecimal():
            continue
        dead = is_dead(rest.partition("~")[0])
        if not dead:
            now = files.now() if now is None else now
            dead = now - modified > CLAIM_TTL_S
        if dead:
            dead_ones.append((f"{CLAIMS}/{name}", int(unit)))
    return dead_ones
