"""Which images a convolutional network may look at, other than those it was trained on."""

from __future__ import annotations

from dreamshard.errors import ConfigError, Problem


def settle_size(asked: tuple[int, int] | None, *, own: int, reduction: int) -> tuple[int, int]:
    """Return the height and width of the images that a network is given (pixels).

    Args:
        asked: height and width of the request, None for the network's own.
        own: height and width that the network was trained on.
        reduction: image pixels per cell of its last map.

    Raises: ConfigError for sizes that leave a part of a cell.
    """
    size = asked or (own, own)
    if any(side % reduction or not side for side in size):
        allowed = f"multiples of {reduction}; it was trained on {own}x{own}"
        raise ConfigError(Problem("image_size", f"{size[0]}x{size[1]}", allowed))
    return size
