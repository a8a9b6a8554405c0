"""Where a run is and what it is a run of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreamshard.redact import redact

if TYPE_CHECKING:
    from distill.data.sets import TrainingSet


@dataclass
class TrainState:
    """Record where a run is and what it is a run of.

    Args:
        step: steps done.
        position: samples of the endless stream consumed, over all ranks.
        dataset: URL of the dataset, without secrets.
        content_key, layout_key: its recipe's.
        snapshot: version of its snapshot, which the run keeps to its end.
        real: the same of the real images beside it; empty without any.
        config: the whole configuration, as plain values, without secrets.
        processes: how many ranks trained.
        extended: [steps of the whole run before, step it was at] of every time it was extended.
    """

    step: int = 0
    position: int = 0
    dataset: str = ""
    content_key: str = ""
    layout_key: str = ""
    snapshot: str = ""
    config: dict[str, object] = field(default_factory=dict)
    processes: int = 1
    extended: list[list[int]] = field(default_factory=list)
    real: str = ""


def first_state(
    settings: dict[str, object], *, training_set: TrainingSet, processes: int
) -> TrainState:
    """Return the state of a run before its first step; `settings` are all of its configuration."""
    recipe = training_set.source.recipe
    return TrainState(
        dataset=str(redact(training_set.source.url)),
        content_key=recipe.content_key,
        layout_key=recipe.layout_key,
        snapshot=training_set.source.version,
        config={name: redact(value, name=name) for name, value in settings.items()},
        processes=processes,
        real="" if training_set.real is None else training_set.real.version,
    )
