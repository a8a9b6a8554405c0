"""Compare our stores with packaged readers and with the machine's own limits, side by side.

    python benchmarks/storage.py [--rounds 3] [--work A B] [--out benchmarks/results] [--quick]

Workloads A and B: small and large samples of random features. Everything is measured in turns, with
the machine's limit (a two-thread memcpy, or plain page-cache writes) on each side; a figure is the
median over rounds of the ratio to the faster of the two beside it, so that a drifting, shared
machine shifts both. Page cache warm. A loader that takes worker processes is tried with none and
with two in the first round, and goes on with what was faster. The last line is one JSON object.

`pip install -e .[bench]` brings the peers; mosaicml-streaming asks for other versions of what
dreamshard needs, and is measured where it is installed.
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
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.storage_peers import PEERS, Peer
from benchmarks.storage_scale import run_scale
from benchmarks.storage_work import BATCH, COUNT, OURS, SHAPES, make_arrays, write_ours
from benchmarks.storage_writes import run_writes
from storage.batches.reader import BatchReader
from storage.batches.ring import allocate
from storage.dataset import Dataset

COPY_BYTES = 256 << 20
MEASURE_S = 0.6


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


class OurReader:
    """Our reader, threads idle between measurements."""

    packaged = False

    def __init__(self, dataset: Dataset, work: str, row_bytes: int) -> None:
        names = [level.name for level in dataset.levels]
        self.reader = BatchReader(
            dataset.snapshot(),
            levels=names,
            batch_size=BATCH[work],
            seed=1,
            depth=1,  # as a training loop that is done with a batch when it asks for the next
            prefetch=1,
        )
        self.batch_bytes = row_bytes * BATCH[work]
        self.drain = 1 + 1  # what was read ahead while nobody asked must not count

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

    packaged = True

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


Readers = dict[str, OurReader | PeerReader]


def measure(batches: Iterator[Any], batch_bytes: int, *, skip: int) -> float:
    """Return MB/s of batches asked for one after the other, for MEASURE_S or longer."""
    for _ in range(skip):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURE_S or count < 8:
        next(batches)
        count += 1
        if time.perf_counter() - started > 4 * MEASURE_S:
            break
    return count * batch_bytes / (time.perf_counter() - started) / 1e6


def make_readers(work: str, root: Path, skipped: list[str]) -> Readers:
    """Write a workload's samples in every format, and return what reads them, by name."""
    arrays = make_arrays(work, COUNT[work])
    row_bytes = sum(rows[0].nbytes for rows in arrays.values())
    readers: Readers = {}
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
    return readers


def run_reads(work: str, root: Path, rounds: int, memcpy: Memcpy, skipped: list[str]) -> dict:
    """Measure all readers of a workload in turns; return name -> {"MB/s", "ratio"}."""
    readers = make_readers(work, root, skipped)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        first: dict[str, float] = {}
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
            first[name] = speed
            if number or rounds == 0:  # the first round warms caches and compiled code
                found[name].append((speed, speed / beside))
        if number == 0 and rounds:
            for name in slower_settings(first):
                skipped.append(f"{name} ({work}): slower than with other workers, tried once")
                del readers[name]
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


def slower_settings(speeds: dict[str, float]) -> list[str]:
    """Name those of one loader's settings (`loader/workers`) that are not its fastest."""
    best: dict[str, str] = {}
    for name in speeds:
        loader = name.partition("/")[0]
        if loader not in best or speeds[name] > speeds[best[loader]]:
            best[loader] = name
    return [name for name in speeds if "/" in name and name not in best.values()]


def summarise(reads: dict[str, dict], writes: dict[str, dict]) -> dict[str, object]:
    """Return the object of the last line."""
    best: dict[str, object] = {}
    names: dict[str, str] = {}
    for work, figures in reads.items():
        if loaders := best_loaders(figures):
            names[work] = loaders[0]
            best[work] = round(figures["zarr"]["ratio"] / figures[loaders[0]]["ratio"], 2)
    same = len(set(names.values())) == 1
    texts = [name if same else f"{name} ({work})" for work, name in names.items()]
    return {
        "read_vs_memcpy": {
            kind: {work: reads[work][kind]["ratio"] for work in reads} for kind in OURS
        },
        "read_vs_best_loader": {**best, "loader": ", ".join(dict.fromkeys(texts))},
        "write_vs_page_cache": {
            kind: {work: writes[work][kind]["ratio"] for work in writes} for kind in ("zarr", "tar")
        },
    }


def best_loaders(figures: dict[str, dict]) -> list[str]:
    """Name the packaged loaders that were measured, the fastest first."""
    names = [name for name in figures if "/" in name and PEERS[name.partition("/")[0]].loader]
    return sorted(names, key=lambda name: -figures[name]["ratio"])


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
        lines += [f"## {title}", "", *table(part), ""]
    lines += ["A name's number is its worker processes.", ""]
    for work, figures in result["reads"].items():
        if loaders := best_loaders(figures):
            beside = {kind: figures[kind]["ratio"] / figures[loaders[0]]["ratio"] for kind in OURS}
            texts = [f"{kind} {ratio:.2f}" for kind, ratio in beside.items()]
            lines += [f"- {work}, read beside {loaders[0]}: {', '.join(texts)}"]
    lines += [
        f"- {work}, write {name}: {values['reserved_ratio']:.2f} of plain writes that reserve "
        "their blocks first, as our writer does"
        for work, figures in result["writes"].items()
        for name, values in figures.items()
    ]
    lines += ["", "## Scale", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:,} |" for name, value in result["scale"].items()]
    return "\n".join([*lines, "", *(f"- {text}" for text in result["skipped"])]) + "\n"


def table(part: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return one kind of figures as the lines of a table."""
    works = list(part)
    lines = ["| | " + " | ".join(f"{work} MB/s | {work} ratio" for work in works) + " |"]
    lines.append("|---" * (1 + 2 * len(works)) + "|")
    for name in dict.fromkeys(name for work in works for name in part[work]):
        cells: list[str] = []
        for work in works:
            values = part[work].get(name)
            cells += [f"{values['MB/s']:,.0f}", f"{values['ratio']:.3f}"] if values else ["", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


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
    with tempfile.TemporaryDirectory(prefix="dreamshard-bench-") as folder:
        scale = run_scale(Path(folder))
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
        "scale": scale,
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
