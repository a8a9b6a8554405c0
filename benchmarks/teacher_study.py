"""Probe a diffusion teacher's pooled features over block x noise level.

    python benchmarks/teacher_study.py --teacher recipes/cifar10/teacher \
        --train cifar10-train.parquet --val cifar10-val.parquet --samples 10000

One forward pass per noise level records every decoder block (mean over space, float16). Each is
judged by a linear probe (multinomial logistic regression on standardised features) and by k-NN
(cosine, weighted vote) on the validation images; so are the average and the concatenation over
several noise levels. The best is chosen on one half of those images and reported on the other.
Features and results are kept in `--work` and reused by a rerun. Prints one line per noise level
and, last, one JSON object; writes a picture of the curves beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import hashlib
import json
import re
import time
from typing import Any, cast

import numpy as np

from benchmarks.charts import level_curves
from distill.probes.knn import knn_classes
from distill.probes.logistic import probe_classes
from distill.probes.scaling import standardise
from dreamshard.charts import LIGHT
from dreamshard.progress import Progress
from dreamshard.rng import generator
from pipeline.images.prepare import decode, fit
from pipeline.images.reading import read_retrying
from pipeline.images.source import ImageConfig, SourceConfig, open_source
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from pipeline.teachers.door import open_teacher
from pipeline.teachers.inspecting.tap_table import tap_table

DECODER = re.compile(r"mid|middle_block|up\.\d+\.\d+|output_blocks\.\d+|block\.\d+")
TIMESTEPS = (0, 10, 25, 50, 100, 150, 200, 300, 500)
TEMPERATURE = 0.1  # of the k-NN vote


def read_images(path: str, size: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a seeded subset of a Parquet source: uint8 (N, size, size, 3) and int64 (N,)."""
    if path.startswith("digits:"):
        config = SourceConfig(kind="digits", split=path.partition(":")[2])
    else:
        config = SourceConfig(kind="parquet", path=path)
    source = open_source(config)
    count = len(source)
    rows = np.arange(count)
    if 0 < samples < count:
        rows = np.sort(generator(seed, 0, count, "study-subset").permutation(count)[:samples])
    images, labels = [], []
    for start in range(0, len(rows), 512):
        for record in read_retrying(source, [int(row) for row in rows[start : start + 512]]):
            image = fit(decode(record.data), config=ImageConfig(size=size), size=(size, size))
            images.append(np.asarray(image, np.uint8))
            labels.append(record.label)
    return np.stack(images), np.asarray(labels, np.int64)


class Study:
    """The features and scores of one teacher on one pair of image sets, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        description, rows = tap_table(options.teacher)
        self.taps = options.blocks or [r.name for r in rows if DECODER.fullmatch(r.name)]
        size = description.image_size[0]
        self.sets = {
            "train": read_images(options.train, size, options.samples, options.seed),
            "val": read_images(options.val, size, options.val_samples, options.seed),
        }
        digest = hashlib.sha256()
        for images, labels in self.sets.values():
            digest.update(images.tobytes() + labels.tobytes())
        teacher = self._teacher([0])
        about = {
            "teacher": teacher.fingerprint,
            "images": digest.hexdigest(),
            "blocks": self.taps,
            "seed": options.seed,
            "draws": options.mean_draws,
            "dtype": options.dtype,
        }
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(options.work) / f"study-{self.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scores_file = self.folder / f"scores-k{options.k}-c{options.strength:g}.json"
        self.scores: dict[str, dict[str, float]] = {}
        if self.scores_file.exists():
            self.scores = json.loads(self.scores_file.read_text())

    def _teacher(self, timesteps: list[int]) -> DiffusionTeacher:
        options = self.options
        settings: dict[str, Any] = {"mean_draws": options.mean_draws}
        if options.class_label is not None:
            settings["class_label"] = options.class_label
        teacher = open_teacher(
            options.teacher, levels=self.taps, timesteps=timesteps, pool="gap", seed=options.seed,
            compute_dtype=options.dtype, device=options.device, threads=options.threads, **settings,
        )  # fmt: skip
        return cast(DiffusionTeacher, teacher)

    def features(self, timestep: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return block -> (train, val) features, float32 (N, C); computed once and kept."""
        import torch

        file = self.folder / f"features-t{timestep}.npz"
        if not file.exists():
            teacher, parts = self._teacher([timestep]), {}
            total = sum(len(images) for images, _ in self.sets.values())
            with Progress(f"t {timestep}", total=total) as progress:
                for which, (images, _) in self.sets.items():
                    found = []
                    for start in range(0, len(images), self.options.batch):
                        rows = torch.from_numpy(images[start : start + self.options.batch])
                        maps = teacher.features(rows, np.arange(start, start + len(rows)))
                        found.append([maps[level.name].cpu().numpy() for level in teacher.levels])
                        progress.update(len(rows))
                    for level, values in zip(teacher.levels, zip(*found, strict=True), strict=True):
                        parts[f"{which}/{level.tap}"] = np.concatenate(values)
            part = file.with_name(f".{file.stem}.partial.npz")
            np.savez(part, **parts)
            part.replace(file)
        with np.load(file) as kept:
            values = {name: kept[name].astype(np.float32) for name in kept.files}
        return {tap: (values[f"train/{tap}"], values[f"val/{tap}"]) for tap in self.taps}

    def score(self, name: str, train: np.ndarray, val: np.ndarray) -> dict[str, float]:
        """Probe one representation; kept by name.

        "linear" and "knn" are of all validation images; "_choosing" and "_reporting" of either
        half, so that the best can be chosen on one and reported on the other.
        """
        if "knn_reporting" not in self.scores.get(name, {}):
            train, val = standardise(train, train, val)
            labels, truth = self.sets["train"][1], self.sets["val"][1]
            guesses = {
                "linear": probe_classes(train, labels, val, strength=self.options.strength),
                "knn": knn_guesses(train, labels, val, k=self.options.k),
            }
            found: dict[str, float] = {}
            for kind, guess in guesses.items():
                right = guess == truth
                found[kind] = 100 * float(right.mean())
                found[f"{kind}_choosing"] = 100 * float(right[::2].mean())
                found[f"{kind}_reporting"] = 100 * float(right[1::2].mean())
            self.scores[name] = found
            self.scores_file.write_text(json.dumps(self.scores))
        return self.scores[name]

    def run(self) -> dict[str, Any]:
        """Score every block at every noise level, then the averages over several."""
        for timestep in self.options.timesteps:
            started = time.perf_counter()
            found = self.features(timestep)
            middle = time.perf_counter()
            scores = {tap: self.score(f"{tap}.t{timestep}", *found[tap]) for tap in self.taps}
            best = max(scores, key=lambda tap: scores[tap]["linear_choosing"])
            took = f"features {middle - started:.0f} s, probes {time.perf_counter() - middle:.0f} s"
            percent = scores[best]["linear_reporting"]
            print(f"t {timestep:>4}: best {best} {percent:.2f} % ({took})")
        several = [self.features(timestep) for timestep in self.options.ensemble]
        label = "+".join(f"t{timestep}" for timestep in self.options.ensemble)
        for tap in self.taps if several else ():
            sides = [[found[tap][side] for found in several] for side in (0, 1)]
            means = [cast(np.ndarray, np.mean(side, axis=0)) for side in sides]
            self.score(f"{tap}.mean({label})", *means)
            self.score(f"{tap}.concat({label})", *(np.concatenate(side, 1) for side in sides))
        return self.scores


def knn_guesses(train: np.ndarray, labels: np.ndarray, val: np.ndarray, *, k: int) -> np.ndarray:
    """Classify by the k nearest by cosine, votes weighted exp(similarity / temperature)."""
    ks = [min(k, len(train))]
    return knn_classes(train, labels, val, ks=ks, temperature=TEMPERATURE)[:, 0]


def best_of(scores: dict[str, dict[str, float]], kind: str) -> dict[str, Any]:
    """Choose on one half of the validation images, report on the other."""
    name = max(scores, key=lambda each: scores[each][f"{kind}_choosing"])
    return {"name": name, "percent_on_images_that_chose_nothing": scores[name][f"{kind}_reporting"]}


def picture(scores: dict[str, dict[str, float]], taps: list[str], path: Path) -> None:
    """Draw both accuracies over the noise level, one line per block."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for kind, title in (("linear", "Linear probe"), ("knn", "k nearest neighbours")):
        panels[title] = {}
        for tap in taps:
            points = [
                (float(match[1]), values[kind])
                for name, values in scores.items()
                if (match := re.fullmatch(rf"{re.escape(tap)}\.t(\d+)", name))
            ]
            panels[title][tap] = sorted(points)
    path.write_bytes(level_curves(panels, LIGHT, xlabel="timestep t", ylabel="% correct"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="folder or checkpoint")
    parser.add_argument("--train", required=True, help="Parquet file, or digits:train")
    parser.add_argument("--val", required=True, help="Parquet file, or digits:heldout")
    parser.add_argument("--samples", type=int, default=10_000, help="training images; 0 for all")
    parser.add_argument("--val_samples", type=int, default=0, help="validation images; 0 for all")
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(TIMESTEPS))
    parser.add_argument("--ensemble", type=int, nargs="*", default=[10, 25, 50])
    parser.add_argument("--blocks", nargs="*", help="taps; default every decoder block")
    parser.add_argument("--mean_draws", type=int, default=1, help="noise draws averaged over")
    parser.add_argument("--class_label", type=int, help="for class-conditional teachers")
    parser.add_argument("--strength", type=float, default=100.0, help="C of the probe")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", default="runs/teacher-study", help="what a rerun reuses")
    parser.add_argument("--out", help="file for the JSON (and .png); default inside --work")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    study = Study(options)
    scores = study.run()
    out = Path(options.out) if options.out else study.folder / "study.json"
    picture(scores, study.taps, out.with_suffix(".png"))
    single = {name: value for name, value in scores.items() if "(" not in name}
    rounded = {
        name: {kind: round(x, 2) for kind, x in value.items()} for name, value in scores.items()
    }
    result = {
        "command": "python benchmarks/teacher_study.py " + " ".join(sys.argv[1:]),
        "seconds": round(time.perf_counter() - started, 1),
        "train": len(study.sets["train"][0]),
        "val": len(study.sets["val"][0]),
        "best": {kind: best_of(single, kind) for kind in ("linear", "knn")},
        "accuracy_percent": rounded,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
