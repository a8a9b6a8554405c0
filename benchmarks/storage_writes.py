"""Shard writes against plain page-cache writes of files of the same number and sizes.

Memory that a virtual machine has not touched lately may cost ten times as much to write as the rest
(its host takes it back), so every measurement finds the pages it needs freed a moment before.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.storage_work import COUNT, OURS, UNITS, create_ours, fill_ours, make_arrays
from storage.fs.reserve import reserve

CALL_BYTES = 1 << 20  # the fastest for plain writes, of 64 KiB to 4 MiB
KINDS = [(name, fsync) for fsync in (False, True) for name in ("zarr", "tar")]


def run_writes(work: str, root: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure in turns; return name -> {"MB/s", "ratio", "reserved_ratio"}.

    A ratio is to the faster of the plain writes before and after; `reserved_ratio` to plain writes
    that reserve their blocks first, as our writer does.
    """
    arrays = make_arrays(work, COUNT[work])
    total = sum(rows.nbytes for rows in arrays.values())
    source = np.concatenate([rows.reshape(-1).view(np.uint8) for rows in arrays.values()])
    sizes = {
        "zarr": [rows.nbytes // UNITS for rows in arrays.values() for _ in range(UNITS)],
        "tar": [total // UNITS] * UNITS,
    }
    found: dict[str, list[tuple[float, float, float]]] = {}
    for number in range(rounds + 1):
        for name, fsync in KINDS[: 4 if number <= 1 or rounds < 3 else 2]:
            key = f"{name} fsync" if fsync else name
            before = plain_write(root, sizes[name], source)
            warm(root, total)
            dataset = create_ours(root / "ours", work, COUNT[work], fsync=fsync, **OURS[name])
            speed = total / fill_ours(dataset, work, arrays) / 1e6
            shutil.rmtree(root / "ours")
            beside = max(before, plain_write(root, sizes[name], source))
            reserved = plain_write(root, sizes[name], source, reserved=True)
            text = f"{work} {number}/{rounds} write {key}: {speed:,.0f} MB/s, {speed / beside:.3f}"
            print(text, file=sys.stderr, flush=True)
            if number or rounds == 0:  # the first round compiles and imports
                found.setdefault(key, []).append((speed, speed / beside, speed / reserved))
    return {
        name: {
            "MB/s": round(statistics.median(value[0] for value in values), 1),
            "ratio": round(statistics.median(value[1] for value in values), 4),
            "reserved_ratio": round(statistics.median(value[2] for value in values), 4),
        }
        for name, values in found.items()
    }


def plain_write(
    root: Path, sizes: list[int], source: np.ndarray, *, reserved: bool = False
) -> float:
    """Return MB/s of writing files of these sizes, new ones, and nothing else."""
    warm(root, sum(sizes))
    view, start = source.data, 0
    started = time.perf_counter()
    for number, size in enumerate(sizes):
        descriptor = os.open(root / f"plain-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if reserved:
            reserve(descriptor, 0, size)
        for offset in range(start, start + size, CALL_BYTES):
            os.write(descriptor, view[offset : min(offset + CALL_BYTES, start + size)])
        os.close(descriptor)
        start += size
    seconds = time.perf_counter() - started
    for number in range(len(sizes)):
        (root / f"plain-{number}").unlink()
    return start / seconds / 1e6


def warm(root: Path, size: int) -> None:
    """Touch three times the page cache that will be written next, half on each CPU; free it."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(_touch, size=3 * size // 2), [root / "warm-0", root / "warm-1"]))


def _touch(path: Path, *, size: int) -> None:
    block = bytes(CALL_BYTES)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // CALL_BYTES):
            file.write(block)
    path.unlink()
