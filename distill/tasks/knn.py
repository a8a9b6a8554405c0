"""Nearest neighbours: what a representation is worth without any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.bench.layout import TextTable
from distill.probes.knn import knn_classes
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import KnnConfig


class Knn:
    """Classify held-out images by their nearest training images, for every representation.

    Source: Squeeze-and-Span's monitor (cosine, k = 200, weights exp(s / 0.1)); BigBiGAN's appendix
    (D_p of p-normalised features, majority, ties to the nearest).
    """

    def __init__(self, config: KnnConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        votes = f"temperature {config.temperature:g}" if config.temperature else "majority"
        return f"nearest neighbours ({config.metric}, {votes}), k = {_listing(config.k)}"

    def count(self, bench: Bench) -> int:
        """Return how many rows `run` will report."""
        return len(bench.names)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {k: {"mean": accuracy in per cent}}}}.

        Raises:
            DataError: fewer training images than neighbours.
        """
        features = bench.features
        total = len(features.train_labels)
        if max(self.config.k) > total:
            raise DataError(f"knn.k: got {max(self.config.k)}, allowed up to {total}, the images.")
        rows: dict[str, dict[str, Any]] = {}
        for name, both in features.representations.items():
            guesses = knn_classes(
                both.train,
                features.train_labels,
                both.heldout,
                ks=self.config.k,
                temperature=self.config.temperature,
                metric=self.config.metric,
                device=str(bench.device),
            )
            right = guesses == features.heldout_labels[:, None]
            shares = 100.0 * right.mean(axis=0)
            pairs = zip(self.config.k, shares, strict=True)
            rows[name] = {str(k): {"mean": float(share)} for k, share in pairs}
            report()
        return {"rows": rows}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        ks = next(iter(rows.values()))
        lines = [
            [name, *(f"{cell['mean']:.1f}" for cell in row.values())] for name, row in rows.items()
        ]
        title = f"% correct by nearest neighbours, {self.config.metric}"
        return [TextTable(title, ["representation", *(f"k = {k}" for k in ks)], lines)]


def _listing(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
