"""Nearest neighbours: what a representation is worth without any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.bench.layout import TextTable
from distill.probes.knn import FORMS, Metric, choose_scalings, knn_classes
from distill.probes.scaling import LEGEND, Scaling, mark, scaled
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from distill.bench.bench import Bench, Features, FeatureSets
    from distill.configs.tasks import KnnConfig


class Knn:
    """Classify held-out images by their nearest training images, for every representation.

    Source: Squeeze-and-Span's monitor (cosine, k = 200, weights exp(s / 0.1)); BigBiGAN's appendix
    (D_p of p-normalised features, majority, ties to the nearest); CompRess (D2, ties at random).
    """

    def __init__(self, config: KnnConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        votes = f"temperature {config.temperature:g}" if config.temperature else "majority"
        metric = "cosine and l1" if config.metric == "both" else config.metric
        return f"nearest neighbours ({metric}, {votes}), k = {_listing(config.k)}"

    def count(self, bench: Bench) -> int:
        """Return how many rows `run` will report."""
        return len(bench.names)

    def check(self, bench: Bench) -> None:
        """Compare the neighbours asked for with the images there are.

        Raises: DataError.
        """
        self._require(bench.total("train"))

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {k: {"mean": accuracy in per cent, "scaling", "selection"}}}}.

        With both metrics columns are called "D1, k = 5" and the like. Where how features are
        brought to scale is chosen, it is per cell, on training images kept out; "selection" is the
        accuracy there.

        Raises:
            DataError: fewer training images than neighbours, held-out classes that none has.
        """
        features = bench.features
        self._require(len(features.train_labels))
        rows: dict[str, dict[str, Any]] = {}
        for name, both in features.representations.items():
            rows[name] = self._row(both, features, device=str(bench.device))
            report()
        return {"rows": rows}

    def _require(self, total: int) -> None:
        if max(self.config.k) > total:
            few = [k for k in self.config.k if k <= total] or [1]
            raise DataError(
                f"knn.k: got {max(self.config.k)}, allowed up to {total}, the images. "
                f"Try --knn.k '{few}'."
            )

    def _row(self, both: Features, sets: FeatureSets, *, device: str) -> dict[str, Any]:
        """Judge one representation."""
        row: dict[str, Any] = {}
        both_metrics: dict[str, Metric] = {"D1, k = {}": "l1", "D2, k = {}": "cosine"}
        one: dict[str, Metric] = {"{}": "l1" if self.config.metric == "l1" else "cosine"}
        for told, metric in (both_metrics if self.config.metric == "both" else one).items():
            cells = self._cells(both, sets, metric=metric, device=device)
            row |= {told.format(k): cells[k] for k in self.config.k}
        return row

    def _cells(
        self, both: Features, sets: FeatureSets, *, metric: Metric, device: str
    ) -> dict[int, dict[str, Any]]:
        config = self.config
        how: dict[str, Any] = {"temperature": config.temperature, "metric": metric}
        how |= {"device": device, "ties": config.ties, "seed": self.seed}
        chosen: list[tuple[Scaling, float | None]] = [("raw", None)] * len(config.k)
        if config.scaling == "chosen":
            chosen = [*choose_scalings(both.train, sets.train_labels, ks=config.k, **how)]
        cells: dict[int, dict[str, Any]] = {}
        for scaling in FORMS:
            picked = [place for place, each in enumerate(chosen) if each[0] == scaling]
            if not picked:
                continue
            train, heldout = scaled(scaling, both.train, both.train, both.heldout)
            ks = [config.k[place] for place in picked]
            guesses = knn_classes(train, sets.train_labels, heldout, ks=ks, **how)
            shares = 100.0 * (guesses == sets.heldout_labels[:, None]).mean(axis=0)
            for place, share in zip(picked, shares, strict=True):
                cell = {"mean": float(share), "scaling": scaling}
                worth = chosen[place][1]
                cells[config.k[place]] = cell | (
                    {} if worth is None else {"selection": 100.0 * worth}
                )
        return cells

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        ks = next(iter(rows.values()))
        lines = [
            [name, *(f"{cell['mean']:.1f}{mark(cell)}" for cell in row.values())]
            for name, row in rows.items()
        ]
        metric = "D1: L1, D2: cosine" if self.config.metric == "both" else self.config.metric
        title = f"% correct by nearest neighbours, {metric}; {LEGEND}, r raw features"
        heads = [k if "k" in k else f"k = {k}" for k in ks]
        return [TextTable(title, ["representation", *heads], lines)]


def _listing(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
