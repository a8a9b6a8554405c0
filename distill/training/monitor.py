"""A look at the student while it trains: k-NN or a linear probe on a few labelled images.

Shapes: N training and M held-out images, D pooled features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from distill.probes.knn import knn_classes
from distill.probes.logistic import probe_accuracy, standardise
from distill.students.normalise import Normaliser
from dreamshard.errors import DataError
from pipeline.images.inputs import ImageInput
from pipeline.images.source import ImageConfig, SourceConfig, open_source

if TYPE_CHECKING:
    from distill.configs.monitor import MonitorConfig
    from distill.students.student import Student

MICRO_BATCH = 256
STRENGTH = 10.0  # scikit-learn's C of the probe; one value, as only the trend matters here


class Monitor:
    """Judge a student on labelled images that are read once and kept in memory.

    Args:
        config: which images and how.
        image_size: (H, W) of the student's images, in pixels.
        seed: of the run.

    Raises:
        DataError: images without labels, or none that can be used.
    """

    def __init__(self, config: MonitorConfig, *, image_size: tuple[int, int], seed: int) -> None:
        self.config = config
        read = partial(
            read_labelled,
            image=ImageConfig(),
            image_size=image_size,
            seed=seed,
            samples=config.samples,
        )
        self.train = read(config.train_images, part="train")
        self.heldout = read(config.heldout_images, part="heldout")

    def __call__(self, student: Student) -> dict[str, float]:
        """Return the share of held-out images whose class is found, in per cent.

        Args:
            student: its mode is left as it was.

        Returns:
            {"monitor_knn": ...} or {"monitor_probe": ...}.
        """
        was_training = student.training
        student.eval()
        train, heldout = (pooled(student, images) for images, _ in (self.train, self.heldout))
        student.train(was_training)
        if self.config.kind == "knn":
            ks = [min(self.config.neighbours, len(train))]
            classes = knn_classes(train.numpy(), self.train[1], heldout.numpy(), ks=ks)
            share = float((classes[:, 0] == self.heldout[1]).mean())
        else:
            fitted, judged = standardise(train.numpy(), train.numpy(), heldout.numpy())
            share = probe_accuracy(
                fitted, self.train[1], judged, self.heldout[1], strength=STRENGTH
            )
        return {f"monitor_{self.config.kind}": 100.0 * share}


@torch.inference_mode()
def pooled(student: Student, images: np.ndarray) -> Tensor:
    """Average a student's deepest map over space.

    Args:
        student: in evaluation mode, on any device.
        images: uint8 (N, H, W, 3).

    Returns:
        float32 (N, D), on the CPU.
    """
    normalise = Normaliser(student.mean, student.std, device=next(student.parameters()).device)
    parts = (images[at : at + MICRO_BATCH] for at in range(0, len(images), MICRO_BATCH))
    return torch.cat(
        [student(normalise(part))[-1].float().mean(dim=(2, 3)).cpu() for part in parts]
    )


def read_labelled(
    source: SourceConfig,
    image: ImageConfig,
    *,
    image_size: tuple[int, int],
    seed: int,
    samples: int | None = None,
    part: Literal["train", "heldout"] = "train",
) -> tuple[np.ndarray, np.ndarray]:
    """Read the first usable images of a source, with their labels, into memory.

    Args:
        source: where the images are.
        image: how they are brought to size.
        image_size: (H, W) in pixels.
        seed: of their flips and views, if there are any.
        samples: how many at most; None: all.
        part: of the data, where the source names none.

    Returns:
        uint8 (N, H, W, 3) and int64 (N,).

    Raises:
        DataError: images without labels.
    """
    opened = open_source(source, key=f"monitor.{part}_images", part=part)
    inputs = ImageInput(opened, config=image, image_size=image_size, seed=seed)
    images, labels = [], []
    total = inputs.num_samples or 0
    count = total if samples is None else min(samples, total)
    for work in inputs.works(0, count, micro_batch=min(MICRO_BATCH, count)):
        assert work.images is not None and work.valid is not None
        if work.labels is None or (work.labels[work.valid] < 0).any():
            raise DataError(
                "monitor: got images without labels, allowed labelled ones: it learns classes. "
                "Set the source's label_column or class_folders."
            )
        images.append(work.images[: work.count][work.valid])
        labels.append(work.labels[work.valid])
    return np.concatenate(images), np.concatenate(labels)
