"""Write one unit: check and encode batches as they come, digest them beside the write, commit."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import xxhash

from dreamshard.errors import DataError
from storage.codecs.arrays import IMAGE, LABEL, MASK
from storage.codecs.base import ArraySpec, Codec, explain_nonfinite, has_nonfinite
from storage.codecs.bases import basis_digests
from storage.formats.unit_files import UnitFiles
from storage.fs.local import Files
from storage.ledger.commits import MAX_ERROR_CHARS, Commit, pack_digests
from storage.ledger.publish import publish
from storage.schema import FeatureBatch, Level

_BLOCK_BYTES = 1 << 20  # small enough that check and digest find the bytes in the cache
_SMALL_BYTES = 1 << 18  # below this a second thread costs more than it saves


class UnitWriter:
    """Write the samples of one unit in order and commit them; leave nothing behind otherwise.

    As a context manager it aborts unless it was committed. Not for use by two threads at once.

    Args:
        files: the dataset's files.
        unit_files: where the store puts this unit.
        codecs: how each level is encoded, by its name; learned ones fitted.
        arrays: the arrays the dataset stores, by name.
        is_whole: says whether a unit's files are what its commit record describes.
        first: index of the unit's first sample.
        count: samples the unit will have.
        fsync: flush to disk before the commit, so that a commit survives a loss of power.
    """

    def __init__(
        self,
        files: Files,
        unit_files: UnitFiles,
        *,
        codecs: Mapping[str, Codec],
        levels: Mapping[str, Level],
        arrays: Mapping[str, ArraySpec],
        is_whole: Callable[[Commit], bool],
        unit: int,
        first: int,
        count: int,
        run_id: str,
        fsync: bool = True,
    ) -> None:
        self._files, self._unit_files, self._fsync = files, unit_files, fsync
        self._codecs, self._levels, self._arrays = codecs, levels, arrays
        self._bases, self._is_whole = basis_digests(codecs), is_whole
        self.unit, self.first, self.count, self.run_id = unit, first, count, run_id
        self.rows = 0
        self._digests = {name: xxhash.xxh3_128() for name in arrays}
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._source_digests: list[np.ndarray] = []
        self._invalid: list[int] = []
        self._errors: dict[int, str] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._started = time.monotonic()
        self._closed = False

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    def write(self, offset: int, batch: FeatureBatch) -> None:
        """Append a batch; its arrays may be reused as soon as this returns.

        Args:
            offset: row of the unit where the batch begins: the number of rows written so far.
            batch: the next samples.

        Raises:
            DataError: if the batch does not fit the dataset, or holds values that are not finite
                or overflow the stored precision in a valid row.
        """
        try:
            self._check(offset, batch)
            valid = np.asarray(batch.valid, bool)
            self._put(batch, valid)
        except Exception:
            self.abort()
            raise
        self._keys += map(str, batch.key)
        labels = np.full(len(batch), -1) if batch.label is None else batch.label
        self._labels += [int(label) for label in labels]
        if batch.source_digest is not None:
            self._source_digests.append(batch.source_digest)
        self._invalid += [offset + int(row) for row in np.flatnonzero(~valid)]
        for row, text in batch.error.items():
            self._errors[offset + int(row)] = str(text)[:MAX_ERROR_CHARS]
        self.rows += len(batch)

    def commit(
        self,
        *,
        input_digest: str = "",
        seconds: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Commit:
        """Make the unit visible and done; if another run was first, discard this one.

        Args:
            input_digest: the source's digest of the samples read, "" if it has none.
            seconds: time the unit took; from this writer's making until now if not given.
            extra: JSON values to keep in the record.

        Returns:
            The commit record that counts.
        """
        if self._closed or self.rows != self.count:
            state = "closed" if self._closed else f"{self.rows} rows"
            raise DataError(f"unit {self.unit}: got {state} at commit, allowed {self.count} rows.")
        try:
            staged = self._unit_files.finish(self.count, fsync=self._fsync)
            commit = self._record(input_digest, seconds, dict(extra or {}))
            return publish(self._files, staged, commit, is_whole=self._is_whole, fsync=self._fsync)
        finally:
            self.abort()

    def _record(self, input_digest: str, seconds: float | None, extra: dict[str, object]) -> Commit:
        if self._bases:
            extra["bases"] = self._bases
        if sum(map(len, self._source_digests)) == self.count:
            extra["source_digests"] = pack_digests(np.concatenate(self._source_digests))
        return Commit(
            unit=self.unit,
            version=0,
            first=self.first,
            count=self.count,
            bytes=self.count * sum(spec.row_bytes for spec in self._arrays.values()),
            digests={name: digest.hexdigest() for name, digest in self._digests.items()},
            input_digest=input_digest,
            seconds=round(time.monotonic() - self._started if seconds is None else seconds, 6),
            host=socket.gethostname(),
            run_id=self.run_id,
            keys=self._keys,
            invalid=self._invalid,
            errors=self._errors,
            labels=self._labels if any(label != -1 for label in self._labels) else None,
            extra=extra,
        )

    def abort(self) -> None:
        """Remove what was written and not committed; does nothing after a commit."""
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                self._thread.shutdown()
            self._unit_files.discard()

    def _check(self, offset: int, batch: FeatureBatch) -> None:
        count, where = len(batch), f"unit {self.unit}"
        if self._closed:
            raise DataError(f"{where}: got a write after commit or abort, allowed none.")
        if offset != self.rows or offset + count > self.count:
            raise DataError(
                f"{where}: got rows {offset}..{offset + count - 1}, allowed from {self.rows} on, "
                f"below {self.count}."
            )
        expected = np.arange(self.first + offset, self.first + offset + count)
        if not np.array_equal(batch.index, expected):
            raise DataError(
                f"{where}: got indices {np.asarray(batch.index)[:3]}.., allowed "
                f"{self.first + offset}.. in order."
            )
        if len(batch.key) != count or np.shape(batch.valid) != (count,):
            raise DataError(f"{where}: got {len(batch.key)} keys for {count} samples.")
        if set(batch.levels) != set(self._levels):
            raise DataError(
                f"{where}: got levels {sorted(batch.levels)}, allowed {sorted(self._levels)}."
            )

    def _inputs(self, batch: FeatureBatch) -> list[tuple[str, np.ndarray]]:
        """List the batch's values by what they are called in a batch, shapes checked."""
        given = {IMAGE: batch.image, LABEL: batch.label, MASK: batch.mask}
        inputs: list[tuple[str, np.ndarray]] = []
        for name, values in given.items():
            if name in self._arrays:
                if values is None and name == LABEL:
                    values = np.full(len(batch), -1, np.int64)
                inputs.append((name, self._shaped(name, values, self._arrays[name].shape, batch)))
        for name, level in self._levels.items():
            inputs.append((name, self._shaped(name, batch.levels[name], level.shape, batch)))
        return inputs

    def _shaped(
        self, name: str, values: np.ndarray | None, shape: tuple[int, ...], batch: FeatureBatch
    ) -> np.ndarray:
        wanted = (len(batch), *shape)
        if values is None or values.shape != wanted:
            got = "nothing" if values is None else f"shape {values.shape}"
            raise DataError(f"unit {self.unit}: {name}: got {got}, allowed {wanted}.")
        return values

    def _encode(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """Turn one input into the arrays it is stored as."""
        if name in self._levels:
            level, codec = self._levels[name], self._codecs[name]
            if codec.hides_nonfinite and has_nonfinite(values):
                raise explain_nonfinite(
                    name, values=values, encoded=values, first_row=self.rows, unit=self.unit
                )
            return codec.encode(level, values)
        dtype = self._arrays[name].dtype
        if values.dtype.kind not in "iu" or (name != LABEL and values.dtype != dtype):
            raise DataError(f"unit {self.unit}: {name}: got {values.dtype}, allowed {dtype}.")
        return {name: np.ascontiguousarray(values, dtype)}

    def _put(self, batch: FeatureBatch, valid: np.ndarray) -> None:
        """Encode a batch and write it; check and digest it while it is being written.

        Rows that are not valid become fill values (labels stay: they are the source's, not ours).
        """
        self._unit_files.begin(batch)
        writing: list[Future[None]] = []
        checks: list[Callable[[], None]] = []
        try:
            for name, values in self._inputs(batch):
                masked = name != LABEL and not valid.all()
                if masked:
                    values = values.copy()
                    values[~valid] = 0
                for array, encoded in self._encode(name, values).items():
                    spec, rows = self._arrays[array], encoded
                    if masked:
                        rows = encoded.copy()
                        rows[~valid] = spec.fill
                    writing += self._start_write(spec, rows)
                    checks.append(partial(self._check_rows, name, spec, values, encoded, rows))
            for check in checks:
                check()
        finally:
            wait(writing)
        for future in writing:
            future.result()

    def _check_rows(
        self,
        name: str,
        spec: ArraySpec,
        values: np.ndarray,
        encoded: np.ndarray,
        rows: np.ndarray,
    ) -> None:
        """Digest rows; refuse what is not finite before fill values came in."""
        finite = rows is encoded or not spec.has_nonfinite(encoded)
        if not self._digest(spec, rows, check=rows is encoded) or not finite:
            raise explain_nonfinite(
                name, values=values, encoded=encoded, first_row=self.rows, unit=self.unit
            )

    def _start_write(self, spec: ArraySpec, rows: np.ndarray) -> list[Future[None]]:
        """Write rows, by the thread that does so beside this one unless they are very few."""
        if self._thread is None and rows.nbytes < _SMALL_BYTES:
            self._unit_files.append(spec.name, rows)
            return []
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="unit-write")
        return [self._thread.submit(self._unit_files.append, spec.name, rows)]

    def _digest(self, spec: ArraySpec, rows: np.ndarray, *, check: bool) -> bool:
        """Digest rows block by block, and say whether they are finite if asked to check."""
        flat = rows.reshape(-1)
        step = _BLOCK_BYTES // spec.dtype.itemsize
        digest, finite = self._digests[spec.name], True
        for start in range(0, len(flat), step):
            block = flat[start : start + step]
            finite = finite and not (check and spec.has_nonfinite(block))
            digest.update(block.view(np.uint8).data)
        return finite
