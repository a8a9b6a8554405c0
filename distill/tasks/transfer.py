"""Transfer: one linear probe on each of several datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.bench.layout import TextTable
from distill.probes.frozen import frozen_probe
from distill.probes.scaling import LEGEND, SCALINGS, mark

if TYPE_CHECKING:
    from distill.bench.bench import Bench, FeatureSets
    from distill.configs.embeddings import TransferConfig, TransferSetConfig

MEAN = "mean"


class Transfer:
    """Fit logistic regression on frozen features of each dataset, for every representation.

    Source: ssl-transfer (Ericsson et al. 2021), which Squeeze-and-Span evaluates with: L-BFGS, the
    penalty chosen on images kept out. Images are brought to the size of the evaluation, and the
    scaling of the features is chosen as well.
    """

    def __init__(self, config: TransferConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        return f"transfer to {', '.join(each.name for each in self.config.datasets)}"

    def count(self, bench: Bench) -> int:
        """Return how many steps `run` will report."""
        fits = len(SCALINGS) * len(self.config.probe.penalties) + 1
        return len(self.config.datasets) * len(bench.names) * fits

    def check(self, bench: Bench) -> None:
        """List the images of every dataset.

        Raises: ConfigError, DataError.
        """
        for prefix, dataset in self._datasets():
            bench.listed(dataset.train_images, dataset.heldout_images, prefix=prefix)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {dataset: {"mean": per cent, "penalty", ...}}}, ...}.

        With two datasets or more the last column, "mean", is their mean. "images": how many there
        were of each dataset, to learn from and to judge on.

        Raises:
            DataError: images without labels, held-out classes that training has not.
        """
        rows: dict[str, dict[str, Any]] = {name: {} for name in bench.names}
        images: dict[str, dict[str, int]] = {}
        for prefix, dataset in self._datasets():
            sets = bench.feature_sets(dataset.train_images, dataset.heldout_images, prefix=prefix)
            images[dataset.name] = {
                "train": len(sets.train_labels),
                "heldout": len(sets.heldout_labels),
            }
            balanced = dataset.measure == "class_mean"
            how = {"balanced": balanced, "device": str(bench.device), "report": report}
            for name in rows:
                rows[name][dataset.name] = self._cell(sets, name, **how)
        if len(self.config.datasets) > 1:
            for row in rows.values():
                row[MEAN] = {"mean": float(np.mean([cell["mean"] for cell in row.values()]))}
        return {"rows": rows, "images": images}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        columns = list(next(iter(rows.values())))
        lines = [
            [name, *(f"{row[column]['mean']:.1f}{mark(row[column])}" for column in columns)]
            for name, row in rows.items()
        ]
        measures = {each.name: each.measure for each in self.config.datasets}
        told = [
            f"{column}, mean of classes" if measures.get(column) == "class_mean" else column
            for column in columns
        ]
        title = f"% correct on held-out images of other datasets, linear probe; features {LEGEND}"
        return [TextTable(title, ["representation", *told], lines)]

    def _datasets(self) -> Iterator[tuple[str, TransferSetConfig]]:
        """Yield every dataset behind what leads its keys."""
        for number, dataset in enumerate(self.config.datasets):
            yield f"transfer.datasets.{number}.", dataset

    def _cell(
        self,
        sets: FeatureSets,
        name: str,
        *,
        balanced: bool,
        device: str,
        report: Callable[[], None],
    ) -> dict[str, Any]:
        probe, both = self.config.probe, sets.representations[name]
        result = frozen_probe(
            both.train,
            sets.train_labels,
            both.heldout,
            sets.heldout_labels,
            penalties=probe.penalties,
            selection=probe.selection,
            iterations=probe.iterations,
            seed=self.seed,
            balanced=balanced,
            device=device,
            report=report,
        )
        return result.cell()
