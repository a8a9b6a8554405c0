"""Compare our stores with packaged readers and with the machine's own limits, side by side.

    python benchmarks/storage.py [--rounds 3] [--work A B] [--out benchmarks/results] [--quick]

Workloads A and B: small and large samples of random features. Everything is measured in turns, with
a two-thread memcpy on each side; a figure is the median over rounds of the ratio to the faster of
the two beside it, so that a drifting, shared machine shifts both. Page cache warm. The last line is
one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import datetime
import json
import logging
import math
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.storage_peers import PEERS, Peer
from storage.dataset import Dataset
from storage.reader import BatchReader
from storage.ring import allocate
from storage.schema import FeatureBatch, Level, Pins, Recipe

SHAPES = {
    "A": ((32, 32, 3), {"l16": (256, 16, 16), "l8": (256, 8, 8), "l4": (256, 4, 4)}),
    "B": (
        (256, 256, 3),
        {"l64": (256, 64, 64), "l32": (512, 32, 32), "l16": (1024, 16, 16), "l8": (1024, 8, 8)},
    ),
}
BATCH = {"A": 64, "B": 8}
COUNT = {"A": 2048, "B": 96}
COPY_BYTES = 256 << 20
MEASURE_S = 0.6
OURS = {
    "zarr": {"layout_format": "zarr", "codec": "float16"},
    "tar": {"layout_format": "tar", "codec": "float16"},
    "int8": {"layout_format": "zarr", "codec": "int8"},
}


class Memcpy:
    """The limit: two threads copying between buffers that no cache holds."""

    def __init__(self) -> None:
        self.source, self.target = allocate(COPY_BYTES), allocate(COPY_BYTES)
        self.source[:], self.target[:] = 1, 0

    def __call__(self) -> float:
        """Return MB/s."""
        half = COPY_BYTES // 2

        def job(part: slice) -> None:
            for _ in range(3):
                np.copyto(self.target[part], self.source[part])

        parts = (slice(0, half), slice(half, None))
        threads = [threading.Thread(target=job, args=(part,)) for part in parts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 3 * COPY_BYTES / (time.perf_counter() - started) / 1e6


def make_arrays(work: str, count: int) -> dict[str, np.ndarray]:
    """Make images and features: values do not matter to readers but are finite and varied."""
    image, levels = SHAPES[work]
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (count, *image), dtype=np.uint8)}
    for name, shape in levels.items():
        noise = rng.standard_normal((64, math.prod(shape))).astype(np.float16)
        rows = noise[rng.integers(0, 64, count)] * rng.uniform(0.5, 2, (count, 1))
        arrays[name] = rows.astype(np.float16).reshape(count, *shape)
    return arrays


def write_ours(
    root: Path,
    work: str,
    arrays: dict[str, np.ndarray],
    *,
    layout_format: str,
    codec: str,
    fsync: bool = False,
) -> Dataset:
    """Write a dataset through the same writer the pipeline uses, in micro-batches."""
    image, shapes = SHAPES[work]
    levels = [
        Level(name, "feature", name, 0, 0, "", image[0] // shape[1], shape, "float16")
        for name, shape in shapes.items()
    ]
    count, unit = len(arrays["image"]), len(arrays["image"]) // 4
    layout: dict[str, object] = {
        "format": layout_format,
        "images": "npy",
        "samples_per_unit": unit,
        "codecs": dict.fromkeys(shapes, codec),
    }
    pins = Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1)
    dataset = Dataset.create(
        str(root),
        Recipe("bench", {}, layout),
        levels=levels,
        image_size=(image[0], image[1]),
        pins=pins,
        fsync=fsync,
    )
    dataset.grow(count)
    step = BATCH[work]
    for number in dataset.missing(count).tolist():
        with dataset.unit_writer(number, count=unit, run_id="bench") as writer:
            for offset in range(0, unit, step):
                rows = slice(number * unit + offset, number * unit + min(offset + step, unit))
                writer.write(offset, batch_of(arrays, rows))
            writer.commit()
    return dataset


def batch_of(arrays: dict[str, np.ndarray], rows: slice) -> FeatureBatch:
    """Return some of the samples as a teacher hands them over."""
    index = np.arange(rows.start, rows.stop)
    return FeatureBatch(
        index=index,
        key=[f"{number:09d}" for number in index],
        valid=np.ones(len(index), bool),
        image=arrays["image"][rows],
        levels={name: values[rows] for name, values in arrays.items() if name != "image"},
    )


class OurReader:
    """Our reader, threads idle between measurements."""

    def __init__(self, dataset: Dataset, work: str, row_bytes: int) -> None:
        names = [level.name for level in dataset.levels]
        self.reader = BatchReader(dataset.snapshot(), levels=names, batch_size=BATCH[work], seed=1)
        self.batch_bytes = row_bytes * BATCH[work]
        self.drain = 2 + 2  # what was read ahead while nobody asked must not count

    def measure(self) -> float:
        """Return MB/s of float16-equivalent bytes."""
        import torch

        def tensors() -> Iterator[Any]:
            for batch in self.reader:
                yield [torch.from_numpy(rows) for rows in (*batch.levels.values(), batch.image)]

        speed = measure(tensors(), self.batch_bytes, skip=self.drain)
        time.sleep(0.1)  # let the threads finish reading ahead before the limit is measured
        return speed


class PeerReader:
    """A packaged reader with one number of workers, started anew for every measurement."""

    def __init__(self, peer: Peer, root: Path, work: str, row_bytes: int, workers: int) -> None:
        self.peer, self.root, self.batch, self.workers = peer, root, BATCH[work], workers
        self.batch_bytes = row_bytes * self.batch

    def measure(self) -> float:
        """Return MB/s."""
        batches = self.peer.read(self.root, self.batch, self.workers)
        try:
            return measure(batches, self.batch_bytes, skip=2 + 3 * self.workers)
        finally:
            batches.close()  # type: ignore[attr-defined]


def measure(batches: Iterator[Any], batch_bytes: int, *, skip: int) -> float:
    """Return MB/s of batches asked for one after the other, for MEASURE_S or longer."""
    for _ in range(skip):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURE_S or count < 8:
        next(batches)
        count += 1
        if time.perf_counter() - started > 8 * MEASURE_S:
            break
    return count * batch_bytes / (time.perf_counter() - started) / 1e6


def run_reads(work: str, root: Path, rounds: int, memcpy: Memcpy, skipped: list[str]) -> dict:
    """Measure all readers of a workload in turns; return name -> {"MB/s", "ratio"}."""
    arrays = make_arrays(work, COUNT[work])
    row_bytes = sum(rows[0].nbytes for rows in arrays.values())
    readers: dict[str, OurReader | PeerReader] = {}
    for name, settings in OURS.items():
        dataset = write_ours(root / name, work, arrays, **settings)
        readers[name] = OurReader(dataset, work, row_bytes)
    for name, peer in PEERS.items():
        if missing := peer.missing():
            skipped.append(f"{name}: {', '.join(missing)} not installed")
            continue
        folder = root / name.replace(" ", "-")
        folder.mkdir()
        try:
            peer.write(folder, arrays)
        except Exception as error:
            skipped.append(f"{name} ({work}): {type(error).__name__}: {error!s:.120}")
            continue
        for workers in peer.workers:
            readers[f"{name}/{workers}"] = PeerReader(peer, folder, work, row_bytes, workers)
    del arrays
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name in list(readers):
            before = memcpy()
            try:
                speed = readers[name].measure()
            except Exception as error:
                skipped.append(f"{name} ({work}): {type(error).__name__}: {error!s:.120}")
                del readers[name]
                continue
            beside = max(before, memcpy())
            text = f"{work} {number}/{rounds} {name}: {speed:,.0f} MB/s, {speed / beside:.3f}"
            print(text, file=sys.stderr, flush=True)
            if number or rounds == 0:  # the first round warms caches and compiled code
                found[name].append((speed, speed / beside))
    for reader in readers.values():
        if isinstance(reader, OurReader):
            reader.reader.close()
    return {
        name: {
            "MB/s": round(statistics.median(speed for speed, _ in values), 1),
            "ratio": round(statistics.median(ratio for _, ratio in values), 4),
        }
        for name, values in found.items()
        if values
    }


def page_cache_write(path: Path, data: np.ndarray) -> float:
    """Return MB/s of plain writes of a buffer to a new file, 4 MiB a call, no fsync."""
    view = data.reshape(-1).view(np.uint8).data
    started = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for start in range(0, len(view), 4 << 20):
        os.write(descriptor, view[start : start + (4 << 20)])
    os.close(descriptor)
    speed = len(view) / (time.perf_counter() - started) / 1e6
    path.unlink()
    return speed


def run_writes(work: str, root: Path, rounds: int) -> dict:
    """Measure writes against plain page-cache writes beside them."""
    arrays = make_arrays(work, COUNT[work])
    total = sum(rows.nbytes for rows in arrays.values())
    flat = np.concatenate([rows.reshape(-1).view(np.uint8) for rows in arrays.values()])
    found: dict[str, list[tuple[float, float]]] = {}
    kinds = [(name, fsync) for name in ("zarr", "tar") for fsync in (False, True)]
    for number in range(rounds + 1):
        for name, fsync in kinds:
            before = page_cache_write(root / "plain", flat)
            folder = root / f"write-{name}"
            started = time.perf_counter()
            write_ours(folder, work, arrays, fsync=fsync, **OURS[name])
            speed = total / (time.perf_counter() - started) / 1e6
            shutil.rmtree(folder)
            after = page_cache_write(root / "plain", flat)
            if number:
                key = f"{name} fsync" if fsync else name
                found.setdefault(key, []).append((speed, speed / max(before, after)))
        print(f"{work} write round {number}/{rounds}", file=sys.stderr, flush=True)
    return {
        name: {
            "MB/s": round(statistics.median(s for s, _ in values), 1),
            "ratio": round(statistics.median(r for _, r in values), 4),
        }
        for name, values in found.items()
    }


def summarise(reads: dict[str, dict], writes: dict[str, dict]) -> dict[str, object]:
    """Return the object of the last line."""
    best: dict[str, object] = {}
    names: dict[str, str] = {}
    for work, figures in reads.items():
        loaders = {
            name: values["ratio"]
            for name, values in figures.items()
            if "/" in name and PEERS[name.partition("/")[0]].loader
        }
        if loaders:
            names[work] = max(loaders, key=lambda name: loaders[name])
            best[work] = round(figures["zarr"]["ratio"] / loaders[names[work]], 2)
    best["loader"] = names
    return {
        "read_vs_memcpy": {
            kind: {work: reads[work][kind]["ratio"] for work in reads} for kind in OURS
        },
        "read_vs_best_loader": best,
        "write_vs_page_cache": {
            kind: {work: writes[work][kind]["ratio"] for work in writes}
            for kind in ("zarr", "tar", "zarr fsync", "tar fsync")
        },
    }


def report(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# Storage, {result['date']}",
        "",
        f"{result['machine']}, {result['cpus']} CPUs, load {result['load']}. Median of "
        f"{result['rounds']} rounds; ratio to a two-thread memcpy beside each measurement (reads) "
        "or to plain page-cache writes (writes). int8 in float16-equivalent bytes.",
        "",
    ]
    for title, part in (("Reads", result["reads"]), ("Writes", result["writes"])):
        works = list(part)
        lines += [f"## {title}", "", "| | " + " | ".join(f"{w} MB/s | {w} ratio" for w in works)]
        lines[-1] += " |"
        lines.append("|---" * (1 + 2 * len(works)) + "|")
        names = dict.fromkeys(name for work in works for name in part[work])
        for name in names:
            cells = []
            for work in works:
                values = part[work].get(name)
                cells += (
                    [f"{values['MB/s']:,.0f}", f"{values['ratio']:.3f}"] if values else ["", ""]
                )
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["A name's number is its worker processes.", ""]
    lines += [f"- skipped: {text}" for text in result["skipped"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="few samples, to try it out")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.quick:
        COUNT.update(A=512, B=32)
    memcpy, skipped = Memcpy(), list[str]()
    reads: dict[str, dict] = {}
    writes: dict[str, dict] = {}
    steps: list[tuple[dict[str, dict], Callable[[str, Path], dict]]] = [
        (writes, lambda work, root: run_writes(work, root, options.rounds)),
        (reads, lambda work, root: run_reads(work, root, options.rounds, memcpy, skipped)),
    ]
    for work in options.work:
        for into, step in steps:
            with tempfile.TemporaryDirectory(prefix="dreamshard-bench-") as folder:
                into[work] = step(work, Path(folder))
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    summary = summarise(reads, writes)
    result = {
        "date": date,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "rounds": options.rounds,
        "samples": dict(COUNT),
        "reads": reads,
        "writes": writes,
        "skipped": list(dict.fromkeys(skipped)),
        "summary": summary,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{date}-storage.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{date}-storage.md").write_text(report(result))
    sys.stderr.write(report(result))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
