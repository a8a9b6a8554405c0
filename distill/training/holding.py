"""Keep a run's datasets from `dreamshard gc`: while it reads them, and as long as it may go on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from distill.data.shards import ShardSource
from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.ledger import holds

log = logging.getLogger(__name__)


def name_run(run_dir: str | Path) -> str:
    """Return the name under which a run holds its data, and have its readers use it."""
    path = Path(run_dir).absolute()
    digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:6]
    name = f"train-{holds.as_name(path.name)}-{digest}"
    holds.name_readers(name)
    return name


def pin_for_checkpoints(sources: Iterable[object], run_dir: str | Path) -> None:
    """Pin the datasets that a run's checkpoints go on with, until the run has its student.

    Args:
        sources: of samples, of real images beside them; those that are not stored are passed over.
        run_dir: the run's folder.

    Raises:
        DataError: if one of them is gone.
    """
    for dataset, version in _datasets(sources):
        try:
            reason = f"checkpoints in {run_dir} at version {version}"
            holds.pin(dataset.files, name=name_run(run_dir), reason=reason)
        except DataError as error:
            if holds.is_gone(dataset.files):
                raise
            log.warning("%s: cannot be pinned for this run's checkpoints: %s", dataset.url, error)


def unpin(sources: Iterable[object], run_dir: str | Path) -> None:
    """Take the pins of a run off that is finished; arguments as of `pin_for_checkpoints`."""
    for dataset, _ in _datasets(sources):
        try:
            holds.unpin(dataset.files, name=name_run(run_dir))
            dataset.files.prune(holds.PINS)
        except DataError as error:
            log.warning("%s: the run's pin cannot be taken off: %s", dataset.url, error)


def _datasets(sources: Iterable[object]) -> list[tuple[Dataset, str]]:
    """Return every dataset of some sources once, with the version that is read."""
    shards = [source for source in sources if isinstance(source, ShardSource)]
    return list(
        {one.url: (one, source.version) for source in shards for one in source.datasets}.values()
    )
