"""Probe a teacher's pooled features over tap x timestep, chosen on training images alone.

    python benchmarks/teacher_probe.py --teacher TEACHER --train cifar10-train.parquet \
        --val cifar10-val.parquet --timesteps 50 100 150 --device cuda --out probe.json

Every (tap, timestep) is judged by a linear probe fitted on `1 - holdout` of the training images and
tested on the rest of them; the best is then fitted on all training images and reported, with k-NN,
on the validation images, which chose nothing. A clean teacher
(`dreamshard clean`) has no timesteps: give none. The probe is multinomial logistic regression on
standardised features, by L-BFGS on the device, its strength of regularisation chosen likewise.
`--together` judges, beside each tap, all of them joined: one pass, several pooled layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import re
import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.teacher_study import read_images
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from pipeline.teachers.door import open_teacher
from pipeline.teachers.inspecting.tap_table import tap_table

TAPS = re.compile(r"mid|up\.\d+\.\d+|down\.\d+\.\d+")
DECAYS = (1e-5, 1e-4, 1e-3)
NEIGHBOURS, TEMPERATURE = 20, 0.1
TOGETHER = "together"


def pooled(
    teacher: DiffusionTeacher, images: np.ndarray, *, batch: int, first: int = 0
) -> dict[str, Tensor]:
    """Return tap -> float32 (N, C) on the device, means over space."""
    parts: dict[str, list[Tensor]] = {level.name: [] for level in teacher.levels}
    for start in range(0, len(images), batch):
        rows = torch.from_numpy(images[start : start + batch])
        index = np.arange(first + start, first + start + len(rows))
        for name, value in teacher.features(rows, index).items():
            parts[name].append(value.float())
    taps = {level.name: level.tap for level in teacher.levels}
    return {taps[name]: torch.cat(values) for name, values in parts.items()}


def joined(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add all taps' features side by side, as one more."""
    return found | {TOGETHER: torch.cat(list(found.values()), 1)}


def fit_probe(x: Tensor, y: Tensor, *, decay: float, classes: int, steps: int) -> Tensor:
    """Fit multinomial logistic regression with L2 by L-BFGS; return weights (C + 1, classes)."""
    x = F.pad(x, (0, 1), value=1.0)
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight, y) + decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(closure)  # type: ignore[arg-type]
    return weight.detach()


def accuracy(weight: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the percentage of rows whose class is found."""
    found = (F.pad(x, (0, 1), value=1.0) @ weight).argmax(1)
    return 100 * float((found == y).float().mean())


def standardised(reference: Tensor, *others: Tensor) -> list[Tensor]:
    """Bring features to the reference's mean 0 and deviation 1."""
    mean, std = reference.mean(0), reference.std(0).clamp_min(1e-6)
    return [(other - mean) / std for other in others]


def neighbours(train: Tensor, y: Tensor, test: Tensor, truth: Tensor, *, classes: int) -> float:
    """Return the percentage of test rows found by k nearest neighbours (cosine, weighted vote)."""
    train, right = F.normalize(train), 0
    for start in range(0, len(test), 1000):
        near, which = (F.normalize(test[start : start + 1000]) @ train.T).topk(NEIGHBOURS)
        votes = torch.zeros(len(near), classes, device=train.device)
        votes.scatter_add_(1, y[which], (near / TEMPERATURE).exp())
        right += int((votes.argmax(1) == truth[start : start + 1000]).sum())
    return 100 * right / len(test)


def study(options: argparse.Namespace) -> dict[str, Any]:
    """Choose tap and timestep on training images, report on validation images."""
    description, rows = tap_table(options.teacher)
    wanted = options.taps or [row.name for row in rows if TAPS.fullmatch(row.name)]
    side = description.image_size[0]
    images, labels = read_images(options.train, side, options.samples, options.seed)
    val_images, val_labels = read_images(options.val, side, options.val_samples, options.seed)
    device, classes = torch.device(options.device), int(labels.max()) + 1
    y, truth = (torch.from_numpy(part).to(device) for part in (labels, val_labels))
    order = torch.from_numpy(np.random.default_rng(options.seed).permutation(len(labels)))
    held, kept = order.to(device).tensor_split([int(options.holdout * len(order))])
    table: dict[str, dict[str, float]] = {}
    best: tuple[float, dict[str, Any]] = (0.0, {})
    for timestep in options.timesteps or [None]:
        told = [] if timestep is None else [timestep]
        teacher = cast(
            DiffusionTeacher,
            open_teacher(
                options.teacher, levels=wanted, timesteps=told, pool="gap", seed=0,
                compute_dtype=options.dtype, device=options.device, threads=options.threads,
                mean_draws=options.mean_draws,
            ),
        )  # fmt: skip
        found = pooled(teacher, images, batch=options.batch)
        for tap, features in (joined(found) if options.together else found).items():
            fit, test = standardised(features[kept], features[kept], features[held])
            scores = {
                decay: accuracy(
                    fit_probe(fit, y[kept], decay=decay, classes=classes, steps=options.steps),
                    test, y[held],
                )
                for decay in DECAYS
            }  # fmt: skip
            decay, score = max(scores.items(), key=lambda pair: pair[1])
            table.setdefault(tap, {})[str(timestep)] = score
            if score > best[0]:
                row = {"tap": tap, "timestep": timestep, "decay": decay, "held_out": score}
                best = (score, {**row, "features": features, "teacher": teacher})
        print(
            f"t {timestep}: " + ", ".join(f"{t} {s[str(timestep)]:.1f}" for t, s in table.items())
        )
    chosen = best[1]
    teacher, features = chosen.pop("teacher"), chosen.pop("features")
    unseen = joined(pooled(teacher, val_images, batch=options.batch))[chosen["tap"]]
    fit, test = standardised(features, features, unseen)
    weight = fit_probe(fit, y, decay=chosen["decay"], classes=classes, steps=4 * options.steps)
    chosen["linear"] = accuracy(weight, test, truth)
    chosen["knn"] = neighbours(fit, y, test, truth, classes=classes)
    return {
        "held_out_table": table,
        "chosen": chosen,
        "sigma": sigma_of(teacher, options.timesteps),
    }


def sigma_of(teacher: DiffusionTeacher, timesteps: list[int]) -> dict[str, float]:
    """Return the noise over signal of each timestep."""
    schedule = teacher.schedule
    return {str(t): float(schedule.noise[t] / schedule.signal[t]) for t in timesteps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument(
        "--timesteps", type=int, nargs="*", default=[], help="none: a clean teacher"
    )
    parser.add_argument("--taps", nargs="*", help="default: mid and every layer")
    parser.add_argument("--together", action="store_true", help="judge all taps joined, too")
    parser.add_argument("--samples", type=int, default=0, help="training images; 0 for all")
    parser.add_argument("--val_samples", type=int, default=0, help="validation images; 0 for all")
    parser.add_argument("--holdout", type=float, default=0.2, help="share that chooses, 0..1")
    parser.add_argument("--steps", type=int, default=60, help="of L-BFGS for a choice")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--mean_draws", type=int, default=1, help="noises averaged (count)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    result = study(options)
    command = "python benchmarks/teacher_probe.py " + " ".join(sys.argv[1:])
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result |= {"command": command, "device": card, "seconds": time.perf_counter() - started}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
