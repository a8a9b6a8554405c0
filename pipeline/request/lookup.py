"""Ask the catalog for the dataset that serves a request; make a new one only if there is none."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.request.resolve import ResolvedRequest
from storage import catalog
from storage.dataset import Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Existing:
    """A dataset that is there already, and what it is to the request."""

    dataset: Dataset
    complete: bool
    """Whether it has all samples wanted."""
    extendable: bool
    """Whether units can be added to it."""
    reason: str
    """In what it differs from the dataset asked for, in words."""


def look_up(request: ResolvedRequest) -> Existing | None:
    """Find the dataset that has what is wanted, or that more units can be added to.

    One with more levels, or in another layout, serves if it has all samples wanted; it is never
    added to.

    Raises:
        ConfigError, DataError: a root that cannot be read.
    """
    root, prefix_digest = request.asked.root, request.input.prefix_digest
    try:
        match = catalog.find(root, request.recipe, prefix_digest=prefix_digest)
    except DataError:
        request.check_writable()  # the same reason, by the setting's name
        raise
    if match is None:
        return None
    dataset = Dataset.open(match.url, fsync=request.asked.fsync)
    complete = not len(dataset.missing(request.wanted))
    if not complete and not match.extendable:
        return None
    return Existing(dataset, complete, match.extendable, str(match))


def create(request: ResolvedRequest) -> Dataset:
    """Make the dataset of a request."""
    return Dataset.create(
        request.asked.root,
        request.recipe,
        levels=request.spec.levels,
        image_size=request.spec.image_size,
        pins=request.pins,
        labels=request.input.has_labels,
        masks=request.input.has_masks,
        extra={
            "licence": request.spec.licence,
            **_flags(request),
            **request.input.notes(),
        },
        fsync=request.asked.fsync,
    )


def _flags(request: ResolvedRequest) -> dict[str, object]:
    """Say what decided the features and was not in the weights: value, source, whose."""
    told = {
        flag.name: {"value": flag.value, "source": flag.source, "whose": flag.whose}
        for flag in request.spec.flags
    }
    return {"teacher_flags": told} if told else {}


def check_pins(request: ResolvedRequest, dataset: Dataset, *, num_gpus: float) -> None:
    """Say which settings have no effect because the dataset was begun with others.

    Raises:
        ConfigError: it was begun on GPUs, and no actor is to have one.
    """
    if dataset.pins != request.pins:
        log.warning(
            "%s keeps what it was begun with, so that all its shards are alike: %s",
            dataset.url,
            dataset.pins,
        )
    if dataset.pins.device == "cuda" and num_gpus == 0:
        allowed = f"more than 0: {dataset.url} was begun on GPUs"
        hint = "Try --gpus_per_actor 1, or another --root."
        raise ConfigError(Problem("gpus_per_actor", "0", allowed, hint))
