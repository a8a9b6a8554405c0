"""What DreamTeacher's parts and the codecs of cached features are worth: CIFAR-10, small size.

    python benchmarks/ablations.py --train cifar10-train.parquet --val cifar10-val.parquet \
        --out runs/ablations [--groups bytes loss whitening ...] [--seeds 0 1 2]

One factor at a time around one base: a ResNet-18 of width 16 learns from float16 features (strides
1, 2, 4; t = 50; stochastic encoding) of the first 20,000 training images, by whitened regression
alone (the paper's loss, MSE + 10 AT, is one of the variants). Every variant shares the base's
seeds: initial weights and order of the images. Linear probes and nearest neighbours judge the
frozen students, on the held-out images and on training images that were never encoded. Datasets
are made by the commands a user would type; whatever is there already is reused, so the same
command goes on after an interruption. Differences from the base (`--against`: from another variant)
are paired by seed, with Student's 95 % confidence interval. The last line printed is the result as
JSON.

Several processes share the work on one folder: first `--prepare datasets images`, then
each takes what no other has from a list of lines `SEED VARIANT` (`--jobs FILE`), in its order;
last, `--report` makes the tables of what is finished, which asks for nothing but `OUT/results`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import contextlib
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import cifar10
from benchmarks.ablation_variants import BASE, BASE_METHOD, GROUPS, VARIANTS
from benchmarks.charts import half_interval, paired_intervals
from benchmarks.commands import run_command
from dreamshard.charts import LIGHT
from dreamshard.runfolder import write_text

FIGURES = ("linear_100", "knn_20")
HELDOUT = tuple(f"{figure}_heldout" for figure in FIGURES)
"""The same of the images alone that the teacher has not seen either."""
SAMPLES_PER_UNIT = 512  # `dreamshard encode` rounds the samples up to whole units


def where(name: str, options: argparse.Namespace) -> tuple[str, str]:
    """Return what a variant learns from, and what that is a copy of: the same without a codec."""
    root, variant = options.out / "data", VARIANTS[name]
    # Of variants with the same options of the encoding, the first one's name.
    kind = next(n for n, each in VARIANTS.items() if each.encode == variant.encode)
    kind = slug(kind)
    return str(root / slug(name) / kind if variant.codec else root / kind), str(root / kind)


def make_datasets(names: Sequence[str], options: argparse.Namespace) -> None:
    """Make what the variants learn from; the commands reuse what is there."""
    made = set()
    for name in names:
        variant = VARIANTS[name]
        copy, original = where(name, options)
        if original not in made:
            made.add(original)
            _encode(Path(original).name, variant.encode, options)
        if variant.codec:
            words = ["export", original, str(Path(copy).parent), "--codec", *variant.codec]
            run_command(words, cwd=ROOT)


def _encode(kind: str, more: Sequence[str], options: argparse.Namespace) -> None:
    words = [
        *("--config", str(ROOT / "recipes" / "cifar10" / "encode.yaml")),
        *("--teacher.path", str(options.teacher), "--teacher.levels", "[s4, s2, s1]"),
        *("--source.path", str(options.train.resolve())),
        *("--name", kind, "--root", str(options.out / "data")),
        *("--run_dir", str(options.out / f"encode-{kind}"), "--samples", str(options.samples)),
        *("--samples_per_unit", str(SAMPLES_PER_UNIT), "--image.views", "1"),
        *("--codec", "float16", "--fsync", "false", *more),
    ]
    if not options.here:
        run_command(["encode", *words], cwd=ROOT)
        return
    from benchmarks.here import make_here
    from pipeline.learning.device import choose_device

    if choose_device(options.device) == "cuda":
        words += ["--device", "cuda", "--gpus_per_actor", "1", "--micro_batch", "256"]
    make_here("encode", words)


def slug(name: str) -> str:
    """Return a name that can stand in a path."""
    return "".join(mark if mark.isalnum() else "-" for mark in name.lower())


def read_images(options: argparse.Namespace) -> None:
    """Read what judges the students: 5,000 held-out images alone would add 0.7 points of noise.

    Probe and neighbours know the first training images; the held-out ones and the last training
    images judge, which no dataset of this benchmark holds (the teacher has seen them, unlabelled).
    Decoded images are kept in the output folder.
    """
    kept = options.out / "images.npz"
    if not kept.exists():
        _decode_images(kept, options)
    with np.load(kept) as found:
        wanted, options.heldout = options.probe_images, int(found["heldout"])
        known = found["images"][:wanted], found["labels"][:wanted]
        options.loaded = [known, (found["judges"], found["truth"])]


def _decode_images(path: Path, options: argparse.Namespace) -> None:
    options.probe_images, wanted = 0, options.probe_images
    (images, labels), (held, truth) = cifar10.images(options)
    options.probe_images = wanted
    first = max(len(images) - options.unseen, options.samples + SAMPLES_PER_UNIT)
    partial = path.with_name(f"{path.stem}-{os.getpid()}.npz")  # several may begin at once
    np.savez(
        partial,
        images=images[:wanted],
        labels=labels[:wanted],
        judges=np.concatenate([held, images[first:]]),
        truth=np.concatenate([truth, labels[first:]]),
        heldout=len(held),
    )
    partial.replace(path)


def run_variant(name: str, options: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """Train and judge a variant with one seed; reuse what is there already."""
    arm, changes = _arm(name), VARIANTS[name].changes
    path = result_path(name, options, seed=seed)
    options.dataset = where(name, options)[0]
    cifar10.ARMS[arm] = {
        **cifar10.ARMS["dreamteacher"],
        "settings": BASE_METHOD | VARIANTS[name].method,
        "changes": changes,
    }
    row = cifar10.run_arm(arm, options, seed=seed)
    if "bytes_per_sample" not in row:
        size = bytes_per_sample(options.dataset, changes.get("data.levels", ()))
        row |= {"bytes_per_sample": size, "device": options.device, "settings": _settings(options)}
        write_text(path, json.dumps(row, indent=2) + "\n")
    return row


def _arm(name: str) -> str:
    return f"ablation-{slug(name)}"


def result_path(name: str, options: argparse.Namespace, *, seed: int) -> Path:
    """Return where a finished run's result is kept."""
    return options.out / "results" / f"{_arm(name)}-{seed}.json"


def bytes_per_sample(dataset: str, wanted: Sequence[str] = ()) -> int:
    """Return the bytes that the levels of one sample take; wanted: those of a run, none for all."""
    from storage.catalog import find_dataset
    from storage.level_names import match_levels

    found = find_dataset(dataset)
    snapshot, levels = found.snapshot(), list(found.levels)
    if wanted:
        levels = [level for name in wanted for level in match_levels(levels, name)]
    parts = {part for level in levels for part in snapshot.components(level.name)}
    specs = [snapshot.array_spec(part) for part in parts]
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs)


def compare(rows: dict[str, dict[int, dict[str, Any]]], *, against: str = BASE) -> dict[str, Any]:
    """Return each variant's means, and its paired differences from another with intervals."""
    table: dict[str, Any] = {}
    for name, by_seed in rows.items():
        shared = [seed for seed in by_seed if seed in rows.get(against, {})]
        entry: dict[str, Any] = {"group": VARIANTS[name].group, "seeds": len(by_seed)}
        every = list(by_seed.values())
        for figure in (*FIGURES, *(f for f in HELDOUT if all(f in row for row in every))):
            values = [row[figure] for row in every]
            entry[figure] = {"mean": float(np.mean(values)), "values": values}
            if name != against and shared:
                there = [seed for seed in shared if figure in rows[against][seed]]
                pairs = [by_seed[seed][figure] - rows[against][seed][figure] for seed in there]
                entry[figure] |= {"pairs": len(pairs), **interval(pairs)} if pairs else {}
        if "bytes_per_sample" in every[0]:
            entry["bytes_per_sample"] = every[0]["bytes_per_sample"]
        table[name] = entry
    return table


def interval(differences: list[float]) -> dict[str, float | None]:
    """Return the mean difference and half its 95 % interval (None for a single pair)."""
    return {"difference": float(np.mean(differences)), "half_interval": half_interval(differences)}


def picture(table: dict[str, Any], against: str, path: Path) -> None:
    """Draw every variant's difference from what it is compared with."""
    names = [name for name, entry in table.items() if "difference" in entry[FIGURES[0]]]
    panels = {
        figure.replace("_100", " probe").replace("_", ", k = "): {
            name: (table[name][figure]["difference"], table[name][figure]["half_interval"])
            for name in names
        }
        for figure in FIGURES
    }
    if names:
        path.write_bytes(paired_intervals(panels, LIGHT, xlabel=f"points over {against}"))


def sheet(table: dict[str, Any], against: str) -> str:
    """Write the table as Markdown: means, and differences with half their 95 % intervals."""

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return "-"
        if found.get("half_interval") is None:
            return f"{found['mean']:.1f}"
        return f"{found['mean']:.1f} ({found['difference']:+.2f} ± {found['half_interval']:.2f})"

    lines = [
        f"In brackets: the difference from {against!r}, paired by seed, ± half its 95 % interval.",
        "",
        "| variant | seeds | linear probe | 20-NN | linear, held-out | 20-NN, held-out |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, entry in table.items():
        cells = " | ".join(cell(entry.get(figure)) for figure in (*FIGURES, *HELDOUT))
        lines.append(f"| {name} | {entry['seeds']} | {cells} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read the command line, and add what `benchmarks.cifar10` wants to know."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="Parquet of training images")
    parser.add_argument("--val", type=Path, required=True, help="Parquet of held-out images")
    parser.add_argument("--teacher", type=Path, default=ROOT / "recipes" / "cifar10" / "teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results", type=Path, help="also write result and picture here")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="of the groups; all of them"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--against", choices=VARIANTS, default=BASE, help="what is compared with")
    parser.add_argument("--here", action="store_true", help="encode in this process, without Ray")
    parser.add_argument(
        "--prepare", nargs="+", choices=["datasets", "images"], default=[], help="make these alone"
    )
    parser.add_argument("--report", action="store_true", help="make tables of what is finished")
    parser.add_argument("--jobs", type=Path, help="file of lines SEED VARIANT; shared with others")
    parser.add_argument("--samples", type=int, default=20_000, help="images that are encoded")
    parser.add_argument("--images", type=int, default=40_000, help="student forward passes")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18")
    parser.add_argument("--regressor_width", type=int, default=32)
    parser.add_argument("--probe_images", type=int, default=10_000)
    parser.add_argument(
        "--unseen", type=int, default=15_000, help="never encoded training images that also judge"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--machine", default="", help="where it ran, if not here; for --report")
    parser.add_argument("--name", default="ablations", help="of the result, after the date")
    parser.add_argument("--patience", type=float, default=120, help="for datasets of --jobs (s)")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    options = parser.parse_args()
    options.out, options.head_width, options.shares = options.out.resolve(), 1, (1.0,)
    return options


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        *("samples", "images", "batch_size", "width", "regressor_width"),
        *("probe_images", "unseen", "precision"),
    )
    return {name: getattr(options, name) for name in names}


def read_jobs(path: Path) -> list[tuple[int, str]]:
    """Read lines `SEED VARIANT`.

    Raises:
        SystemExit: a line that is none.
    """
    jobs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        seed, _, name = line.strip().partition(" ")
        if not seed.isdecimal() or name not in VARIANTS:
            raise SystemExit(f"{path}:{number}: got {line!r}, allowed: SEED VARIANT")
        jobs.append((int(seed), name))
    return jobs


def claimed(path: Path) -> bool:
    """Tell whether a job is this process's: the folder that stands for it is made only once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def take_jobs(jobs: Sequence[tuple[int, str]], options: argparse.Namespace) -> int:
    """Run what nobody has claimed, in order; return how many failed.

    A job whose dataset is not there yet is passed over and looked at again after the others.
    """
    from dreamshard.errors import DreamshardError, Interrupted
    from storage.catalog import find_dataset

    failed, left = 0, list(jobs)
    while left:
        later = []
        for seed, name in left:
            claim = options.out / "claims" / f"{_arm(name)}-{seed}"
            if claim.exists() or result_path(name, options, seed=seed).exists():
                continue
            try:
                found = find_dataset(where(name, options)[0])
                ready = not len(found.missing(options.samples))
            except DreamshardError:
                ready = False
            if not ready:
                later.append((seed, name))
            elif claimed(claim):
                try:
                    _tell(run_variant(name, options, seed=seed), name, seed)
                except Interrupted:  # the next call goes on from its checkpoint
                    with contextlib.suppress(FileNotFoundError):  # removed by hand
                        claim.rmdir()
                    raise
                except Exception:  # one job that fails must not cost the others
                    failed += 1
                    print(f"{name}, seed {seed}: FAILED", file=sys.stderr)
                    traceback.print_exc()
        if len(later) == len(left):
            print(f"no dataset for {len(later)} jobs", file=sys.stderr, flush=True)
            time.sleep(5)
            options.patience -= 5
            if options.patience < 0:
                return failed + len(later)
        left = later
    return failed


def _tell(row: dict[str, Any], name: str, seed: int) -> None:
    shown = ", ".join(f"{figure} {row[figure]:.2f}" for figure in FIGURES)
    spent = row.get("seconds", 0.0)
    print(
        f"{time.strftime('%T')} {name}, seed {seed}: {shown} ({spent:.1f} s of training)",
        file=sys.stderr,
        flush=True,
    )


def report(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Make the tables of what is finished, and keep them.

    Raises:
        SystemExit: nothing is.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:
        paths = {seed: result_path(name, options, seed=seed) for seed in options.seeds}
        found = {
            seed: json.loads(path.read_text(encoding="utf-8"))
            for seed, path in paths.items()
            if path.exists()
        }
        rows |= {name: found} if found else {}
    if not rows:
        raise SystemExit(f"nothing is finished in {options.out / 'results'}")
    made = [row for found in rows.values() for row in found.values()]
    known = next((row["settings"] for row in made if "settings" in row), _settings(options))
    if any(row.get("settings", known) != known for row in made):
        raise SystemExit(f"{options.out / 'results'}: runs of different settings do not compare")
    table = compare(rows, against=options.against)
    result = {
        "what": "CIFAR-10 ablations of DreamTeacher, % correct, differences paired by seed",
        "date": time.strftime("%Y-%m-%d"),
        "machine": options.machine or f"{platform.machine()}, {os.cpu_count()} CPUs",
        "against": options.against,
        "settings": known,
        "table": table,
    }
    for folder in filter(None, (options.out, options.results)):
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{result['date']}-{options.name}"
        write_text(folder / f"{stem}.json", json.dumps(result, indent=2) + "\n")
        write_text(folder / f"{stem}.md", sheet(table, options.against))
        picture(table, options.against, folder / f"{stem}.png")
    return result


def main() -> None:
    """Run what is missing, seeds outermost, and report what is there."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [n for n, variant in VARIANTS.items() if variant.group in options.groups]
    chosen = [BASE, *(n for n in wanted if not options.variants or n in options.variants)]
    if "datasets" in options.prepare or not (options.prepare or options.jobs or options.report):
        make_datasets(chosen, options)
    if "images" in options.prepare or not (options.prepare or options.report):
        read_images(options)
    if options.prepare:
        return
    if options.jobs:
        raise SystemExit(bool(take_jobs(read_jobs(options.jobs), options)))
    for seed in () if options.report else options.seeds:
        for name in chosen:
            _tell(run_variant(name, options, seed=seed), name, seed)
    print(json.dumps(report(chosen, options)))


if __name__ == "__main__":
    main()
