"""How near reconstructions are to their images."""

from __future__ import annotations

from torch import Tensor


def relative_l1(images: Tensor, reconstructions: Tensor) -> float:
    """Return the L1 error over that of the next image's reconstruction, the last's being the first.

    About 1 for reconstructions that do not depend on their image, 0 for perfect ones. The order of
    the images matters: draw it once.

    Args:
        images, reconstructions: (N, 3, H, W), N at least 2.

    Source: Donahue and Simonyan 2019, section 3.3.
    """
    if len(images) < 2 or images.shape != reconstructions.shape:
        raise ValueError(f"{tuple(images.shape)} against {tuple(reconstructions.shape)}")
    own = (images - reconstructions).abs().double().sum()
    other = (images.roll(-1, 0) - reconstructions).abs().double().sum()
    return float(own / other)
