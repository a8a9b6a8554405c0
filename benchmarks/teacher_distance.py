"""Measure how far a diffusion teacher's samples are from real images it was not trained on.

    python benchmarks/teacher_distance.py --teacher recipes/cifar10/teacher \
        --val cifar10-val.parquet --classifier resnet56-cifar10.safetensors --samples 1000

Fréchet and kernel distance of features of a small independent CIFAR-10 classifier, and of 8 x 8
pixel means. The same distances between two halves of the real images, and from noise to them, say
what the numbers mean. Proxies: not comparable with published FID. The last line is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import time

import numpy as np
import torch

from benchmarks.teacher_study import read_images
from dreamshard.progress import Progress
from dreamshard.rng import generator
from pipeline.images import quality
from pipeline.images.judges.resnet56 import CifarFeatures
from pipeline.teachers.door import open_teacher


def draw(options: argparse.Namespace) -> np.ndarray:
    """Synthesize the samples, uint8 (N, H, W, 3)."""
    teacher = open_teacher(
        options.teacher, mode="synthesize", levels=["mid"], timesteps=[50], pool="gap",
        compute_dtype=options.dtype, threads=options.threads, micro_batch=options.batch,
        sampler="ddim", steps=options.steps, seed=options.seed,
    )  # fmt: skip
    found = []
    with Progress("samples", total=options.samples) as progress:
        for start in range(0, options.samples, options.batch):
            found.append(teacher.synthesize(np.arange(start, start + options.batch)).image)
            progress.update(options.batch)
    return np.concatenate(found)[: options.samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--val", required=True, help="Parquet with images and labels")
    parser.add_argument("--classifier", required=True, help="safetensors of a CIFAR ResNet-56")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="of the DDIM sampler")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, count = time.perf_counter(), options.samples
    real, labels = read_images(options.val, 32, 2 * count, options.seed)
    order = generator(options.seed, 0, len(real), "distance-halves").permutation(len(real))
    real, labels = real[order], labels[order]
    noise = generator(options.seed, 0, count, "distance-noise")
    sets = {
        "teacher": draw(options),
        "other_real_images": real[count : 2 * count],
        "noise": noise.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8),
    }
    classifier = CifarFeatures(options.classifier)
    result: dict[str, object] = {
        "command": "python benchmarks/teacher_distance.py " + " ".join(sys.argv[1:]),
        "classifier_accuracy": round(classifier.accuracy(classifier(real), labels), 4),
    }
    for name, extract in (("classifier", classifier), ("pixels", quality.pixel_features)):
        reference = extract(real[:count])
        for what, images in sets.items():
            found = extract(images)
            result[f"{name}/{what}"] = {
                "frechet": round(quality.frechet_distance(reference, found), 4),
                "kernel": round(quality.kernel_distance(reference, found), 5),
            }
    result["seconds"] = round(time.perf_counter() - started, 1)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
