"""Few-label linear probes: what a representation is worth when hardly anything is labelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.bench.layout import TextTable, summary
from distill.probes.draws import fraction_draws, label_draws
from distill.probes.logistic import choose, probe_accuracy
from distill.probes.scaling import LEGEND, SCALINGS, Scaling, mark, scaled
from dreamshard.errors import DataError
from pipeline.images.labels import Labels

if TYPE_CHECKING:
    from distill.bench.bench import Bench, Features
    from distill.configs.tasks import FewLabelConfig

FRACTION_DRAWS = 3  # label draws of a share of all labels


class FewLabel:
    """Probe every representation with the same label draws and compare them in pairs."""

    def __init__(self, config: FewLabelConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        shots = ", ".join(map(str, config.shots))
        return f"linear probes on {shots} labels per class, {config.draws} label draws each"

    def count(self, bench: Bench) -> int:
        """Return how many table cells `run` will report."""
        return len(bench.names) * (len(self.config.shots) + len(self.config.fractions))

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Probe every representation of a bench; see `judge`."""
        features = bench.features
        return self.judge(
            features.representations,
            train_labels=features.train_labels,
            heldout_labels=features.heldout_labels,
            classes=features.classes,
            report=report,
        )

    def judge(
        self,
        representations: Mapping[str, Features],
        *,
        train_labels: np.ndarray,
        heldout_labels: np.ndarray,
        classes: Sequence[str] = (),
        report: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Return accuracies in per cent as plain values, fit for JSON.

        Args:
            representations: name to features; the last is compared with each of the others.
            train_labels: int64 (N,).
            heldout_labels: int64 (M,).
            classes: names of the classes by number, for messages.
            report: called after each finished table cell.

        Returns:
            "rows": {name: {shots: {"mean", "std", "scaling", "strength", "selection", "accuracy":
            one per draw}}} and "paired": {baseline: {shots: {"mean", "std", "wins", "ties",
            "losses"}}}, the last representation's accuracy minus the baseline's on the same draw.
            Scaling and strength are chosen on training samples; "selection" is the accuracy there.
            Standard deviations are over draws, of the sample (n - 1). "fractions" holds the same
            two for shares of the labels, where any were asked for.

        Raises:
            DataError: a class with fewer samples than the labels asked for.
        """
        self._check(Labels(train_labels, tuple(classes)), heldout_labels)
        config, labels = self.config, (train_labels, heldout_labels)
        columns = {
            str(shots): label_draws(
                train_labels, shots=shots, draws=config.draws, seed=self.seed, purpose="few-label"
            )
            for shots in config.shots
        }
        shares = {
            f"{100 * share:g} %": fraction_draws(
                train_labels, fraction=share, draws=FRACTION_DRAWS, seed=self.seed
            )
            for share in config.fractions
        }
        result = self._table(representations, columns, labels=labels, report=report)
        if shares:
            more = self._table(representations, shares, labels=labels, report=report)
            result["fractions"] = more
        return result

    def _table(
        self,
        representations: Mapping[str, Features],
        columns: Mapping[str, np.ndarray],
        *,
        labels: tuple[np.ndarray, np.ndarray],
        report: Callable[[], None],
    ) -> dict[str, Any]:
        """Fill one row per representation, one cell per column of label draws."""
        classes = len(np.unique(labels[0]))
        rows: dict[str, dict[str, Any]] = {}
        for name, features in representations.items():
            pairs: dict[Scaling, list[np.ndarray]] = {
                scaling: scaled(scaling, features.train, features.train, features.heldout)
                for scaling in SCALINGS
            }
            rows[name] = {}
            for column, picks in columns.items():
                shots = max(1, round(picks.shape[1] / classes))
                rows[name][column] = self._cell(pairs, labels, picks=picks, shots=shots)
                report()
        subject = list(rows)[-1]
        others = {name: row for name, row in rows.items() if name != subject}
        paired = {name: _paired(rows[subject], row) for name, row in others.items()}
        return {"subject": subject, "rows": rows, "paired": paired}

    def _cell(
        self,
        pairs: Mapping[Scaling, list[np.ndarray]],
        labels: tuple[np.ndarray, np.ndarray],
        *,
        picks: np.ndarray,
        shots: int,
    ) -> dict[str, Any]:
        """Choose on training samples, then fit every draw and judge it on held-out ones."""
        known, truth = labels
        choice = choose(
            {scaling: train for scaling, (train, _) in pairs.items()},
            known,
            shots=shots,
            strengths=self.config.strengths,
            draws=self.config.selection_draws,
            seed=self.seed,
        )
        train, heldout = pairs[choice.scaling]
        accuracy = [
            100.0 * probe_accuracy(train[at], known[at], heldout, truth, strength=choice.strength)
            for at in picks
        ]
        chosen = {"scaling": choice.scaling, "strength": choice.strength}
        selection = {"selection": 100.0 * choice.accuracy}
        return summary(accuracy) | chosen | selection | {"accuracy": accuracy}

    def _check(self, train: Labels, heldout_labels: np.ndarray) -> None:
        classes, counts = np.unique(train.numbers, return_counts=True)
        if counts.min() <= max(self.config.shots):
            fewest = train.name(int(classes[counts.argmin()]))
            raise DataError(
                f"few_label.shots: got {max(self.config.shots)}, allowed fewer than the "
                f"{counts.min()} training images of class {fewest}."
            )
        unknown = np.setdiff1d(heldout_labels, classes)
        if unknown.size:
            raise DataError(
                f"held-out labels: got classes {unknown.tolist()} that no training image has."
            )

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out: accuracies and gains, then those of shares of the labels."""
        tables = []
        for part in [result, *([result["fractions"]] if "fractions" in result else [])]:
            header, lines = accuracy_table(part)
            title = f"% correct on held-out images, mean ± std over label draws; features {LEGEND}"
            tables.append(TextTable(title, header, lines))
            header, lines = gain_table(part)
            tables.append(TextTable("gain in points (label draws won)", header, lines))
        return tables


def accuracy_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out accuracies as text: the header, then one row per representation."""
    rows = result["rows"]
    shots = list(next(iter(rows.values())))
    header = ["representation", *[f"{_labels(n)}{'' if '%' in n else '/class'}" for n in shots]]
    lines = [
        [name, *[f"{cells[n]['mean']:.1f} ± {cells[n]['std']:.1f}{mark(cells[n])}" for n in shots]]
        for name, cells in rows.items()
    ]
    return header, lines


def gain_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out the subject's gain over each baseline as text, with the draws it won."""
    paired = result["paired"]
    shots = list(next(iter(result["rows"].values())))
    lines = []
    for name, cells in paired.items():
        line = [f"over {name}"]
        for n in shots:
            cell = cells[n]
            draws = cell["wins"] + cell["ties"] + cell["losses"]
            line.append(f"{cell['mean']:+.1f} ({cell['wins']}/{draws})")
        lines.append(line)
    return [result["subject"], *map(_labels, shots)], lines


def _labels(column: str) -> str:
    return f"{column} of labels" if "%" in column else f"{column} label{'s' * (column != '1')}"


def _paired(subject: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for shots, cell in subject.items():
        gains = np.subtract(cell["accuracy"], baseline[shots]["accuracy"])
        result[shots] = summary(gains.tolist()) | {
            "wins": int((gains > 0).sum()),
            "ties": int((gains == 0).sum()),
            "losses": int((gains < 0).sum()),
        }
    return result
