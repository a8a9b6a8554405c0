"""Local copies of a remote snapshot's chunk files, each checked against its commit record."""

from __future__ import annotations

import threading
from collections import OrderedDict

from storage.formats.stores import Store
from storage.fs.cache import shared_cache
from storage.fs.local import Files
from storage.ledger.book import UnitTable
from storage.ledger.commits import Commit, read_commit

_COMMITS = 256  # records kept


class RemoteChunks:
    """Hand out local paths of remote chunk files.

    Args:
        files: the dataset's files.
        store: how its files are laid out; checks copies.
        table: the units of the snapshot.
    """

    def __init__(self, files: Files, store: Store, table: UnitTable) -> None:
        self._files, self._store = files, store
        self._versions = dict(zip(table.unit.tolist(), table.version.tolist(), strict=True))
        self._cache = shared_cache()
        self._commits: OrderedDict[int, Commit] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, name: str, unit: int) -> str:
        """Return the path of a local copy of an array's rows of a unit; of one that was never
        committed, the URL it would have.

        Raises:
            DataError: if what the store has is not what was committed, or cannot be had.
        """
        key = self._store.array_key(name, unit)
        url = self._files.path(key)
        if unit not in self._versions:
            return url
        commit = self._commit(unit)
        return self._cache.path(
            f"{url}#{commit.digest}.{commit.count}",
            fetch=lambda path: self._files.download(key, path),
            check=lambda path: self._store.check_file(name, path, commit),
        )

    def _commit(self, unit: int) -> Commit:
        with self._lock:
            commit = self._commits.get(unit)
            if commit is None:
                commit = read_commit(self._files, unit, self._versions[unit])
                self._commits[unit] = commit
                while len(self._commits) > _COMMITS:
                    self._commits.popitem(last=False)
        return commit
