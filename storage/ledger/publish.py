"""Make a unit's finished files visible, and its commit record: first wins, whoever races.

Files are moved to their final keys only under a *claim*: `staging/claims/<unit>~<owner>~<id>`, a
file that holds the would-be commit record. Announce, then look: a run creates its claim and then
lists the others'; if another live one is there it takes its own back and waits, so of two racing
runs at most one proceeds (the later one always sees the earlier). Under the claim the state is read
again, files are moved, and the claim itself is linked, put-if-absent, to the commit record's key.
So the bytes on disk are those of the run whose record won, even if the runs computed others.

A claim is touched while it is held, however long a slow disk or network takes, and dies with its
process (same host), or when somebody has watched it for CLAIM_TTL_S of his own clock and it did not
change (`evidence`). A run that could not touch its claim for half of that, because it was paused,
does so and looks for others before it goes on; nobody there, nothing is lost. One that was paused
between looking and moving may overwrite a winner's files; at the end winner and loser both check
that the files are what the record says, and withdraw the unit if they are not.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from dreamshard.errors import DataError
from dreamshard.foreign.text import number_in
from dreamshard.owner.processes import own_name
from storage.fs.local import STAGING, Files
from storage.ledger import evidence
from storage.ledger.commits import Commit, latest_version, read_commit, record_key, withdraw

CLAIMS = f"{STAGING}/claims"
CLAIM_TTL_S = 30.0
DEAD: evidence.State = "dead"
UNKNOWN: evidence.State = "unknown"

Identity = tuple[int, int]


@dataclass
class Staged:
    """A finished file under its temporary key, and the final key it is meant for."""

    key: str
    final: str
    identity: Identity


def publish(
    files: Files,
    staged: Mapping[str, Staged],
    commit: Commit,
    *,
    is_whole: Callable[[Commit], bool],
    fsync: bool = True,
) -> Commit:
    """Move staged files to their final keys and create the commit record.

    Args:
        files: the dataset's files.
        staged: finished files by array name.
        commit: the record to make; its version is set here.
        is_whole: says whether a unit's files are what its record describes.
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
                _move(held, staged, fsync=fsync)
                held.check()
                won = _record(held, version)
            except Exception:
                _take_back(files, staged, commit.unit, is_whole)
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
    """The right to move a unit's files, while nobody can have taken its holder for dead.

    Args:
        files: the dataset's files.
        unit: number of the unit.
        key: the claim's file.
        since: when it was surely there unchanged for no time (`evidence.elapsed`).
    """

    files: Files
    unit: int
    key: str
    since: float

    def renew(self) -> bool:
        """Touch the claim; say whether it is still there.

        Raises:
            OSError: if the store cannot be reached.
        """
        now = evidence.elapsed()
        try:
            self.files.touch(self.key)
        except FileNotFoundError:
            return False
        self.since = now
        return True

    def beat(self) -> None:
        """Touch the claim if that can be done; if not, `holds` will tell."""
        with contextlib.suppress(OSError):
            self.renew()

    def holds(self) -> bool:
        """Say whether no other run can be at work on the unit; look, if that is not sure.

        Who took this claim for dead before it was touched had his own there before, and is seen;
        who looks afterwards sees that it changed.
        """
        if evidence.elapsed() - self.since < CLAIM_TTL_S / 2:
            return True
        deadline = evidence.elapsed() + CLAIM_TTL_S / 2
        while True:
            with contextlib.suppress(OSError):
                if not self.renew():
                    return False
                if not rivals(self.files, self.unit, self.key):
                    return True
            if evidence.elapsed() > deadline:
                return False
            evidence.sleep(self.files.poll_s)

    def check(self) -> None:
        """Refuse to go on where another run may be at work on the unit.

        Raises:
            DataError: if one may.
        """
        if not self.holds():
            raise _overtaken(self.files, self.unit)


@contextlib.contextmanager
def claim(
    files: Files, unit: int, *, content: bytes = b"{}", fsync: bool = False
) -> Iterator[Claim]:
    """Wait for the right to move a unit's files; it is kept alive while the context lasts.

    Args:
        files: the dataset's files.
        unit: number of the unit.
        content: what the claim's file holds: the commit record it may become.
        fsync: flush it to disk.
    """
    key = f"{CLAIMS}/{own_name(unit)}"
    while True:
        while rivals(files, unit, key):
            evidence.sleep(files.poll_s)
        held = Claim(files, unit, key, evidence.elapsed())
        try:
            files.write(key, content, fsync=fsync)
            with evidence.beating(held.beat, every_s=CLAIM_TTL_S / 6, name="claim"):
                if held.holds() and not rivals(files, unit, key):
                    yield held
                    return
        finally:
            files.remove(key)
        evidence.sleep(random.uniform(0, 4 * files.poll_s))  # two that met again part by chance


def rivals(files: Files, unit: int, own: str) -> list[str]:
    """List the claims on a unit that are not dead, but for one's own."""
    keys = _claims(files)
    return [k for k, claimed in keys if claimed == unit and k != own and state_of(files, k) != DEAD]


def state_of(files: Files, key: str) -> evidence.State:
    """Say whether a claim's holder lives."""
    owner = key.rpartition("/")[2].split("~")[1]
    return evidence.watch_of(files).state(files, key, ttl_s=CLAIM_TTL_S, owner=owner)


def _claims(files: Files) -> list[tuple[str, int]]:
    """List (key, unit) of all claims, passing over names that are not ours."""
    named = [name.split("~") for name in files.names(CLAIMS)]
    whole = [(f"{CLAIMS}/{'~'.join(p)}", number_in(p[0])) for p in named if len(p) == 3]
    return [(key, unit) for key, unit in whole if unit is not None]


def _record(held: Claim, version: int) -> bool:
    """Make the claim's file the commit record, if there is none; say whether it was."""
    try:
        return held.files.link(held.key, record_key(held.unit, version))
    except FileNotFoundError:
        raise _overtaken(held.files, held.unit) from None


def _move(held: Claim, staged: Mapping[str, Staged], *, fsync: bool) -> None:
    files = held.files
    for item in staged.values():
        held.check()
        try:
            files.rename(item.key, item.final)
        except FileNotFoundError:
            raise DataError(
                f"{files.url}/{item.key}: got no such file: another run swept it, because this "
                "run's lease had lapsed. Run the same command again."
            ) from None
    if fsync:
        files.sync_folders(item.final for item in staged.values())


def _take_back(
    files: Files, staged: Mapping[str, Staged], unit: int, is_whole: Callable[[Commit], bool]
) -> None:
    """Remove what was moved before a failure; void a record whose files that took away."""
    moved = [i.final for i in staged.values() if files.identity(i.final) == i.identity]
    if not latest_version(files, unit)[1]:
        for key in moved:
            files.remove(key)
    version, holds = latest_version(files, unit)  # again: this process may have been paused
    if holds and moved and not is_whole(read_commit(files, unit, version)):
        withdraw(files, unit, version, reason="a run that failed had overwritten its files")


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
    """List (key, unit) of the claims that are known to be dead."""
    return [(key, unit) for key, unit in _claims(files) if state_of(files, key) == DEAD]


def unknown_claims(files: Files) -> bool:
    """Say whether there are claims that were not watched for long enough to tell."""
    states = [state_of(files, key) for key, _ in _claims(files)]
    return UNKNOWN in states
