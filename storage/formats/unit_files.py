"""What both formats do for the files of one unit while it is being written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from dreamshard.owner.processes import own_name
from storage.fs.local import Files, Sink
from storage.ledger.leases import run_folder
from storage.ledger.publish import Staged
from storage.schema import FeatureBatch


class UnitFiles(ABC):
    """Write the files of one unit, from its first sample to its last, under temporary names.

    Args:
        files: the dataset's files.
        unit: number of the unit.
        run_id: the run, whose lease guards the temporary files.
    """

    def __init__(self, files: Files, unit: int, *, run_id: str) -> None:
        self._files, self._unit = files, unit
        self._prefix = f"{run_folder(run_id)}/{own_name(unit)}"
        self._sinks: dict[str, Sink] = {}

    @abstractmethod
    def begin(self, batch: FeatureBatch) -> None:
        """Be told of the samples whose rows are appended next, to each array once."""

    @abstractmethod
    def append(self, name: str, rows: np.ndarray) -> None:
        """Append encoded rows (n, *shape) to one array."""

    @abstractmethod
    def finish(self, count: int, *, fsync: bool) -> dict[str, Staged]:
        """Close all files, with what the store adds; return them by name."""

    def discard(self) -> None:
        """Close and remove what is still under a temporary name."""
        for sink in self._sinks.values():
            sink.close()
            self._files.remove(sink.key)
        self._sinks = {}

    def _sink(self, name: str) -> Sink:
        """Return one of the files, made when first asked for."""
        if name not in self._sinks:
            self._sinks[name] = self._files.create(f"{self._prefix}.{name}")
        return self._sinks[name]

    def _seal(self, finals: Mapping[str, str], *, fsync: bool) -> dict[str, Staged]:
        """Close the files, which are meant for these keys, by name."""
        sinks = {name: self._sink(name) for name in finals}
        return {
            name: Staged(sink.key, finals[name], sink.seal(fsync=fsync))
            for name, sink in sinks.items()
        }
