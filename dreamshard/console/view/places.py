"""What was named on the command line: datasets, runs and the students that lie in them.

Only these are served. A browser names them by number, so that no request can hold a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreamshard.console.report.runs import find_runs
from dreamshard.errors import DataError
from dreamshard.redact import redact_line
from storage.catalog import find_dataset, list_datasets
from storage.dataset import Dataset

STUDENT = ("student.json", "student/student.json")
"""Where a run's folder, or a student's, has the card of its student."""


@dataclass
class Places:
    """Hold what may be looked at, in the order it was named.

    Args:
        datasets: opened.
        runs: their folders.
        students: folders with a trained student.
        damaged: what could not be opened, one text each.
    """

    datasets: list[Dataset] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    students: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def told(self) -> str:
        """Count what was found."""
        counts = {
            "datasets": self.datasets,
            "runs": self.runs,
            "students": self.students,
            "that cannot be opened": self.damaged,
        }
        return ", ".join(f"{len(listed)} {name}" for name, listed in counts.items() if listed)


def find_places(named: Sequence[str]) -> Places:
    """Find the datasets and runs that are meant by some folders and URLs.

    Raises:
        DataError: one of them holds nothing to look at.
    """
    places = Places()
    for name in named:
        before = len(places.datasets), len(places.runs), len(places.students), len(places.damaged)
        if "://" not in name and Path(name).is_dir():
            _look_below(Path(name), places)
        elif "://" in name:
            _look_at(name, places)
        else:
            places.datasets.append(find_dataset(name))
        after = len(places.datasets), len(places.runs), len(places.students), len(places.damaged)
        if after == before:
            raise DataError(
                f"{redact_line(name)}: got neither a dataset nor a run, allowed one of them or a "
                "folder of them. `dreamshard demo` makes both."
            )
    return places


def _look_below(folder: Path, places: Places) -> None:
    """Add what lies in a local folder and up to two folders below it, through no link out of it."""
    root = folder.resolve()

    def inside(path: Path) -> bool:
        return path.resolve().is_relative_to(root)

    seen = {Path(dataset.url) for dataset in places.datasets}
    for place in _folders(folder):
        if inside(place) and (place / "dataset.json").is_file() and place.resolve() not in seen:
            _open(str(place), places)
    known = set(places.runs)
    places.runs += [
        run.path for run in find_runs(folder) if inside(run.path) and run.path not in known
    ]
    for place in _folders(folder):
        has_card = any((place / name).is_file() and inside(place / name) for name in STUDENT)
        if has_card and place.name != "student" and place not in places.students:
            places.students.append(place)


def _folders(folder: Path) -> Iterator[Path]:
    """Yield a folder and those up to two below it, without the insides of datasets."""
    yield folder
    if (folder / "dataset.json").exists():
        return
    for entry in sorted(folder.glob("*/")):
        yield entry
        if not (entry / "dataset.json").exists():
            yield from sorted(entry.glob("*/"))


def _look_at(url: str, places: Places) -> None:
    """Add the datasets under a URL, or the one dataset that it names."""
    try:
        listed = list(list_datasets(url))
    except DataError:
        places.datasets.append(find_dataset(url))
        return
    for place, about in listed:
        if isinstance(about, DataError):
            places.damaged.append(str(about))
        else:
            places.datasets.append(Dataset(place, about))


def _open(url: str, places: Places) -> None:
    try:
        places.datasets.append(Dataset.open(url))
    except DataError as error:
        places.damaged.append(str(error))
