"""Few-label linear probes: what a representation is worth when hardly anything is labelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from distill.tasks.probe import choose_strength, label_draws, probe_accuracy, standardise
from dreamshard.errors import DataError, Problem

Count = Annotated[int, Field(ge=1)]


@dataclass(kw_only=True)
class FewLabelConfig:
    """Linear probes on a few labels per class."""

    shots: list[Count] = field(default_factory=lambda: [1, 5, 20])
    """Labels per class, one column each (counts)."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 10
    """Label draws, the same ones for every representation (count)."""
    strengths: list[Annotated[float, Field(gt=0)]] = field(
        default_factory=lambda: [1.0, 10.0, 100.0, 1000.0]
    )
    """Candidates for the probe's C (inverse penalty), chosen per representation and column."""
    selection_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    """Draws among the training samples to choose the strength on (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        return [
            Problem(key, "[]", "at least one number")
            for key, values in (("shots", self.shots), ("strengths", self.strengths))
            if not values
        ]


@dataclass(frozen=True)
class Features:
    """Hold one representation of all images.

    Args:
        train: float (N, D), of the training images.
        heldout: float (M, D), of the held-out images.
    """

    train: np.ndarray
    heldout: np.ndarray


class FewLabel:
    """Probe every representation with the same label draws and compare them in pairs."""

    def __init__(self, config: FewLabelConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        shots = ", ".join(map(str, config.shots))
        return f"linear probes on {shots} labels per class, {config.draws} label draws each"

    def count(self, representations: Mapping[str, Features]) -> int:
        """Return how many table cells `run` will report."""
        return len(representations) * len(self.config.shots)

    def run(
        self,
        representations: Mapping[str, Features],
        *,
        train_labels: np.ndarray,
        heldout_labels: np.ndarray,
        report: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Return accuracies in per cent as plain values, fit for JSON.

        Args:
            representations: name to features; the last is compared with each of the others.
            train_labels: int64 (N,).
            heldout_labels: int64 (M,).
            report: called after each finished table cell.

        Returns:
            "rows": {name: {shots: {"mean", "std", "strength", "accuracy": one per draw}}} and
            "paired": {baseline: {shots: {"mean", "std", "wins", "ties", "losses"}}}, the last
            representation's accuracy minus the baseline's on the same draw. Standard deviations
            are over draws, of the sample (n - 1).

        Raises:
            DataError: a class with fewer samples than the labels asked for.
        """
        self._check(train_labels, heldout_labels)
        draws = {
            shots: label_draws(
                train_labels,
                shots=shots,
                draws=self.config.draws,
                seed=self.seed,
                purpose="few-label",
            )
            for shots in self.config.shots
        }
        rows: dict[str, dict[str, Any]] = {}
        for name, features in representations.items():
            train, heldout = standardise(features.train, features.train, features.heldout)
            rows[name] = {}
            for shots, picks in draws.items():
                rows[name][str(shots)] = self._cell(
                    train, train_labels, heldout, heldout_labels, picks=picks, shots=shots
                )
                report()
        subject = list(rows)[-1]
        others = {name: row for name, row in rows.items() if name != subject}
        paired = {name: _paired(rows[subject], row) for name, row in others.items()}
        return {"subject": subject, "rows": rows, "paired": paired}

    def _cell(
        self,
        train: np.ndarray,
        train_labels: np.ndarray,
        heldout: np.ndarray,
        heldout_labels: np.ndarray,
        *,
        picks: np.ndarray,
        shots: int,
    ) -> dict[str, Any]:
        strength = choose_strength(
            train,
            train_labels,
            shots=shots,
            strengths=self.config.strengths,
            draws=self.config.selection_draws,
            seed=self.seed,
        )
        accuracy = [
            100.0
            * probe_accuracy(
                train[picked], train_labels[picked], heldout, heldout_labels, strength=strength
            )
            for picked in picks
        ]
        return _summary(accuracy) | {"strength": strength, "accuracy": accuracy}

    def _check(self, train_labels: np.ndarray, heldout_labels: np.ndarray) -> None:
        classes, counts = np.unique(train_labels, return_counts=True)
        if counts.min() <= max(self.config.shots):
            raise DataError(
                f"few_label.shots: got {max(self.config.shots)}, allowed fewer than the "
                f"{counts.min()} training images of class {classes[counts.argmin()]}."
            )
        unknown = np.setdiff1d(heldout_labels, classes)
        if unknown.size:
            raise DataError(
                f"held-out labels: got classes {unknown.tolist()} that no training image has."
            )

    def show(self, result: Mapping[str, Any]) -> None:
        """Print a result of `run` as a table."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        for title, (header, lines) in (
            ("% correct on held-out images, mean ± std over label draws", accuracy_table(result)),
            ("gain in points (label draws won)", gain_table(result)),
        ):
            shown = Table(*header, title=title, title_justify="left")
            for line in lines:
                shown.add_row(*line)
            console.print(shown)


TextTable = tuple[list[str], list[list[str]]]


def accuracy_table(result: Mapping[str, Any]) -> TextTable:
    """Lay out accuracies as text: the header, then one row per representation."""
    rows = result["rows"]
    shots = list(next(iter(rows.values())))
    header = ["representation", *[f"{n} label{'s' if n != '1' else ''}/class" for n in shots]]
    lines = [
        [name, *[f"{cells[n]['mean']:.1f} ± {cells[n]['std']:.1f}" for n in shots]]
        for name, cells in rows.items()
    ]
    return header, lines


def gain_table(result: Mapping[str, Any]) -> TextTable:
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
    return [result["subject"], *[f"{n} label{'s' if n != '1' else ''}" for n in shots]], lines


def _paired(subject: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for shots, cell in subject.items():
        gains = np.subtract(cell["accuracy"], baseline[shots]["accuracy"])
        result[shots] = _summary(gains.tolist()) | {
            "wins": int((gains > 0).sum()),
            "ties": int((gains == 0).sum()),
            "losses": int((gains < 0).sum()),
        }
    return result


def _summary(values: list[float]) -> dict[str, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread}
