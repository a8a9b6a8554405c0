"""Ask the catalog for the dataset that serves a request; make a new one only if there is none."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dreamshard.errors import ConfigError, Problem
from pipeline.request.config import PipelineConfig
from pipeline.request.resolve import Request
from storage import catalog
from storage.dataset import Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A dataset that is there already, and what it is to the request."""

    dataset: Dataset
    complete: bool
    """Whether it has all samples wanted."""
    reason: str
    """In what it differs from the dataset asked for, in words."""


def look_up(config: PipelineConfig, request: Request) -> Found | None:
    """Find the dataset that has what is wanted, or that more units can be added to.

    One with more levels, or in another layout, serves if it has all samples wanted; it is never
    added to.
    """
    match = catalog.find(config.root, request.recipe, prefix_digest=request.input.prefix_digest)
    if match is None:
        return None
    dataset = Dataset.open(match.url, fsync=config.fsync)
    complete = not len(dataset.missing(request.wanted))
    return Found(dataset, complete, str(match)) if complete or match.extendable else None


def create(config: PipelineConfig, request: Request) -> Dataset:
    """Make the dataset of a request."""
    return Dataset.create(
        config.root,
        request.recipe,
        levels=request.spec.levels,
        image_size=request.spec.image_size,
        pins=request.pins,
        labels=request.input.has_labels,
        masks=request.input.has_masks,
        extra={"licence": request.spec.licence},
        fsync=config.fsync,
    )


def check_pins(config: PipelineConfig, request: Request, dataset: Dataset) -> None:
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
    if dataset.pins.device == "cuda" and config.gpus_per_actor == 0:
        allowed = f"more than 0: {dataset.url} was begun on GPUs"
        hint = "Try --gpus_per_actor 1, or another --root."
        raise ConfigError(Problem("gpus_per_actor", "0", allowed, hint))
