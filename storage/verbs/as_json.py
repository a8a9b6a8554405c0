"""What `ls`, `inspect`, `verify` and `gc` say, as plain values for scripts: their --json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from storage.catalog import list_datasets
from storage.dataset import Dataset
from storage.verbs.collect import Garbage
from storage.verbs.findings import Report
from storage.verbs.inspect import Summary, summarize
from storage.verbs.statistics import LevelStatistics

SCHEMA = 1
"""Raised when a member changes its meaning or goes; new members do not raise it."""


def listed(root: str) -> Iterator[dict[str, Any]]:
    """Yield what a root holds, one dict a dataset.

    Members: name, url, state ("whole", "incomplete", "damaged" or "unreadable"); of what can be
    read also samples, requested, invalid, units, missing, bytes, levels (names); else error.

    Raises:
        DataError: there is no such root.
    """
    for url, about in list_datasets(root):
        entry: dict[str, Any] = {"name": url.rpartition("/")[2], "url": url}
        try:
            if isinstance(about, DataError):
                raise about
            summary = summarize(Dataset(url, about), max_errors=0)
        except CannotReadError as error:
            yield entry | {"state": "unreadable", "error": str(error)}
        except DataError as error:
            yield entry | {"state": "damaged", "error": str(error)}
        else:
            levels = [level.name for level in about.levels]
            yield entry | counts(summary) | {"levels": levels}


def counts(summary: Summary) -> dict[str, Any]:
    """Return a dataset's counts: state, samples, requested, invalid, units, missing, bytes."""
    return {
        "state": "incomplete" if summary.missing else "whole",
        "samples": summary.samples,
        "requested": summary.requested,
        "invalid": summary.invalid,
        "units": summary.units,
        "missing": summary.missing,
        "bytes": summary.stored_bytes,
    }


def inspected(
    dataset: Dataset, summary: Summary, statistics: Iterable[LevelStatistics]
) -> dict[str, Any]:
    """Return what a dataset holds.

    Members: schema, url, the counts, samples_per_unit, recipe (name, keys, content, layout),
    created (seconds since 1970), licence, image_size, pins, libraries, arrays (one dict each),
    statistics (by level; values that are not finite are null), errors (by sample), left_out (units
    that could not be made, with the reason).
    """
    about, recipe = dataset.about, dataset.recipe
    return {
        "schema": SCHEMA,
        "url": dataset.url,
        **counts(summary),
        "samples_per_unit": dataset.samples_per_unit,
        "recipe": {
            "name": recipe.name,
            "content_key": recipe.content_key,
            "layout_key": recipe.layout_key,
            "content": recipe.content,
            "layout": recipe.layout,
        },
        "created": about.created,
        "licence": about.licence,
        "image_size": list(about.image_size),
        "pins": vars(about.pins),
        "libraries": dict(about.libraries),
        "arrays": [dataclasses.asdict(array) for array in summary.arrays],
        "statistics": {facts.name: _finite(facts) for facts in statistics},
        "errors": {str(index): error for index, error in summary.errors.items()},
        "left_out": {str(unit): str(why) for unit, why in dataset.quarantined().items()},
    }


def verified(dataset: Dataset, report: Report) -> dict[str, Any]:
    """Return what a check found.

    Members: schema, url, whole (nothing damaged, everything read), units, samples, invalid, bytes,
    damaged and unreadable (lists of path, problem, unit, by_hand), missing (units), notes,
    unsealed.
    """
    content = dataclasses.asdict(report)
    damaged, unreadable = content.pop("findings"), content.pop("unreadable")
    whole = not damaged and not unreadable
    told = {"schema": SCHEMA, "url": dataset.url, "whole": whole, **content}
    return told | {"damaged": damaged, "unreadable": unreadable}


def planned(root: str, garbage: Sequence[Garbage], removed: Sequence[int] | None) -> dict[str, Any]:
    """Return what may go, and what went.

    Members: schema, root, garbage (a list of url, kind, reason, bytes, null where they were not
    counted, and removed, how many files went: null without --yes, 0 of what stays after all).
    """
    files = [None] * len(garbage) if removed is None else removed
    told = [
        {
            "url": item.url,
            "kind": item.kind,
            "reason": item.reason,
            "bytes": None if item.bytes < 0 else item.bytes,
            "removed": count,
        }
        for item, count in zip(garbage, files, strict=True)
    ]
    return {"schema": SCHEMA, "root": root, "garbage": told}


def strict(value: Any) -> Any:
    """Return JSON values with null for every number that is not finite: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(facts: LevelStatistics) -> dict[str, Any]:
    values = dataclasses.asdict(facts)
    del values["name"]
    return strict(values)
