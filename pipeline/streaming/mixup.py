"""Mix the images of a micro-batch before a teacher sees them, so that it tells what the mixture is.

Teacher and student see the same mixtures. Like everything that is streamed they are a pure function
of the request: whoever answers it mixes alike.

Source: mixup, Zhang et al. 2018; before a teacher, Beyer et al. 2022 ("A good teacher is patient
and consistent"), as LightlyTrain distils.
"""

from __future__ import annotations

import numpy as np

from dreamshard.rng import generator

PURPOSE = "mixup"


def mix_images(
    images: np.ndarray, valid: np.ndarray, *, samples: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Mix every usable image with another one: share * image + (1 - share) * other.

    The share is uniform over 0..1, one for the micro-batch, and the others a random order of the
    usable images turned by one place, so that no image meets itself (unless it is alone).

    Args:
        images: uint8 (N, H, W, 3), of which the rows after the samples' are padding.
        valid: bool (n,), rows that can be used; the rest, and padding, stay as they are.
        samples: int64 (n,), their numbers; the first one decides share and order.
        seed: of the stream.
        epoch: pass over the source, so that each mixes otherwise.

    Returns:
        uint8 (N, H, W, 3), rounded.
    """
    rows = np.flatnonzero(valid)
    if len(rows) < 2:
        return images
    drawn = generator(seed, int(samples[0]), epoch, PURPOSE)
    share = np.float32(drawn.random())
    order = rows[drawn.permutation(len(rows))]
    mixed = images.copy()
    ones, others = images[order].astype(np.float32), images[np.roll(order, 1)].astype(np.float32)
    mixed[order] = np.rint(share * ones + (1 - share) * others).astype(np.uint8)
    return mixed
