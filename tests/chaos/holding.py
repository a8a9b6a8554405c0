"""Play races of `pin` with `gc`, in processes of their own that may be killed on the way.

    python -m tests.chaos.holding FOLDER SEED [SEED ...]

Prints one JSON object per race. Whoever pins and whoever collects tarry before every step in the
store, so that any order of their steps comes up; who is to be killed is killed before one of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dreamshard.errors import ConfigError, DataError
from storage.dataset import Dataset
from storage.fs.local import LocalFiles
from storage.ledger import holds
from storage.verbs import collect
from storage.verbs.verify import verify_dataset
from tests.feature_store import data_files, fill, make_dataset, make_recipe

SAMPLES = 12
LAST_STEP = 6
"""About how many steps before the removal is final: of the later ones, one is as any other."""


@dataclass(frozen=True)
class Race:
    """One race.

    Args:
        seed: it was drawn from.
        asked: how the collector is told: by the dataset's name, to keep the later of two of a name,
            or to remove what belongs to nothing.
        collectors: how many; they are asked the same.
        victim: who is killed: "pin", "gc" or "" for nobody.
        at: before which of its steps, from 1.
        tarry_s: the longest that one tarries before a step.
    """

    seed: int
    asked: str
    collectors: int
    victim: str
    at: int
    tarry_s: float


def draw(seed: int) -> Race:
    """Draw a race; equal seeds give equal ones."""
    rng = random.Random(f"holding/{seed}")
    return Race(
        seed,
        rng.choice(("name", "latest", "strays")),
        rng.choice((1, 1, 2)),
        rng.choice(("", "gc", "gc", "pin")),
        rng.randint(1, LAST_STEP),
        rng.choice((0.001, 0.004, 0.02)),
    )


def start(race: Race, who: str, number: int, do: Callable[[], object], told: Path) -> int:
    """Fork one who pins or collects; what came of it is written to a file."""
    if pid := os.fork():
        return pid
    try:
        rng, count = random.Random(f"{race.seed}/{who}/{number}"), 0

        def before(step: str, key: str) -> None:
            nonlocal count
            count += 1
            time.sleep(rng.random() * race.tarry_s)
            if who == race.victim and number == 0 and count == race.at:
                (told.parent / "struck").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        LocalFiles.fault = staticmethod(before)  # type: ignore[assignment]
        # A removal takes several steps, a pin few.
        time.sleep(rng.random() * race.tarry_s * (LAST_STEP if who == "pin" else 1))
        try:
            said = str(do())
        except (DataError, ConfigError) as error:
            said = f"refused: {error}"
        except BaseException:
            said = traceback.format_exc()
        told.write_text(said)
    finally:
        os._exit(0)


def play(race: Race, template: Path, folder: Path) -> dict[str, object]:
    """Play one race; say what is wrong with what it left."""
    root = folder / "root"
    shutil.copytree(template, root)
    first, later = sorted(root.iterdir(), key=lambda path: (path / "later").exists())
    (later / "later").unlink()
    dataset = Dataset.open(str(first))
    files, whole = dataset.files, data_files(dataset)
    if race.asked == "strays":
        for key in dataset.store.unit_keys(SAMPLES // dataset.samples_per_unit):
            files.write(key, b"of a unit that was never committed")
    words = {"name": {"remove": [first.name]}, "latest": {"keep_latest": 1}, "strays": {}}
    planned = collect.plan(str(root), **words[race.asked])  # type: ignore[arg-type]
    assert planned
    pids = [start(race, "pin", 0, lambda: pin(first), folder / "pin")]
    pids += [
        start(race, "gc", number, lambda: collect.collect(planned), folder / f"gc-{number}")
        for number in range(race.collectors)
    ]
    for pid in pids:
        os.waitpid(pid, 0)
    said = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    problems = [text for text in said.values() if "Traceback" in text]
    pinned = "keep" in holds.pins(files) and not holds.is_gone(files)
    if said.get("pin") == "True" and not pinned:
        problems.append("a pinned dataset is gone")
    # Whoever was killed, the next one puts it in order and takes nothing that is held.
    collect.collect(collect.plan(str(root), keep_latest=1))
    if pinned:
        problems += wrong(Dataset.open(str(first)), whole)
    elif (first / "dataset.json").exists() or list(first.rglob("*.json")):
        problems.append(f"left: {sorted(map(str, first.rglob('*')))[:5]}")
    problems += wrong(Dataset.open(str(later)))
    return {**asdict(race), "said": said, "pinned": pinned, "problems": problems}


def pin(folder: Path) -> bool:
    """Pin as `dreamshard pin` does."""
    return holds.pin(Dataset.open(str(folder)).files, name="keep", reason="chaos")


def wrong(dataset: Dataset, whole: dict[str, bytes] | None = None) -> list[str]:
    """Say what is wrong with a dataset that must be whole."""
    report = verify_dataset(dataset)
    problems = [str(item) for item in (*report.findings, *report.missing)]
    found = data_files(dataset)
    if whole is not None and any(found.get(key) != data for key, data in whole.items()):
        problems.append("other bytes")
    left = [path for path in Path(dataset.url, "staging").rglob("*") if path.is_file()]
    return problems + [f"left: {path}" for path in left]


def main(argv: list[str]) -> None:
    """Play the seeds given; keep the folders of those that went wrong."""
    base = Path(argv[0])
    template = base / "template"
    for seed in range(2):
        dataset = make_dataset(template, recipe=make_recipe(count=SAMPLES, seed=seed))
        fill(dataset, SAMPLES)
        if seed:
            Path(dataset.url, "later").touch()
    for word in argv[1:]:
        folder = base / f"seed-{word}"
        folder.mkdir()
        told = play(draw(int(word)), template, folder)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if not told["problems"]:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
