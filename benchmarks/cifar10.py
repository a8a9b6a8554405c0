"""CIFAR-10: DreamTeacher against no training, self-supervision and few labels, at equal compute.

    dreamshard encode --name cifar10 --teacher.path TEACHER --teacher.levels [s1, s2, s4, s8] \
        --teacher.timesteps [50] --source.kind parquet --source.path cifar10-train.parquet \
        --image.size 32 --codec int8
    python benchmarks/cifar10.py --dataset data/cifar10 --train cifar10-train.parquet \
        --val cifar10-val.parquet --out runs/cifar10

All arms train the same student, a ResNet-18 for 32 pixels, by the same number of student forward
passes in the same number of steps; a method with two views gets half the samples per step. Then
the frozen student is judged on images that nobody trained on: linear probes on all and on few
labels, and nearest neighbours. Every (arm, seed) is a run of its own: stop the script at any time,
the same command goes on. The last line printed is the result as JSON, of all that is finished in
the folder: arms and seeds may be run by several calls.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.configs.train import (
    DataConfig,
    DreamTeacherConfig,
    OptimizerConfig,
    SimSiamConfig,
    StudentConfig,
    SupervisedConfig,
    TrainConfig,
    VICRegConfig,
)
from dreamshard.runfolder import write_text

if TYPE_CHECKING:
    from distill.students.student import Student

CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
STRIDES = [1, 2, 4, 8]
SHARES = (1.0, 0.1, 0.01)
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C of the probe
NEIGHBOURS = (20, 200)
SELECTION = 5000  # training images that the probe's C is chosen on
ADAMW = OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.05, warmup=0.05)
# Squeeze-and-Span's settings of its baselines: lr 0.03 x batch / 256, weight decay 5e-4.
SGD = OptimizerConfig(
    name="sgd", lr=0.03, lr_batch=256, weight_decay=5e-4, betas=[0.9, 0.0], warmup=0.0
)
DREAMTEACHER: dict[str, Any] = {"method": "dreamteacher", "optimizer": ADAMW}
FEATURES_AND_REG = {  # the best combination of docs/results.md
    "method": "mix",
    "mix.feature.weight": 1.0,
    "mix.feature.width": 64,
    "mix.feature.attention_weight": 0.0,
    "mix.feature.whiten": "channel",
    "mix.regression.weight": 1.0,
    "mix.regression.level": "s4",
    "mix.regression.view": "same",
}
ARMS: dict[str, dict[str, Any]] = {
    "random": {},
    "dreamteacher": DREAMTEACHER,
    "dreamteacher_mse": {**DREAMTEACHER, "settings": {"attention_weight": 0.0}},
    "dreamteacher_chw": {**DREAMTEACHER, "settings": {"whiten_axes": "chw"}},
    "dreamteacher_chw_mse": {
        **DREAMTEACHER,
        "settings": {"whiten_axes": "chw", "attention_weight": 0.0},
    },
    "dreamteacher_mirror": {**DREAMTEACHER, "flip": "mirror"},
    "dreamteacher_reg": {"optimizer": ADAMW, "changes": FEATURES_AND_REG},
    "vicreg": {"method": "vicreg", "optimizer": SGD},
    "vicreg_adamw": {"method": "vicreg", "optimizer": ADAMW},
    "simsiam": {"method": "simsiam", "optimizer": SGD},
    "simsiam_adamw": {"method": "simsiam", "optimizer": ADAMW},
    "supervised_1": {"method": "supervised", "optimizer": ADAMW, "share": 0.01},
    "supervised_10": {"method": "supervised", "optimizer": ADAMW, "share": 0.1},
}


def arm_config(arm: str, options: argparse.Namespace, *, seed: int) -> TrainConfig:
    """Return an arm's configuration; all have the same student and forward passes."""
    from distill.methods.build import method_class

    settings = ARMS[arm]
    config = TrainConfig(
        run_dir=str(options.out / f"{arm}-{seed}"),
        seed=seed,
        method=settings.get("changes", {}).get("method") or settings.get("method", "vicreg"),
        student=StudentConfig(
            name="cifar_resnet18",
            settings={"width": options.width},
            strides=STRIDES,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
        ),
        data=DataConfig(dataset=options.dataset, flip=settings.get("flip", "none")),
        dreamteacher=DreamTeacherConfig(
            width=options.regressor_width, **settings.get("settings", {})
        ),
        simsiam=SimSiamConfig(width=options.head_width, predictor_width=options.head_width // 4),
        vicreg=VICRegConfig(width=options.head_width),
        supervised=SupervisedConfig(label_share=settings.get("share", 1.0)),
        optimizer=settings.get("optimizer", ADAMW),
        device=options.device,
        threads=options.threads,
        precision=options.precision,
    )
    config = with_changes(config, settings.get("changes", {}))
    views = max(1, len(method_class(config.method).needs(config.method_settings()).views))
    steps = max(1, round(options.images / options.batch_size))
    log_every = max(1, min(50, steps // 4))
    return replace(
        config,
        batch_size=options.batch_size // views,
        steps=steps,
        log_every=log_every,
        save_every=4 * log_every,
        keep=1,
    )


def with_changes(config: Any, changes: dict[str, Any]) -> Any:
    """Return a configuration with other values under dotted keys."""
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        if rest:
            value = with_changes(getattr(config, name), {rest: value})
        config = replace(config, **{name: value})
    return config


def run_arm(arm: str, options: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """Train and judge one arm with one seed; reuse what is there already."""
    import torch

    from distill.bench.bench import MEASURED
    from distill.bench.representations import measure_statistics
    from distill.students.export import load_student
    from distill.students.student import build_student
    from distill.train import train

    path = options.out / "results" / f"{arm}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    config = arm_config(arm, options, seed=seed)
    result: dict[str, Any] = {"arm": arm, "seed": seed, "student_images": 0, "seconds": 0.0}
    if arm == "random":
        student = build_student(config.student, strides=STRIDES, seed=seed)
        seen = images(options)[0][0]
        rows = np.random.default_rng(seed).permutation(len(seen))[:MEASURED]
        student = measure_statistics(student, seen[rows], device=torch.device("cpu"))
    else:
        student, card = load_student(train(config))
        stats = json.loads((Path(config.run_dir) / "stats.json").read_text(encoding="utf-8"))
        result |= {"student_images": card.provenance["student_images"]}
        # Of the last start: after an interruption this is less than the whole training took.
        result |= {"seconds": stats.get("seconds", 0.0), "loss": stats.get("loss")}
    result |= judge(student, options, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def judge(student: Student, options: argparse.Namespace, *, seed: int) -> dict[str, float]:
    """Return the accuracies, in per cent, of a frozen student's deepest pooled map.

    Where the options say that only the first so many (`heldout`) of the judging images are unknown
    to the teacher as well, figures of those alone are added, as NAME_heldout.
    """
    from distill.data.sets import labelled_share
    from distill.probes.knn import knn_classes
    from distill.training.monitor import pooled
    from pipeline.learning.device import choose_device

    (train, labels), (held, truth) = images(options)
    device = choose_device(options.device)
    student = student.to(device).eval()
    features, queries = pooled(student, train).numpy(), pooled(student, held).numpy()
    near = knn_classes(features, labels, queries, ks=NEIGHBOURS, device=str(device))
    right = {f"knn_{k}": near[:, at] == truth for at, k in enumerate(NEIGHBOURS)}
    for share in options.shares:
        kept = labelled_share(labels, share=share, seed=seed)
        classes = linear(features[kept], labels[kept], queries)
        right[f"linear_{100 * share:g}"] = classes == truth
    found = {name: 100 * float(hits.mean()) for name, hits in right.items()}
    first = getattr(options, "heldout", 0)
    if first:
        found |= {
            f"{name}_heldout": 100 * float(hits[:first].mean()) for name, hits in right.items()
        }
    return found


def linear(train: np.ndarray, labels: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Fit a logistic regression and return the classes it finds for others.

    A fifth of the training images choose its scaling and penalty.
    """
    from distill.probes.logistic import probe_accuracy, probe_classes
    from distill.probes.scaling import SCALINGS, scaled

    order = np.random.default_rng(0).permutation(len(train))
    cut = min(SELECTION, len(order) // 5)
    chosen, rest = order[:cut], order[cut:]
    pairs = {each: scaled(each, train, train, held) for each in SCALINGS}
    scores = {
        (each, c): probe_accuracy(
            fitted[rest], labels[rest], fitted[chosen], labels[chosen], strength=c
        )
        for each, (fitted, _) in pairs.items()
        for c in STRENGTHS
    }
    scaling, strength = max(scores, key=lambda pair: scores[pair])
    fitted, judged = pairs[scaling]
    return probe_classes(fitted, labels, judged, strength=strength)


def images(
    options: argparse.Namespace,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read the labelled images of both splits once."""
    from distill.training.monitor import read_pair
    from pipeline.images.source import ImageConfig, SourceConfig

    if not hasattr(options, "loaded"):
        sources = [
            SourceConfig(kind="parquet", path=str(path)) for path in (options.train, options.val)
        ]
        options.loaded = read_pair(
            *sources,
            ImageConfig(size=32),
            image_size=(32, 32),
            seed=0,
            samples=options.probe_images or None,
            prefix="",
        )
    return options.loaded


def finished(out: Path) -> list[dict[str, Any]]:
    """Read what this call and others into the same folder have finished, in the order of ARMS."""
    paths = (out / "results").glob("*.json")
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(rows, key=lambda row: (list(ARMS).index(row["arm"]), row["seed"]))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, spread over seeds and DreamTeacher's gains, paired by seed, over other arms."""
    figures = [name for name in results[0] if name.startswith(("knn_", "linear_"))]
    arms = list(dict.fromkeys(row["arm"] for row in results))
    table = {arm: {row["seed"]: row for row in results if row["arm"] == arm} for arm in arms}
    rows = {
        arm: {name: _spread([row[name] for row in seeds.values()]) for name in figures}
        | {"student_images": next(iter(seeds.values()))["student_images"], "seeds": len(seeds)}
        for arm, seeds in table.items()
    }
    subjects = [arm for arm in arms if arm.startswith("dreamteacher")]
    gains = {subject: _gains(table, subject, figures) for subject in subjects}
    return {"rows": rows, "gains": gains}


def _gains(
    table: dict[str, dict[int, dict[str, Any]]], subject: str, figures: list[str]
) -> dict[str, Any]:
    """Return how far an arm is ahead of every other one, paired by seed."""
    ahead = table[subject]
    found = {}
    for arm, seeds in table.items():
        shared = sorted(set(seeds) & set(ahead))
        if arm != subject and shared:
            found[arm] = {
                name: _spread([ahead[seed][name] - seeds[seed][name] for seed in shared])
                for name in figures
            }
    return found


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--dataset", required=True, help="features of the training images")
    parser.add_argument("--train", required=True, help="Parquet of the labelled training images")
    parser.add_argument("--val", required=True, help="Parquet of the labelled held-out images")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="also write the result into this folder")
    arms = ["random", "dreamteacher", "vicreg", "simsiam", "supervised_1", "supervised_10"]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=270_000, help="student forward passes")
    parser.add_argument("--batch_size", type=int, default=256, help="forward passes per step")
    parser.add_argument("--width", type=int, default=32, help="of the ResNet-18")
    parser.add_argument("--regressor_width", type=int, default=128)
    parser.add_argument("--head_width", type=int, default=512, help="of the baselines' heads")
    parser.add_argument("--probe_images", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.set_defaults(shares=SHARES)
    return parser.parse_args()


def main() -> None:
    """Run every arm with every seed, seeds outermost, and report what is there so far."""
    import torch

    options = parse()
    for seed in options.seeds:  # a whole comparison is there after the first seed
        for arm in options.arms:
            began = time.monotonic()
            row = run_arm(arm, options, seed=seed)
            shown = ", ".join(f"{k} {v:.1f}" for k, v in row.items() if k[:3] in ("knn", "lin"))
            print(f"{arm} seed {seed}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
    results = finished(options.out)
    here = ("loaded", "out", "results", "arms", "seeds")
    settings = {name: value for name, value in vars(options).items() if name not in here}
    settings |= {name: Path(settings[name]).name for name in ("dataset", "train", "val")}
    result = {
        "what": "CIFAR-10, accuracy in per cent on held-out images, mean and std over seeds",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "settings": settings,
        **summary(results),
        "runs": results,
    }
    text = json.dumps(result)
    write_text(options.out / "cifar10.json", json.dumps(result, indent=2) + "\n")
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"{result['date']}-cifar10.json"
        write_text(path, json.dumps(result, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
