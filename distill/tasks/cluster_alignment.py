"""Cluster alignment: how well clusters that were found without labels stand for classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from distill.bench.layout import TextTable, accuracy_lines, summary
from distill.probes.clusters import cluster_alignment

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.embeddings import ClusterAlignmentConfig


class ClusterAlignment:
    """Cluster training features into as many clusters as classes, and classify by them.

    Source: CompRess's evaluation; METHODS 3.3. Its k-means is faiss's, ours scikit-learn's.
    """

    def __init__(self, config: ClusterAlignmentConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        return f"cluster alignment, {self.config.runs} runs of k-means"

    def count(self, bench: Bench) -> int:
        """Return how many rows `run` will report."""
        return len(bench.names)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {"accuracy", "information": {"mean", "std"}}}, "empty": ...}.

        Both in per cent, over runs: accuracy on held-out images, and the normalised mutual
        information of clusters and classes there. "empty": clusters without a training image in
        each run, where there was any: the features of a collapsed student.
        """
        features, config = bench.features, self.config
        labels = features.train_labels, features.heldout_labels
        rows: dict[str, dict[str, Any]] = {}
        empty: dict[str, list[int]] = {}
        for name, both in features.representations.items():
            alignments = [
                cluster_alignment(
                    both.train,
                    labels[0],
                    both.heldout,
                    labels[1],
                    iterations=config.iterations,
                    seed=self.seed + run,
                )
                for run in range(config.runs)
            ]
            rows[name] = {
                "accuracy": summary([100.0 * each.accuracy for each in alignments]),
                "information": summary([100.0 * each.information for each in alignments]),
            }
            if any(each.empty for each in alignments):
                empty[name] = [each.empty for each in alignments]
            report()
        return {"rows": rows, "empty": empty, "clusters": int(labels[0].max()) + 1}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        title = (
            f"cluster alignment, {result['clusters']} clusters: % correct on held-out images, "
            f"and mutual information in %; {self.config.runs} runs, ± their deviation"
        )
        header = ["representation", "% correct", "mutual information"]
        lines = accuracy_lines(result["rows"])
        if result["empty"]:
            header.append("empty clusters")
            lines = [
                [*line, ", ".join(map(str, result["empty"].get(line[0], [])))] for line in lines
            ]
        return [TextTable(title, header, lines)]
