"""Squeeze-and-Span's ablation, rows a to f, on CIFAR-10 at small size, from a StyleGAN2.

    python benchmarks/squeeze_span.py --generator teachers/stylegan2-cifar10 \\
        --train cifar10-train.parquet --val cifar10-val.parquet --out runs/squeeze-span

Rows are those of recipes/cifar10-squeeze-and-span, in narrower networks and by equal numbers of
student forward passes: row f, whose student sees a synthetic image and two views of a real one,
gets a third of the steps (`f, equal steps`: as many as the others). Beside them `encoding`, row b
with w alone as the teacher, and `squeeze w`, row e so. All learn from the same 20,000 samples of
the generator. Judged as in `ablations.py`: a linear probe and nearest neighbours on images that no
student saw; and by what the method is about: the spread of the embeddings (1: they fill their
space; 0: all alike), and the squared MMD between held-out and synthetic images in each student's
own space. Several processes may share one folder (`--share`). The last line is the result as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import ablations, cifar10
from benchmarks.here import make_here
from dreamshard.runfolder import write_text

RECIPES = ROOT / "recipes" / "cifar10-squeeze-and-span"
FIGURES = ("linear_100", "knn_20", "spread", "embedding_std", "mmd", "mmd_real")
MMD_IMAGES = 5000


@dataclass(frozen=True)
class Row:
    """Say what a row of the table trains: a recipe's row, from which levels, how long."""

    recipe: str
    levels: tuple[str, ...] = ()
    equal_passes: bool = True


ROWS = {
    "a": Row("row_a"),
    "b": Row("row_b"),
    "c": Row("row_c"),
    "d": Row("row_d"),
    "e": Row("row_e"),
    "f": Row("row_f"),
    "f, equal steps": Row("row_f", equal_passes=False),
    "encoding": Row("row_b", ("w",)),
    "squeeze w": Row("row_e", ("w",)),
}
PAIRS = [("b", "a"), ("b", "c"), ("d", "c"), ("e", "d"), ("e", "b"), ("f", "e"),
         ("f, equal steps", "e"), ("b", "encoding"), ("e", "squeeze w")]  # fmt: skip
"""Which rows are compared, seed by seed: the first less the second."""


def make_datasets(options: argparse.Namespace) -> tuple[str, str]:
    """Make synthetic samples with the generator's vectors, and real images; return where."""
    root = options.out / "data"
    size = ["--samples_per_unit", "512", "--fsync", "false", "--root", str(root)]
    on_gpu = ["--device", "cuda", "--gpus_per_actor", "1"] if options.device == "cuda" else []
    synthetic = make_here(
        "synthesize",
        [
            *("--name", "synthetic", "--teacher.kind", options.kind, "--teacher.pool", "gap"),
            *("--teacher.path", str(options.generator), "--run_dir", str(root / "synthesize")),
            *("--teacher.levels", f"[{', '.join(options.levels)}]", "--micro_batch", "256"),
            *("--samples", str(options.samples), *size, *on_gpu, *options.settings_of_teacher),
        ],
    )
    # Of real images nothing but the pixels is read: the noise teacher has no network to run.
    real = make_here(
        "encode",
        [
            *("--name", "real", "--teacher.kind", "noise", "--teacher.levels", "[s32]"),
            *("--teacher.timesteps", "[0]", "--source.kind", "parquet"),
            *("--source.path", str(options.train.resolve()), "--image.size", "32"),
            *("--samples", str(options.samples), "--run_dir", str(root / "encode"), *size),
        ],
    )
    return synthetic, real


def train_row(name: str, options: argparse.Namespace, *, seed: int) -> tuple[Path, int]:
    """Train a row's student; return its folder, and the forward passes it took."""
    from distill.configs.train import TrainConfig
    from distill.methods.build import method_class
    from distill.train import train
    from dreamshard.config import load_config

    row, run_dir = ROWS[name], options.out / f"row-{ablations.slug(name)}-{seed}"
    words = [
        "--config",
        str(RECIPES / "train.yaml"),
        "--config",
        str(RECIPES / f"{row.recipe}.yaml"),
    ]
    given: dict[str, Any] = {
        "run_dir": run_dir,
        "seed": seed,
        "batch_size": options.batch_size,
        "data.dataset": options.synthetic,
        "student.settings.width": options.width,
        "optimizer.lr": 0.06 * options.batch_size / 256,
        "device": options.device,
        "threads": options.threads,
        **({"data.real": options.real} if row.recipe == "row_f" else {}),
        **({"data.levels": f"[{', '.join(row.levels)}]"} if row.levels else {}),
    }
    narrow = {"squeeze_and_span.projector_layers": options.projector_layers}
    if row.recipe not in ("row_a", "row_b"):  # their embedding is as wide as the teacher's
        widths = ("squeeze_and_span.width", "squeeze_and_span.squeeze_width")
        narrow |= dict.fromkeys(widths, options.head_width)

    def configured(**more: int) -> TrainConfig:
        flags = (given | narrow | more).items()
        return load_config(
            TrainConfig,
            [*words, *(part for key, value in flags for part in (f"--{key}", str(value)))],
            prog="dreamshard train",
            description="",
        )

    config = configured(steps=1, log_every=1, save_every=1)
    views = len(method_class(config.method).needs(config.method_settings()).views)
    passes = views if row.equal_passes else 1
    steps = max(1, round(options.images / options.batch_size / passes))
    log_every = max(1, min(20, steps // 2))
    config = configured(steps=steps, log_every=log_every, save_every=1000 * log_every)
    return train(config), steps * options.batch_size * views


def judge_row(folder: Path, options: argparse.Namespace, *, seed: int) -> dict[str, float | None]:
    """Judge a student: accuracies, spread and discrepancies of its pooled features."""
    from distill.probes.mmd import bandwidth, squared_mmd
    from distill.students.export import load_student
    from distill.training.monitor import pooled
    from pipeline.learning.device import choose_device
    from storage.catalog import find_dataset
    from storage.rows.pick import read_rows

    student, _ = load_student(folder)
    found: dict[str, float | None] = dict(cifar10.judge(student, options, seed=seed))
    (known, _), (judges, _) = cifar10.images(options)
    snapshot = find_dataset(options.synthetic).snapshot()
    count = min(MMD_IMAGES, options.heldout, len(known), snapshot.num_samples)
    drawn = read_rows(snapshot, "image", np.arange(count))
    device = choose_device(options.device)
    held, real, made = (
        pooled(student, images).numpy() for images in (judges[:count], known[:count], drawn)
    )
    unit = held / np.maximum(np.linalg.norm(held, axis=1, keepdims=True), 1e-12)
    found["spread"] = float(unit.std(axis=0).mean() * unit.shape[1] ** 0.5)
    for name, others in (("mmd", made), ("mmd_real", real)):
        width = bandwidth(held, others, device=device)
        # Embeddings that are all alike have no kernel width.
        found[name] = None
        if width > 1e-6:
            found[name] = 1000 * squared_mmd(held, others, kernel="rbf", width=width, device=device)
    lines = (folder.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [value for line in lines for key, value in json.loads(line).items()
            if key in ("std", "squeeze.std")]  # fmt: skip
    found["embedding_std"] = last[-1] if last else None
    return found


def run_row(name: str, options: argparse.Namespace, *, seed: int) -> None:
    """Train and judge a row with one seed, and keep the result."""
    began = time.monotonic()
    folder, passes = train_row(name, options, seed=seed)
    spent = time.monotonic() - began
    result = {"row": name, "seed": seed, "student_images": passes, "seconds": spent}
    result |= judge_row(folder, options, seed=seed)
    result["settings"] = settings_of(options)
    write_text(result_path(name, options, seed=seed), json.dumps(result, indent=2) + "\n")
    shown = ", ".join(f"{k} {result[k]:.3g}" for k in FIGURES if result[k] is not None)
    print(f"{name}, seed {seed}: {shown} ({spent:.1f} s)", file=sys.stderr, flush=True)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what must be the same of runs that are compared."""
    names = ("samples", "images", "batch_size", "width", "head_width", "projector_layers",
             "probe_images", "unseen", "kind", "levels")  # fmt: skip
    return {name: getattr(options, name) for name in names}


def result_path(name: str, options: argparse.Namespace, *, seed: int) -> Path:
    """Return where a finished row's result is kept."""
    return options.out / "results" / f"{ablations.slug(name)}-{seed}.json"


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Make the tables of what is finished, and keep them.

    Raises:
        SystemExit: nothing is, or runs of different settings lie together.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for name in ROWS:
        for seed in options.seeds:
            path = result_path(name, options, seed=seed)
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                rows.setdefault(name, {})[seed] = found
    made = [row for seeds in rows.values() for row in seeds.values()]
    if not made or any(row["settings"] != made[0]["settings"] for row in made):
        raise SystemExit(f"{options.out / 'results'}: no runs, or runs of different settings")
    table = {
        name: {"seeds": len(seeds), "student_images": next(iter(seeds.values()))["student_images"]}
        | {figure: _mean([row[figure] for row in seeds.values()]) for figure in FIGURES}
        for name, seeds in rows.items()
    }
    differences = {}
    for first, second in PAIRS:
        shared = sorted(set(rows.get(first, {})) & set(rows.get(second, {})))
        for figure in FIGURES if shared else ():
            pairs = [(rows[first][seed][figure], rows[second][seed][figure]) for seed in shared]
            if not any(value is None for pair in pairs for value in pair):
                found = ablations.interval([one - other for one, other in pairs])
                differences.setdefault(f"{first} - {second}", {})[figure] = found
    result = {
        "what": "CIFAR-10, rows of Squeeze-and-Span's ablation: % correct, spread, 1000 MMD^2",
        "date": time.strftime("%Y-%m-%d"),
        "machine": options.machine,
        "generator": options.about,
        "settings": made[0]["settings"],
        "table": table,
        "differences": differences,
    }
    for folder in filter(None, (options.out, options.results)):
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{result['date']}-squeeze-span"
        write_text(stem.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
        write_text(stem.with_suffix(".md"), sheet(result))
    return result


def _mean(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)) if known else None, "values": values}


def sheet(result: dict[str, Any]) -> str:
    """Write the tables as Markdown."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"

    head = "| row | seeds | " + " | ".join(FIGURES) + " |"
    lines = [head, "|---|---:|" + "---:|" * len(FIGURES)]
    for name, entry in result["table"].items():
        cells = " | ".join(cell(entry[figure]["mean"]) for figure in FIGURES)
        lines.append(f"| {name} | {entry['seeds']} | {cells} |")
    lines += ["", "Differences, paired by seed, ± half their 95 % intervals.", ""]
    lines += ["| rows | " + " | ".join(FIGURES) + " |", "|---|" + "---:|" * len(FIGURES)]
    for name, found in result["differences"].items():
        shown = []
        for figure in FIGURES:
            one = found.get(figure)
            if one is None:
                shown.append("-")
                continue
            half = one["half_interval"]
            told = "" if half is None else f" ± {cell(half)}"
            shown.append(cell(one["difference"]) + told)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--generator", type=Path, help="folder or file of the generator")
    parser.add_argument("--kind", default="stylegan2", help="of the generator")
    parser.add_argument("--levels", nargs="+", default=["s8", "s4", "s2", "s1", "w"])
    parser.add_argument("--settings_of_teacher", nargs="*", default=[], help="further settings")
    parser.add_argument("--train", type=Path, help="Parquet of training images")
    parser.add_argument("--val", type=Path, help="Parquet of held-out images")
    parser.add_argument("--out", type=Path, default=Path("runs/squeeze-span"))
    parser.add_argument("--results", type=Path, help="also write the result here")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", action="store_true", help="with other processes")
    parser.add_argument("--report", action="store_true", help="make tables of what is finished")
    parser.add_argument("--machine", default="", help="where it ran, for the report")
    parser.add_argument("--about", default="", help="what generator it was, for the report")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=120_000, help="student forward passes")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18")
    parser.add_argument("--head_width", type=int, default=512, help="of T_phi and the projector")
    parser.add_argument("--projector_layers", type=int, default=3)
    parser.add_argument("--probe_images", type=int, default=10_000)
    parser.add_argument("--unseen", type=int, default=15_000, help="training images that judge")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out, options.shares = options.out.resolve(), (1.0,)
    if not options.report and not (options.generator and options.train and options.val):
        parser.error("--generator, --train and --val are needed")
    return options


def main() -> None:
    """Run what is missing, seeds outermost, and report what is there."""
    options = parse()
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    if not options.report:
        options.synthetic, options.real = make_datasets(options)
        ablations.read_images(options)
        for seed in options.seeds:
            for name in options.rows:
                done = result_path(name, options, seed=seed)
                claim = options.out / "claims" / done.stem
                if not done.exists() and (not options.share or ablations.claimed(claim)):
                    run_row(name, options, seed=seed)
    print(json.dumps(report(options)))


if __name__ == "__main__":
    main()
