"""Small datasets for the storage tests: made, filled, broken and compared."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from dreamshard.rng import generator
from storage.dataset import Dataset
from storage.fs.local import LocalFiles
from storage.ledger import evidence
from storage.schema import FeatureBatch, Level, Pins, Recipe

LEVELS = (
    Level("up.1.t100", "feature", "up.1", 100, 0, "", 4, (3, 2, 2), "float32"),
    Level("emb", "embedding", "gap", 0, 0, "mean", 0, (5,), "float16"),
    Level("top", "soft_label", "head", 0, 0, "", 0, (4,), "int32"),
)
PINS = Pins(micro_batch=4, compute_dtype="float32", device="cpu", threads=1)
UNIT = 6


def make_recipe(
    *,
    name: str = "noise-test",
    layout_format: str = "zarr",
    count: int = 20,
    unit: int = UNIT,
    seed: int = 0,
    levels: tuple[Level, ...] = LEVELS,
    codec: str = "float16",
) -> Recipe:
    content: dict[str, object] = {
        "algorithm": 1,
        "generator": "philox-1",
        "teacher": {"kind": "noise"},
        "levels": [{"name": level.name, "tap": level.tap} for level in levels],
        "source": {"kind": "test", "count": count, "digest": f"digest-{count}"},
        "seed": seed,
    }
    codecs = {level.name: codec for level in levels if level.dtype.startswith("float")}
    layout: dict[str, object] = {
        "format": layout_format,
        "codecs": codecs,
        "samples_per_unit": unit,
        "format_version": 1,
    }
    return Recipe(name, content, layout)


def make_dataset(
    root: Path | str,
    *,
    recipe: Recipe | None = None,
    levels: tuple[Level, ...] = LEVELS,
    masks: bool = True,
    fsync: bool = False,
    extra: Mapping[str, object] | None = None,
) -> Dataset:
    return Dataset.create(
        str(root),
        recipe or make_recipe(),
        levels=levels,
        image_size=(4, 4),
        pins=PINS,
        extra={"licence": "test", **(extra or {})},
        labels=True,
        masks=masks,
        fsync=fsync,
    )


def make_batch(
    start: int,
    count: int,
    *,
    invalid: tuple[int, ...] = (),
    noise: int = 0,
    levels: tuple[Level, ...] = LEVELS,
) -> FeatureBatch:
    """Make samples start..start+count; their values depend on the index (and `noise`) alone."""
    index = np.arange(start, start + count)
    values: dict[str, list[np.ndarray]] = {level.name: [] for level in levels}
    images, masks = [], []
    for i in index.tolist():
        rng = generator(noise, i, 0, "test")
        images.append(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        masks.append(rng.integers(0, 9, (4, 4), dtype=np.uint8))
        for level in levels:
            if level.dtype.startswith("int"):
                values[level.name].append(rng.integers(0, 99, level.shape).astype(level.dtype))
            else:
                values[level.name].append(rng.standard_normal(level.shape).astype(level.dtype))
    valid = ~np.isin(index, invalid)
    return FeatureBatch(
        index=index,
        key=[f"key/{i}" for i in index],
        valid=valid,
        image=np.stack(images),
        levels={name: np.stack(rows) for name, rows in values.items()},
        label=index % 7,
        mask=np.stack(masks),
        error={int(row): "truncated" for row in np.flatnonzero(~valid)},
    )


def write_unit(
    dataset: Dataset,
    unit: int,
    *,
    num_samples: int,
    run_id: str = "run",
    invalid: tuple[int, ...] = (),
    noise: int = 0,
):
    """Write one unit in batches of four and commit it."""
    first = unit * dataset.samples_per_unit
    count = min(dataset.samples_per_unit, num_samples - first)
    with dataset.unit_writer(unit, count=count, run_id=run_id) as writer:
        for offset in range(0, count, 4):
            some = min(4, count - offset)
            levels = dataset.levels
            batch = make_batch(first + offset, some, invalid=invalid, noise=noise, levels=levels)
            writer.write(offset, batch)
        return writer.commit(input_digest=f"in-{unit}", seconds=0.5)


def fill(
    dataset: Dataset, num_samples: int, *, run_id: str = "run", invalid: tuple[int, ...] = ()
) -> list[int]:
    """Do what a run does; return the units it made."""
    dataset.grow(num_samples)
    with dataset.lease(run_id):
        units = dataset.missing(num_samples).tolist()
        for unit in units:
            write_unit(dataset, unit, num_samples=num_samples, run_id=run_id, invalid=invalid)
        dataset.roll_up(final=True)
    return units


def data_files(dataset: Dataset) -> dict[str, bytes]:
    """Return the bytes of all files that hold samples."""
    keys = [key for unit in range(100) for key in dataset.store.unit_keys(unit)]
    return {key: dataset.files.read(key) for key in keys if dataset.files.size(key) is not None}


def all_keys(dataset: Dataset) -> set[str]:
    """List a dataset's files but for the marks of readers.

    Those live as long as what reads does, which Python collects when it likes; one whose removal a
    bad network lost goes stale by itself.
    """
    return {key for key in dataset.files.walk("") if not key.startswith("pins/readers/")}


def expected_keys(dataset: Dataset) -> set[str]:
    """List the files a dataset consists of, when no run is at work on it."""
    keys = {"dataset.json", *dataset.store.metadata_keys()}
    for folder in ("commits", "manifest", "requests"):
        keys.update(dataset.files.walk(folder))
    for unit in dataset.committed():
        keys.update(dataset.store.unit_keys(unit))
    return keys


class Clock:
    """Stand for the clocks of `storage.ledger.evidence`: time passes where a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def stop_clocks(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock of a test's own in the place of this machine's; sleeping moves it."""
    clock = Clock()
    for name, action in (("clock", clock), ("elapsed", clock), ("sleep", clock.sleep)):
        monkeypatch.setattr(evidence, name, action)
    return clock


class Crash(BaseException):
    """What a process that is killed does not survive: nothing runs after it."""


class Fault:
    """Fail one step of all that change a file, and, after a crash, every step that follows."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.steps, self.dead = at, error, 0, False
        self.log: list[str] = []

    def __call__(self, step: str, key: str) -> None:
        self.log.append(f"{step} {key}")
        self.steps += 1
        if self.dead or self.steps == self.at:
            self.dead = isinstance(self.error, Crash)
            raise self.error


@contextlib.contextmanager
def fault(at: int, error: BaseException) -> Iterator[Fault]:
    injector = Fault(at, error)
    LocalFiles.fault = staticmethod(injector)  # type: ignore[assignment]
    try:
        yield injector
    finally:
        LocalFiles.fault = None


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def no_permission() -> OSError:
    return PermissionError(errno.EACCES, "Permission denied")


def count_steps(action: Callable[[], object]) -> int:
    with fault(0, Crash()) as injector:
        action()
    return injector.steps
