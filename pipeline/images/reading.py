"""Read records of a source: refusals are retried and raised, what is broken costs only itself."""

from __future__ import annotations

import logging
import time

import numpy as np
import xxhash

from pipeline.images.source import FINAL, ImageSource, Record, failed, labelled
from storage.fs.beneath import is_unreadable

READ_ATTEMPTS = 3
READ_BACKOFF_S = 0.5
"""First pause after a failed read; doubled each time."""
CLIENTS = frozenset(
    ("aiohttp", "azure", "botocore", "gcsfs", "google", "httpx", "obstore", "requests", "urllib3")
)
"""Packages whose errors are a store's answers: many of them are no OSErrors."""

log = logging.getLogger(__name__)


def read_retrying(source: ImageSource, indices: list[int]) -> list[Record]:
    """Read records, labels included; one that is missing or broken costs only itself.

    What the system, the machine or the store refuses (permission, descriptors, memory, a failing
    disk, a server) says nothing about an image: it is retried, and then raised, never a record.

    Raises:
        OSError, MemoryError, CannotReadError: what was refused to the last.
    """
    try:
        return _attempts(source, indices)
    except Exception as error:
        if len(indices) == 1 and is_refusal(error):
            raise
        return labelled(source, indices, _one_by_one(source, indices, error))


def is_refusal(error: BaseException) -> bool:
    """Say whether an error tells that something would not be read, and nothing of what it holds."""
    if isinstance(error, FINAL):
        return False
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return is_unreadable(error) or bool(packages & CLIENTS)


def _attempts(source: ImageSource, indices: list[int]) -> list[Record]:
    """Read records; retry where waiting may help."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return source.read(indices)
        except Exception as error:
            retried = isinstance(error, OSError) or is_refusal(error)
            if attempt == READ_ATTEMPTS or isinstance(error, FINAL) or not retried:
                raise
            log.warning("read failed (%s), attempt %d of %d", error, attempt, READ_ATTEMPTS)
            time.sleep(READ_BACKOFF_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _one_by_one(source: ImageSource, indices: list[int], cause: Exception) -> list[Record]:
    """Read what can be read after a call failed; name what cannot."""
    records, failures = [], 0
    for index in indices:
        try:
            # Refusals were retried with the whole call: once more tells whose they are.
            records += source.read([index])
        except Exception as error:
            if is_refusal(error):
                raise
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
