"""Explain a loss that is not finite: damaged features, or training that diverged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dreamshard.errors import DataError, DreamshardError
from storage.rows.pick import read_rows

if TYPE_CHECKING:
    from distill.data.sets import TrainingSet

MAX_LISTED = 8


def explain(
    step: int,
    index: np.ndarray,
    *,
    terms: Mapping[str, float],
    training_set: TrainingSet,
    rate: float,
) -> DreamshardError:
    """Look at the batch of the failed step and word what is wrong with it.

    Args:
        step: the first step that failed on any rank.
        index: int64 (N,), sample numbers of this rank's batch in that step.
        terms: this rank's loss terms and gradient norm in that step.
        training_set: where the samples are from.
        rate: learning rate of that step.

    Returns:
        A DataError that names the samples whose features are not finite, or a DreamshardError that
        names the batch.
    """
    snapshot = training_set.source.stored
    index = np.sort(index)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    for level in training_set.levels if snapshot is not None else ():
        assert snapshot is not None
        values = read_rows(snapshot, level.name, index).reshape(len(index), -1)
        broken = index[~np.isfinite(values.astype(np.float32)).all(axis=1)]
        if len(broken):
            return DataError(
                f"step {step}: {figures}, because level {level.name} is not finite in samples "
                f"{_names(training_set, broken)}. Run `dreamshard verify {snapshot.url}`, then "
                "encode them again."
            )
    looked = "on features that are gone (a stream)" if snapshot is None else "with finite features"
    return DreamshardError(
        f"step {step}: {figures} at a learning rate of {rate:.3g}, {looked}. Its "
        f"batch was samples {_names(training_set, index)}. Lower optimizer.lr or optimizer.clip, "
        "or warm up longer (optimizer.warmup); the last checkpoint is from before."
    )


def _names(training_set: TrainingSet, index: np.ndarray) -> str:
    shown = index[:MAX_LISTED]
    text = ", ".join(map(str, shown.tolist()))
    if training_set.source.stored is not None:
        keys = training_set.source.stored.keys
        text = ", ".join(f"{number} ({keys[number]})" for number in shown.tolist())
    more = len(index) - len(shown)
    return f"{text} and {more} more" if more else text
