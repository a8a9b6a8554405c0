"""Which arrays a dataset stores: images, labels, masks, and each level by its codec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.base import ArraySpec, Codec
from storage.codecs.table import ALLOWED, find_codec
from storage.schema import Level, Recipe

IMAGE, LABEL, MASK = "image", "label", "mask"


def codec_for(recipe: Recipe, level: Level) -> Codec:
    """Return the codec a recipe's layout gives a level; a learned one without its basis.

    Raises:
        DataError: if this version does not know it.
    """
    name = recipe.codec_of(level)
    codec = find_codec(name)
    if codec is None:
        raise DataError(f"layout.codecs.{level.name}: got {name!r:.40}, allowed {ALLOWED}.")
    return codec


def image_packing(recipe: Recipe) -> str:
    """Return how images are packed: `png` in format tar unless layout.images is `npy`, else "".

    Raises:
        DataError: if the layout says anything else.
    """
    if recipe.layout.get("format") != "tar":
        return ""
    images = recipe.layout.get("images", "png")
    if images not in ("png", "npy"):
        raise DataError(f"layout.images: got {images!r:.40}, allowed png, npy.")
    return "png" if images == "png" else ""


def array_specs(
    recipe: Recipe,
    levels: Sequence[Level],
    *,
    image_size: tuple[int, int],
    images: bool,
    labels: bool,
    masks: bool,
) -> tuple[ArraySpec, ...]:
    """List all arrays a dataset stores, in the order they are written."""
    specs: list[ArraySpec] = []
    if images:
        packing = image_packing(recipe)
        specs.append(ArraySpec(IMAGE, np.dtype(np.uint8), (*image_size, 3), 0, compression=packing))
    if labels:
        specs.append(ArraySpec(LABEL, np.dtype("<i8"), (), -1))
    if masks:
        specs.append(ArraySpec(MASK, np.dtype(np.uint8), image_size, 0))
    for level in levels:
        specs.extend(codec_for(recipe, level).arrays(level))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise DataError(f"levels: got {names}, allowed names that differ.")
    return tuple(specs)
