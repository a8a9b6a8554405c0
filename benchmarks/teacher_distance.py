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
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.teacher_study import read_images
from dreamshard.progress import Progress
from dreamshard.rng import generator
from pipeline.images import quality
from pipeline.teachers.door import open_teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = 9  # per stage of a ResNet-56 for CIFAR (He et al. 2016, section 4.2)


class Classifier:
    """A CIFAR ResNet-56 with option-A shortcuts: its pooled features, (N, 64)."""

    def __init__(self, path: str) -> None:
        self.w = load_file(path)

    def _layer(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, self.w[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = self.w[f"{norm}.running_mean"], self.w[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, self.w[f"{norm}.weight"], self.w[f"{norm}.bias"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [self._features(images[start : start + 250]) for start in range(0, len(images), 250)]
        )

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        x = self._layer(x, "conv1", "bn1").relu()
        for stage in (1, 2, 3):
            for block in range(BLOCKS):
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self._layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
                y = self._layer(y, f"{name}.conv2", f"{name}.bn2")
                if stride == 2:  # option A: every other pixel, missing channels are zero
                    side = (y.shape[1] - x.shape[1]) // 2
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
                x = (x + y).relu()
        return x.mean((2, 3)).numpy()

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Return the share classified right, to see that the network is read as it was made."""
        head = self.w["linear.weight"].numpy(), self.w["linear.bias"].numpy()
        return float(((features @ head[0].T + head[1]).argmax(1) == labels).mean())


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
    classifier = Classifier(options.classifier)
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
