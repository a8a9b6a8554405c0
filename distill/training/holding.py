"""Keep a run's datasets from `dreamshard gc`: while it reads them, and as long as it may go on."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from distill.data.shards import ShardSource
from dreamshard.errors import DataError
from storage.ledger import holds

log = logging.getLogger(__name__)


def name_run(run_dir: str | Path) -> str:
    """Return the name under which a run holds its data, and have its readers use it."""
    path = Path(run_dir).absolute()
    digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:6]
    name = f"train-{holds.as_name(path.name)}-{digest}"
    holds.name_readers(name)
    return name


def pin_for_checkpoints(source: object, run_dir: str | Path) -> None:
    """Pin the datasets that a run's checkpoints go on with, until the run has its student.

    Raises:
        DataError: if one of them is gone.
    """
    if not isinstance(source, ShardSource):
        return
    for dataset in source.datasets:
        try:
            reason = f"checkpoints in {run_dir} at version {source.version}"
            holds.pin(dataset.files, name=name_run(run_dir), reason=reason)
        except DataError as error:
            if holds.is_gone(dataset.files):
                raise
            log.warning("%s: cannot be pinned for this run's checkpoints: %s", dataset.url, error)


def unpin(source: object, run_dir: str | Path) -> None:
    """Take the pins of a run off that is finished."""
    if not isinstance(source, ShardSource):
        return
    for dataset in source.datasets:
        try:
            holds.unpin(dataset.files, name=name_run(run_dir))
            dataset.files.prune(holds.PINS)
        except DataError as error:
            log.warning("%s: the run's pin cannot be taken off: %s", dataset.url, error)
