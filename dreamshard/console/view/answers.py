"""What the page asks for, by name: each answer takes a query of texts and gives JSON's values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dreamshard.console.view import features
from dreamshard.console.view.features import Features
from dreamshard.console.view.feed import Feed
from dreamshard.console.view.places import Places
from dreamshard.console.view.samples import STATES, Shelf, Wanted, level_facts
from dreamshard.console.view.students import Pupil
from dreamshard.errors import DataError

MAX_SHOWN, MAX_KEY = 200, 1000
Query = Mapping[str, str]


class Desk:
    """Open what is asked about, once.

    Args:
        places: what may be asked about.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.feeds = [Feed(folder) for folder in places.runs]
        self.pupils = [Pupil(n, folder) for n, folder in enumerate(places.students)]
        self._shelves: dict[int, Shelf] = {}
        self._features: dict[tuple[int, str], Features] = {}
        self._lock = threading.Lock()

    def shelf(self, query: Query, name: str = "d") -> Shelf:
        """Return the dataset of a number."""
        number = whole(query, name, most=len(self.places.datasets) - 1)
        with self._lock:
            if number not in self._shelves:
                self._shelves[number] = Shelf(self.places.datasets[number])
            return self._shelves[number]

    def again(self) -> None:
        """Forget what was opened, so that the next look shows what is there then."""
        with self._lock:
            self._shelves.clear()
            self._features.clear()

    def level(self, query: Query) -> Features:
        """Return the level of a dataset that is asked about, a student's among them."""
        shelf, name = self.shelf(query), query.get("level", "")
        number = whole(query, "d", most=len(self.places.datasets) - 1)
        with self._lock:
            features = self._features.get((number, name))
            if features is None or features.shelf is not shelf:
                features = self._features[number, name] = self._open(shelf, name)
            return features

    def _open(self, shelf: Shelf, name: str) -> Features:
        for level in shelf.snapshot.levels:
            if level.name == name:
                return Features(shelf, level)
        for pupil in self.pupils:
            for level in pupil.facts()["levels"]:
                if level.name == name:
                    return Features(shelf, level, partial(pupil.read, shelf, level.stride))
        names = ", ".join(level.name for level in shelf.snapshot.levels)
        raise DataError(f"level: got {name!r:.80}, allowed {names}.")


def whole(query: Query, name: str, *, least: int = 0, most: int) -> int:
    """Return a whole number of a query.

    Raises:
        DataError: it is none, or out of range.
    """
    text = query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise DataError(f"{name}: got {text!r:.40}, allowed a whole number.")
    if not least <= int(text) <= most:
        raise DataError(f"{name}: got {text}, allowed {least}..{most}.")
    return int(text)


def samples_of(query: Query, shelf: Shelf, name: str = "i") -> list[int]:
    """Return the sample numbers of a query, separated by commas; those alone that are made."""
    parts = [part for part in query.get(name, "").split(",") if part]
    if len(parts) > MAX_SHOWN:
        raise DataError(f"{name}: got {len(parts)} samples, allowed {MAX_SHOWN}.")
    most = len(shelf.snapshot) - 1
    return shelf.made([whole({name: part}, name, most=most) for part in parts])


def share(query: Query, name: str) -> float:
    """Return a number of 0..1 of a query."""
    try:
        value = float(query.get(name, ""))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(f"{name}: got {query.get(name)!r:.40}, allowed 0..1.")
    return value


def places(desk: Desk, query: Query) -> dict[str, Any]:
    """List datasets, runs and students; a page that is loaded asks this first."""
    desk.again()
    datasets: list[dict[str, Any]] = []
    for number, dataset in enumerate(desk.places.datasets):
        try:
            datasets.append(desk.shelf({"d": str(number)}).facts())
        except DataError as error:
            name = dataset.url.rpartition("/")[2]
            datasets.append({"name": name, "error": str(error), "levels": []})
    pupils = [pupil.facts() for pupil in desk.pupils]
    for pupil in pupils:
        pupil["levels"] = [level_facts(level) for level in pupil["levels"]]
    return {
        "datasets": datasets,
        "runs": [{"name": feed.folder.name, "place": str(feed.folder)} for feed in desk.feeds],
        "students": pupils,
        "damaged": desk.places.damaged,
    }


def samples(desk: Desk, query: Query) -> dict[str, Any]:
    """List a page of samples; `key`, `label` and `state` choose which."""
    shelf, state = desk.shelf(query), query.get("state", "all")
    if state not in STATES:
        raise DataError(f"state: got {state!r:.40}, allowed {', '.join(STATES)}.")
    label = whole(query, "label", most=1 << 48) if query.get("label") else None
    wanted = Wanted(key=query.get("key", "")[:MAX_KEY], label=label, state=state)
    first = whole(query, "first", most=1 << 48)
    return shelf.page(wanted, first=first, count=whole(query, "count", least=1, most=MAX_SHOWN))


def rows(desk: Desk, query: Query) -> dict[str, Any]:
    """Describe samples by number."""
    shelf = desk.shelf(query)
    return {"rows": shelf.rows(samples_of(query, shelf))}


def images(desk: Desk, query: Query) -> dict[str, Any]:
    """Return samples' images by number."""
    shelf = desk.shelf(query)
    chosen = samples_of(query, shelf)
    return _by_number(chosen, features.images(shelf, chosen) if chosen else [])


def maps(desk: Desk, query: Query) -> dict[str, Any]:
    """Return a level's maps of samples as colours, by number; `own` gives each its own basis."""
    level = desk.level(query)
    chosen = samples_of(query, level.shelf)
    own = query.get("own") == "1"
    return _by_number(chosen, level.colours(chosen, own=own) if chosen else [])


def likeness(desk: Desk, query: Query) -> dict[str, Any]:
    """Compare the cell at y, x of sample `of` with all cells of samples."""
    level = desk.level(query)
    chosen, of = samples_of(query, level.shelf), samples_of(query, level.shelf, "of")
    if not chosen or len(of) != 1:
        raise DataError("i, of: got no sample that is made, allowed one or more.")
    pictures, best = level.likeness(of[0], y=share(query, "y"), x=share(query, "x"), among=chosen)
    told = _by_number(chosen, pictures)
    return told | {"best": dict(zip(map(str, chosen), best, strict=True))}


def statistics(desk: Desk, query: Query) -> dict[str, Any]:
    """Return a level's numbers and histogram."""
    return desk.level(query).statistics


def neighbours(desk: Desk, query: Query) -> dict[str, Any]:
    """Find the samples that are most like `of` in a level."""
    level = desk.level(query)
    of = samples_of(query, level.shelf, "of")
    if len(of) != 1:
        raise DataError("of: got no sample that is made, allowed one.")
    nearest = level.neighbours(of[0], count=whole(query, "count", least=1, most=MAX_SHOWN))
    return nearest | {"rows": level.shelf.rows(nearest["samples"])}


def same(desk: Desk, query: Query) -> dict[str, Any]:
    """Find samples of dataset d in dataset e, by key; null where it has none."""
    ours, theirs = desk.shelf(query), desk.shelf(query, "e")
    chosen = samples_of(query, ours)
    keys = [row["key"] for row in ours.rows(chosen)]
    matches = theirs.same(keys, near=chosen)
    return {"same": dict(zip(map(str, chosen), matches, strict=True))}


def run(desk: Desk, query: Query) -> dict[str, Any]:
    """Return a run's figures; only its age and pace where the page has this version already."""
    told = desk.feeds[whole(query, "r", most=len(desk.feeds) - 1)].look()
    if query.get("version") == str(told["version"]):
        del told["curves"]
    return told


def _by_number(chosen: list[int], pictures: list[str]) -> dict[str, Any]:
    return {"pictures": dict(zip(map(str, chosen), pictures, strict=True))}


ANSWERS: dict[str, Callable[[Desk, Query], object]] = {
    "places": places,
    "samples": samples,
    "rows": rows,
    "images": images,
    "maps": maps,
    "likeness": likeness,
    "statistics": statistics,
    "neighbours": neighbours,
    "same": same,
    "run": run,
}
"""Name in the address -> what answers."""
