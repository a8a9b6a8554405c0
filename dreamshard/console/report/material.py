"""Collect what a report is made of: runs, a dataset, probe results."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.console.report.runs import (
    Run,
    find_runs,
    is_number,
    mapping_in,
    read_json,
    read_run,
)
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from storage.dataset import Dataset

DEMO_INDEX = "demo.json"
"""Names the runs that belong together, in a folder of `dreamshard demo`."""
RESULTS = "results.json"
"""Written by `dreamshard evaluate`."""

MAX_BESIDE = 200
"""Folders beside a training run that are looked into for its evaluation."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Material:
    """Hold what a report is made of; what is None was not found."""

    folder: Path
    pretrain: Run | None = None
    encode: Run | None = None
    train: Run | None = None
    evaluate: Run | None = None
    dataset: Dataset | None = None
    samples_png: Path | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    """What `dreamshard evaluate` found, as in its results.json."""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, Run]:
        """Return the runs found, in the order of the stages."""
        stages = {
            "pretrain": self.pretrain,
            "encode": self.encode,
            "train": self.train,
            "evaluate": self.evaluate,
        }
        return {name: run for name, run in stages.items() if run is not None}

    @property
    def probe(self) -> Mapping[str, Any] | None:
        """Return the few-label probe's result; None if it is not whole or was not asked for."""
        result = self.results.get("few_label", self.results)
        whole = isinstance(result, dict) and {"rows", "paired", "subject"} <= result.keys()
        return result if whole else None


def seconds_of(material: Material, stage: str) -> float | None:
    """Return how long a stage took: as timed by the demo, else as its own records tell."""
    run = material.runs.get(stage)
    if stage in material.seconds:
        return material.seconds[stage]
    if run is None:
        return None
    if is_number(run.stats.get("seconds")):
        return float(run.stats["seconds"])
    times = [line["time"] for line in run.metrics() if is_number(line.get("time"))]
    return max(times) - min(times) if len(times) > 1 else None


def rate_of(material: Material, stage: str) -> float | None:
    """Return a stage's images per second: its own figure, else the median of its metrics."""
    run = material.runs.get(stage)
    if run is None:
        return None
    if is_number(run.stats.get("img_per_s")):
        return float(run.stats["img_per_s"])
    rates = [line["img_per_s"] for line in run.metrics() if is_number(line.get("img_per_s"))]
    return statistics.median(rates) if rates else None


def gather(folder: Path) -> Material:
    """Find everything below a folder: a demo's, one run's, or a dataset's.

    Of several runs of one stage the newest is taken, unless the folder's demo.json names another.

    Raises:
        DataError: there is neither a run nor a dataset.
    """
    index = read_json(folder / DEMO_INDEX)
    found = sorted(find_runs(folder), key=_age)
    newest = {run.verb: run for run in found}
    if not index:
        _say_others(folder, found, newest)
    for verb, place in mapping_in(index, "runs").items():
        run = read_run(folder / str(place))
        if run is not None:
            newest[verb] = run
    pretrain, train, evaluate = (newest.get(verb) for verb in ("pretrain", "train", "evaluate"))
    train = train or _judged(evaluate)
    evaluate = evaluate or _judging(train)
    encode = newest.get("encode") or newest.get("synthesize")
    dataset = _find_dataset(folder, index, encode=encode, train=train)
    if not newest and dataset is None:
        raise DataError(
            f"{folder}: got neither a run nor a dataset, allowed the folder of a demo, of a run or "
            "of a dataset. `dreamshard demo` makes all of them."
        )
    return Material(
        folder=folder,
        pretrain=pretrain,
        encode=encode,
        train=train,
        evaluate=evaluate,
        dataset=dataset,
        samples_png=_find_samples(pretrain),
        results=read_json(evaluate.path / RESULTS) if evaluate is not None else {},
        seconds={
            verb: mapping_in(index, "seconds")[str(place)]
            for verb, place in mapping_in(index, "runs").items()
            if is_number(mapping_in(index, "seconds").get(str(place)))
        },
    )


def _say_others(folder: Path, found: Sequence[Run], newest: Mapping[str, Run]) -> None:
    """Say which runs a page leaves out: it shows one of a stage."""
    for verb, run in newest.items():
        count = sum(other.verb == verb for other in found)
        if verb and count > 1:
            log.warning(
                "%s: %d runs of %s below, the newest is shown: %s; name folders to compare them",
                folder, count, verb, run.path,
            )  # fmt: skip


def _age(run: Run) -> float:
    return (run.path / "command.txt").stat().st_mtime


def _find_dataset(
    folder: Path, index: Mapping[str, Any], *, encode: Run | None, train: Run | None
) -> Dataset | None:
    """Open the dataset that the runs name, else one that lies below the folder."""
    from storage.catalog import find_dataset

    named = [str(index.get("dataset", ""))]
    if encode is not None:
        named.append(str(encode.stats.get("dataset", "")))
    if train is not None:
        named.append(str(mapping_in(train.settings(), "data").get("dataset", "")))
    lying = [folder, *folder.glob("*/"), *folder.glob("*/*/")]
    named += [str(place) for place in sorted(lying) if (place / "dataset.json").exists()]
    for reference in filter(None, named):
        try:
            return find_dataset(reference)
        except DataError as error:
            log.warning("left out: %s", error)
    return None


def _find_samples(pretrain: Run | None) -> Path | None:
    """Find the picture of samples: in the teacher's folder, which holds or names the run."""
    if pretrain is None:
        return None
    places = [Path(str(pretrain.stats.get("teacher", pretrain.path))), pretrain.path.parent]
    pictures = (place / "samples.png" for place in places)
    return next((picture for picture in pictures if picture.exists()), None)


def _judged(evaluate: Run | None) -> Run | None:
    """Return the training run whose student an evaluation is of, if it is still there."""
    if evaluate is None:
        return None
    student = read_json(evaluate.path / RESULTS).get("student")
    places = [Path(student), Path(student).parent] if isinstance(student, str) else []
    runs = (read_run(place) for place in places)
    return next((run for run in runs if run is not None and run.verb == "train"), None)


def _judging(train: Run | None) -> Run | None:
    """Return the newest evaluation of a training run's student among the folders beside it."""
    if train is None:
        return None
    beside = sorted(train.path.absolute().parent.glob(f"*/{RESULTS}"))[:MAX_BESIDE]
    candidates = []
    for place in beside:
        student = read_json(place).get("student")
        if isinstance(student, str) and _same(Path(student), train.path):
            candidates.append(read_run(place.parent))
    runs = [run for run in candidates if run is not None and run.verb == "evaluate"]
    return max(runs, key=_age, default=None)


def _same(student: Path, run: Path) -> bool:
    return run.resolve() in (student.resolve(), student.resolve().parent)
