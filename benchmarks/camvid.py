"""Label-efficient segmentation of CamVid: what feature, label and mixed distillation are worth.

    python benchmarks/camvid.py --data DIR --out runs/camvid-benchmark

DIR holds camvid-train.parquet and camvid-val.parquet. The steps are those of recipes/camvid, run as
commands; a rerun goes on where the last one stopped. Per seed, the same 20 (or 40) labelled frames,
drawn evenly over the videos, train the interpreter and the read-out. Two sets of frames judge:

    val     camvid-val: 101 frames of seven seconds of one street
    rest    the training frames that are not labelled (seconds apart, all streets): teacher and
            students have seen them, but no label of theirs

Arms, all judged by the same UPerNet read-out:

    scratch      the untrained student
    supervised   the untrained student, as many further steps as distillation took
    feature, label, mix   DreamTeacher's students

Prints a table and, as the last line, one JSON object, which is also written to OUT/camvid.json.
`--size short` takes two fifths of the recipes' steps of teacher and student; `--size tiny` runs
everything at a size that says nothing, to see that it runs. Seeds may run side by side in one OUT
once the first has made teacher and features; a last call over all of them sums up.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.commands import run_command
from distill.tasks.segmentation import COUNTS, scores_of
from dreamshard.config.yaml12 import parse_yaml

RECIPES = ROOT / "recipes" / "camvid"
ARMS = ("scratch", "supervised", "feature", "label", "mix")
MOST_LABELLED = 40  # the draw of 20 is part of it: both columns are judged on the same frames
Scores = dict[str, float]
Found = dict[str, dict[str, dict[str, Scores]]]
SIZES: dict[str, dict[str, list[str]]] = {
    "tiny": {
        "pretrain": ["--steps", "4", "--warmup_steps", "1", "--batch_size", "4",
                     "--num_samples", "2", "--sample_steps", "2",
                     "--unet.block_out_channels", "[8,8,8,8,8]"],
        "encode": ["--image.views", "1", "--samples", "64", "--samples_per_unit", "64"],
        "interpret": ["--epochs", "1", "--noisings", "1", "--mirror", "false", "--width", "8"],
        "train": ["--steps", "4", "--batch_size", "8", "--log_every", "2", "--save_every", "4"],
        "evaluate": ["--segmentation.steps", "2", "--segmentation.width", "8"],
    },
    "short": {
        "pretrain": ["--steps", "1600", "--warmup_steps", "100", "--checkpoint_every", "100",
                     "--precision", "bfloat16"],
        "train": ["--steps", "400", "--precision", "bf16",
                  "--log_every", "20", "--save_every", "100"],
    },
    "full": {},
}  # fmt: skip
"""Overrides of the recipes by command."""


class Experiment:
    """Run the recipes of one experiment into one folder.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out.resolve()
        self.data = options.data.resolve()
        self.teacher = self.out / "teacher"
        self.features = self.out / "data" / "camvid-features"

    def run(self) -> Found:
        """Run what is missing; return mIoU in per cent by arm, labelled frames, seed and set."""
        train = str(self.data / "camvid-train.parquet")
        self.call("pretrain", "pretrain", "--out", self.teacher, "--source.path", train)
        self.encode("encode", "camvid-features")
        found: Found = {arm: {} for arm in self.options.arms}
        for frames in self.options.frames:
            for seed in self.options.seeds:
                self.cell(found, seed, frames)
        return found

    def cell(self, found: Found, seed: int, frames: int) -> None:
        """Run and note what is missing of one seed with so many labelled frames."""
        wanted = set(self.options.arms)
        student = self.train("feature", seed, frames=0, joined="")
        if wanted & {"feature", "scratch"}:
            scores = self.score(student, seed, frames, "feature", baselines="[random]")
            self.note(found, "feature", frames, seed, scores["distilled student"])
            self.note(found, "scratch", frames, seed, scores["random student"])
        distilled = [arm for arm in ("label", "mix") if arm in wanted]
        soft = self.soft_labels(seed, frames) if distilled else None
        for arm in distilled:
            other = self.train(arm, seed, frames=frames, joined=str(soft))
            scores = self.score(other, seed, frames, arm, baselines="[]")
            self.note(found, arm, frames, seed, scores["distilled student"])
        if "supervised" in wanted:
            steps = self.supervised_steps()
            scores = self.score(
                student, seed, frames, "supervised", baselines="[random]", steps=steps
            )
            self.note(found, "supervised", frames, seed, scores["random student"])

    def encode(self, recipe: str, name: str, *more: object) -> Path:
        """Record features or soft labels; return ROOT/NAME of the dataset."""
        path = str(self.data / "camvid-train.parquet")
        root = self.out / "data"
        self.call(
            "encode", recipe, "--root", root, "--name", name, "--teacher.path", self.teacher,
            "--source.path", path, "--run_dir", self.out / name, *more,
        )  # fmt: skip
        return root / name

    def soft_labels(self, seed: int, frames: int) -> Path:
        """Train the interpreter of some labelled frames and record what it says of all."""
        folder = self.out / f"interpreter-{frames}-{seed}"
        path = str(self.data / "camvid-train.parquet")
        labelled = min(frames, 8) if self.options.size == "tiny" else frames
        self.call(
            "interpret", "interpret", "--out", folder, "--labelled", labelled, "--seed", seed,
            "--teacher.path", self.teacher, "--source.path", path,
        )  # fmt: skip
        return self.encode("soft_labels", f"soft-{frames}-{seed}", "--teacher.interpreter", folder)

    def train(self, arm: str, seed: int, *, frames: int, joined: str) -> Path:
        """Distil a student; return its run folder."""
        folder = self.out / f"{arm}-{frames}-{seed}"
        self.call(
            "train", "train", "--run_dir", folder, "--seed", seed, "--dreamteacher.mode", arm,
            "--data.dataset", self.features, "--data.join", f"[{joined}]",
        )  # fmt: skip
        return folder

    def score(
        self, student: Path, seed: int, frames: int, arm: str, *, baselines: str, steps: int = 0
    ) -> dict[str, Scores]:
        """Train and judge the read-out; return mIoU in per cent by network and set."""
        folder = self.out / f"score-{arm}-{frames}-{seed}"
        if not (folder / COUNTS).exists():
            more = ["--segmentation.steps", str(steps)] if steps else []
            self.call(
                "evaluate", "evaluate", "--student", student, "--run_dir", folder, "--seed", seed,
                "--segmentation.shots", f"[{frames}]", "--baselines", baselines,
                "--train_images.path", self.data / "camvid-train.parquet",
                "--heldout_images.path", self.heldout(),
                *more,
            )  # fmt: skip
        return self.by_set(folder / COUNTS, seed)

    def heldout(self) -> Path:
        """Write the frames of both files into one, to be judged in one go."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.out / "both.parquet"
        if not path.exists():
            tables = [
                pq.read_table(self.data / f"camvid-{name}.parquet") for name in ("val", "train")
            ]
            part = path.with_suffix(f".{os.getpid()}.part")
            pq.write_table(pa.concat_tables(tables), part)
            part.replace(path)
        return path

    def by_set(self, counts: Path, seed: int) -> dict[str, Scores]:
        """Read the counts of every frame and return mIoU by network and set."""
        from pipeline.images.labelled import draw_labelled

        with np.load(counts) as found:
            keys = found["keys"]
            own = len(self.keys("val"))
            train = np.array(self.keys("train"))
            most = max(MOST_LABELLED, *self.options.frames)
            drawn = draw_labelled(len(train), count=most, seed=seed, draw="even")
            place = np.arange(len(keys))
            sets = {"val": place < own, "rest": (place >= own) & ~np.isin(keys, train[drawn])}
            return {
                name.rpartition("/")[0]: {
                    label: scores_of(found[name][chosen].sum(axis=0).astype(np.float64))["mean"]
                    for label, chosen in sets.items()
                }
                for name in found.files
                if name != "keys"
            }

    def keys(self, split: str) -> list[str]:
        """Return the names of a split's frames, in order."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.data / f"camvid-{split}.parquet", columns=["key"])
        return table["key"].to_pylist()

    def note(self, found: Found, arm: str, frames: int, seed: int, scores: Scores) -> None:
        """Keep figures that are wanted, and show them at once."""
        if arm not in found:
            return
        found[arm].setdefault(str(frames), {})[str(seed)] = scores
        shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        print(f"{arm}, {frames} frames, seed {seed}: {shown} % mIoU", file=sys.stderr)

    def supervised_steps(self) -> int:
        """Return the read-out's steps and, in its batches, distillation's student images."""
        images = self.setting("train", "steps") * self.setting("train", "batch_size")
        further = images // self.setting("evaluate", "segmentation.batch_size")
        return self.setting("evaluate", "segmentation.steps") + further

    def setting(self, verb: str, key: str) -> int:
        """Return a count as the size's overrides say, else as the recipe of that name says."""
        overrides = SIZES[self.options.size].get(verb, [])
        if f"--{key}" in overrides:
            return int(overrides[overrides.index(f"--{key}") + 1])
        value = parse_yaml((RECIPES / f"{verb}.yaml").read_text(encoding="utf-8"))
        for part in key.split("."):
            value = value[part]
        return int(value)

    def call(self, verb: str, recipe: str, *words: object) -> None:
        """Run one command; the size's overrides come first, so that what is told here wins."""
        config = str(RECIPES / f"{recipe}.yaml")
        more = SIZES[self.options.size].get(verb, [])
        run_command([verb, "--config", config, *more, *map(str, words)], cwd=self.out)


def summarise(found: Found) -> dict[str, Any]:
    """Return mean, deviation and the gain over scratch, by arm, frames and set."""
    table: dict[str, Any] = {}
    for arm, columns in found.items():
        table[arm] = {}
        for frames, by_seed in columns.items():
            floor = found.get("scratch", {}).get(frames, {})
            table[arm][frames] = {
                name: spread(
                    [scores[name] for scores in by_seed.values()],
                    [v[name] - floor[seed][name] for seed, v in by_seed.items() if seed in floor],
                )
                for name in ("val", "rest")
            }
    return table


def spread(values: list[float], gains: list[float]) -> dict[str, Any]:
    """Return mean and standard deviation of scores and of gains paired by seed."""
    return {
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": len(values),
        "gain": statistics.mean(gains) if gains else None,
        "gain_std": statistics.stdev(gains) if len(gains) > 1 else 0.0,
        "won": sum(gain > 0 for gain in gains),
    }


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid-benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--size", choices=SIZES, default="full", help="share of the recipes' steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    found = Experiment(options).run()
    result = {
        "what": "mIoU in % at 96 x 128, ResNet-18, UPerNet read-out; sets as in the script's text",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "command": (
            f"python benchmarks/camvid.py --data DIR --size {options.size} "
            f"--frames {_words(options.frames)} --seeds {_words(options.seeds)} "
            f"--arms {_words(options.arms)}"
        ),
        "size": options.size,
        "overrides": SIZES[options.size],
        "seconds_of_this_call": round(time.time() - began),
        "table": summarise(found),
        "by_seed": found,
    }
    (options.out / "camvid.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for arm, columns in result["table"].items():
        cells = [
            f"{frames} frames {name} {cell['mean']:.1f} ± {cell['std']:.1f}"
            for frames, sets in columns.items()
            for name, cell in sets.items()
        ]
        print(f"{arm:<12} {', '.join(cells)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
