"""A look at the student while it trains: k-NN or a linear probe on a few labelled images.

Shapes: N training and M held-out images, D pooled features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.probes.knn import knn_classes
from distill.probes.logistic import probe_accuracy
from distill.probes.scaling import standardise
from distill.students.normalise import Normaliser
from pipeline.images.pair import compact, draw_pair, open_pair, read_usable, require_labels
from pipeline.images.source import ImageConfig, SourceConfig

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
        DataError: as `read_pair`.
    """

    def __init__(self, config: MonitorConfig, *, image_size: tuple[int, int], seed: int) -> None:
        self.config = config
        self.train, self.heldout = read_pair(
            config.train_images,
            config.heldout_images,
            ImageConfig(),
            image_size=image_size,
            seed=seed,
            samples=config.samples,
        )

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


def read_pair(
    train: SourceConfig,
    heldout: SourceConfig,
    image: ImageConfig,
    *,
    image_size: tuple[int, int],
    seed: int,
    samples: int | None = None,
    prefix: str = "monitor.",
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read labelled images of two sources into memory, with one class table.

    Args:
        train, heldout: where the images are.
        image: how they are brought to size.
        image_size: (H, W) in pixels.
        seed: of the draw, and of the images' flips, if there are any.
        samples: how many of either at most, drawn class by class; None: all.
        prefix: of the sources' dotted keys, for messages.

    Returns:
        uint8 (N, H, W, 3) and classes int64 (N,) of 0..K-1, of both sources.

    Raises:
        DataError: images without labels or none that can be used, one class alone, held-out
            classes that no training image has.
    """
    sources = open_pair(train, heldout, prefix=prefix)
    if samples is None:
        drawn = {part: np.arange(len(source)) for part, source in sources.items()}
    else:
        drawn = draw_pair(sources, count=samples, seed=seed)
    images, labels = [], []
    for part, source in sources.items():
        key = f"{prefix}{part}_images"
        pixels, classes = read_usable(
            source, config=image, size=image_size, numbers=drawn[part], seed=seed, key=key
        )
        images.append(pixels)
        labels.append(require_labels(classes, key=key))
    known, judged, _ = compact(*labels, keys=(f"{prefix}train_images", f"{prefix}heldout_images"))
    return (images[0], known), (images[1], judged)
