"""What must not grow: seconds to open large manifests and catalogs, and a reader's own memory."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.storage_work import BATCH, OURS, make_arrays, write_ours
from storage.batches.reader import BatchReader
from storage.catalog import find
from storage.dataset import Dataset
from storage.ledger.manifest import MAX_PART_UNITS, UNIT_SCHEMA, units_key
from storage.schema import Level, Pins, Recipe

UNITS = 10**6
DATASETS = 10**4
_UNIT_SAMPLES = 4
_RING_SHARE = 10


def run_scale(root: Path) -> dict[str, float]:
    """Measure; return figures by name, seconds and MB."""
    return {**open_manifest(root / "manifest"), **find_recipe(root / "catalog"), **memory(root)}


def open_manifest(root: Path) -> dict[str, float]:
    """Open a dataset of 10^6 shards and take a snapshot, the units' validity included."""
    dataset = _create(str(root), Recipe("million", {}, {"samples_per_unit": _UNIT_SAMPLES}))
    dataset.grow(UNITS * _UNIT_SAMPLES)
    for part in range(math.ceil(UNITS / MAX_PART_UNITS)):
        first = part * MAX_PART_UNITS
        path = Path(dataset.files.path(units_key(part)))
        path.parent.mkdir(parents=True, exist_ok=True)
        count = min(MAX_PART_UNITS, UNITS - first)
        pq.write_table(_unit_rows(first, count), path, compression="zstd", use_dictionary=False)
    started = time.perf_counter()
    snapshot = Dataset.open(dataset.url).snapshot()
    assert (snapshot.num_valid, len(snapshot.holes)) == (UNITS * _UNIT_SAMPLES, 0)
    return {"open_million_shards_s": round(time.perf_counter() - started, 3)}


def find_recipe(root: Path) -> dict[str, float]:
    """Find a recipe that one dataset of 10^4 serves, and one that none does."""
    first = _create(str(root), Recipe("many", {"seed": 0}, {"samples_per_unit": 4}))
    for seed in range(1, DATASETS):
        recipe = Recipe("many", {"seed": seed}, {"samples_per_unit": 4})
        other = dataclasses.replace(first.about, recipe=recipe)
        folder = root / recipe.folder
        folder.mkdir()
        (folder / "dataset.json").write_bytes(other.to_json())
    started = time.perf_counter()
    wanted = Recipe("renamed", {"seed": DATASETS // 2}, {"samples_per_unit": 8})
    match = find(str(root), wanted)
    assert match is not None and not match.same_layout
    assert find(str(root), Recipe("many", {"seed": -1}, {})) is None
    return {"find_in_10k_datasets_twice_s": round(time.perf_counter() - started, 3)}


def memory(root: Path) -> dict[str, float]:
    """Read a dataset ten times as large as the reader's ring; return anonymous MB of the reader."""
    slots = 4  # depth 2 + prefetch 2
    arrays = make_arrays("A", _RING_SHARE * slots * BATCH["A"])
    total = sum(rows.nbytes for rows in arrays.values())
    dataset = write_ours(root / "memory", "A", arrays, **OURS["zarr"])
    del arrays
    names = [level.name for level in dataset.levels]
    with BatchReader(dataset.snapshot(), levels=names, batch_size=BATCH["A"]) as reader:
        reader.next()  # compiles what copies rows
    del reader
    gc.collect()
    before = anonymous_bytes()
    with BatchReader(dataset.snapshot(), levels=names, batch_size=BATCH["A"]) as reader:
        largest = 0
        for _ in range(2 * _RING_SHARE * slots):
            reader.next()
            largest = max(largest, anonymous_bytes() - before)
    return {
        "dataset_mb": round(total / 1e6, 1),
        "ring_mb": round(total / _RING_SHARE / 1e6, 1),
        "reader_anonymous_mb": round(largest / 1e6, 1),
    }


def anonymous_bytes() -> int:
    """Return this process's anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: Linux only")


def _create(root: str, recipe: Recipe) -> Dataset:
    return Dataset.create(
        root,
        recipe,
        levels=[Level("up", "feature", "up", 0, 0, "", 4, (2,), "float16")],
        image_size=(8, 8),
        pins=Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1),
        fsync=False,
    )


def _unit_rows(first: int, count: int) -> pa.Table:
    units = np.arange(first, first + count)
    same = {"version": 0, "count": _UNIT_SAMPLES, "bytes": 800, "invalid": 0, "seconds": 1.0}
    same |= {"input_digest": "", "host": "host", "run_id": "run", "created": 0.0, "digests": "{}"}
    columns: dict[str, object] = {"unit": units, "digest": [f"{unit:032x}" for unit in units]}
    columns |= {name: [value] * count for name, value in same.items()}
    return pa.table({name: columns[name] for name in UNIT_SCHEMA.names}, schema=UNIT_SCHEMA)
