"""Read records of a source: storage errors are retried, what cannot be had costs only itself."""

from __future__ import annotations

import logging
import time

import numpy as np
import xxhash

from pipeline.images.source import FINAL, ImageSource, Record, failed, labelled

READ_ATTEMPTS = 3
READ_BACKOFF_S = 0.5
"""First pause after a failed read; doubled each time."""

log = logging.getLogger(__name__)


def read_retrying(source: ImageSource, indices: list[int]) -> list[Record]:
    """Read records, labels included; one that cannot be had costs only itself.

    Storage errors say nothing about the images and are retried. What then still fails while other
    samples of the call can be read, or while this one alone is missing or forbidden, is a record
    with an error.

    Raises:
        OSError: if nothing can be read at all: the store or the network is down.
    """
    try:
        return _attempts(source, indices)
    except Exception as error:
        if len(indices) == 1 and isinstance(error, OSError) and not isinstance(error, FINAL):
            raise
        return labelled(source, indices, _one_by_one(source, indices, error))


def _attempts(source: ImageSource, indices: list[int]) -> list[Record]:
    """Read records; retry where waiting may help."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return source.read(indices)
        except OSError as error:
            if attempt == READ_ATTEMPTS or isinstance(error, FINAL):
                raise
            log.warning("read failed (%s), attempt %d of %d", error, attempt, READ_ATTEMPTS)
            time.sleep(READ_BACKOFF_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _one_by_one(source: ImageSource, indices: list[int], cause: Exception) -> list[Record]:
    """Read what can be read after a call failed; name what cannot."""
    records, failures = [], 0
    for index in indices:
        try:
            # Other errors were retried with the whole call: once more tells whose they are.
            records += source.read([index])
        except Exception as error:
            failures += not isinstance(error, FINAL)
            records.append(failed(source.entry(index)[0], error))
    if failures == len(indices):
        raise cause
    return records


def content_digest(record: Record) -> int:
    """Digest every byte of a sample's image and mask, not its name or label: XXH3, 64 bits."""
    digest = xxhash.xxh3_64()
    for part in (record.data, record.mask):
        if part is None:
            digest.update(b"\0none")
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.intdigest()
