"""What a sample's tensors are: maps, tokens that become maps, vectors; and the levels they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import DataError
from dreamshard.foreign.arrays import unpack_npy, unpack_safetensors
from pipeline.images.prepare import InvalidImageError, decode
from storage.schema import Level

NO_TIMESTEP = -1
CLASS, REGISTER = "cls", "register"
CODECS = {"float16": "float16", "float32": "float32", "bfloat16": "bfloat16"}
"""Number formats that features may have -> the codec that keeps every bit of them."""
NPY_MAGIC = b"\x93NUMPY"
Tensors = dict[str, tuple[str, np.ndarray]]
"""Name -> (number format, values of one sample)."""


@dataclass(frozen=True)
class Tokens:
    """Say how tensors of tokens (T, C) become maps.

    Args:
        prefix: tokens before those of the image (count): the class token, then registers.
        grid: (rows, columns) of the image's; None for a square.
    """

    prefix: int = 0
    grid: tuple[int, int] | None = None

    def split(self, name: str, values: np.ndarray, *, where: str) -> dict[str, np.ndarray]:
        """Turn tokens (T, C), row by row, into a map (C, rows, columns) and vectors by name.

        Raises:
            DataError: as many tokens as make no such map.
        """
        count = len(values) - self.prefix
        side = math.isqrt(max(count, 0))
        rows, columns = self.grid or (side, side)
        if count < 1 or rows * columns != count:
            shown = f"{rows}x{columns}" if self.grid else "a square"
            raise DataError(
                f"{where}: {name}: got {len(values)} tokens, allowed {self.prefix} before {shown} "
                "of cells. Say --prefix_tokens 1 where the first is a class token, or --grid RxC."
            )
        parts = {name: values[self.prefix :].T.reshape(-1, rows, columns)}
        for number, token in enumerate(values[: self.prefix]):
            parts[f"{name}.{f'{REGISTER}{number}' if number else CLASS}"] = token
        return parts


def sample_values(data: bytes, *, teacher: str, tokens: Tokens, where: str) -> Tensors:
    """Read what a teacher says of one sample, by level name.

    Raises:
        DataError: damaged bytes, nothing in them, or tensors that are no maps, tokens or vectors.
    """
    tensors: Tensors = {}
    for name, (kind, values) in sorted(unpack_safetensors(data, where=where).items()):
        if kind not in CODECS or not 1 <= values.ndim <= 3 or not values.size:
            raise DataError(
                f"{where}: {name}: got {kind}, shape {list(values.shape)}, allowed maps (C, H, W), "
                f"tokens (T, C) and vectors (C,) of {', '.join(CODECS)}."
            )
        level = f"{teacher}.{name}"
        parts = tokens.split(level, values, where=where) if values.ndim == 2 else {level: values}
        if twice := parts.keys() & tensors.keys():
            raise DataError(f"{where}: got the level {min(twice)!r} twice, allowed once.")
        tensors |= {part: (kind, one) for part, one in parts.items()}
    if not tensors:
        raise DataError(f"{where}: got no tensor, allowed one or more.")
    return tensors


def levels_of(tensors: Tensors, *, image_size: tuple[int, int], where: str) -> list[Level]:
    """Describe what a first sample holds.

    Args:
        image_size: (height, width) that the teacher saw, in pixels.

    Raises:
        DataError: cells that are not about as wide as high, or a name that is none of ours.
    """
    levels = []
    for name, (kind, values) in tensors.items():
        stride = 0
        if values.ndim == 3:
            sides = zip(image_size, values.shape[1:], strict=True)
            strides = {max(1, round(pixels / cells)) for pixels, cells in sides}
            if len(strides) > 1:
                raise DataError(
                    f"{where}: {name}: got cells of {sorted(strides)} pixels a side for images of "
                    f"{image_size}, allowed square ones. Check --image_size and --grid."
                )
            stride = strides.pop()
        what = "feature" if stride else "embedding"
        shape = tuple(values.shape)
        # A tap of its own: heads are shared by levels of one tap.
        levels.append(Level(name, what, name, NO_TIMESTEP, 0, "", stride, shape, kind))
    return levels


def stacked(
    samples: Sequence[Tensors], levels: Mapping[str, Level], *, wheres: Sequence[str]
) -> dict[str, np.ndarray]:
    """Put samples side by side, by level.

    Raises:
        DataError: one that is not like the first.
    """
    for tensors, where in zip(samples, wheres, strict=True):
        shown = {name: (kind, values.shape) for name, (kind, values) in tensors.items()}
        wanted = {name: (level.dtype, level.shape) for name, level in levels.items()}
        if shown != wanted:
            odd = sorted(n for n in {*shown, *wanted} if shown.get(n) != wanted.get(n))[0]
            raise DataError(
                f"{where}: {odd}: got {_told(shown.get(odd))}, allowed {_told(wanted.get(odd))} "
                "as in the first sample."
            )
    return {name: np.stack([tensors[name][1] for tensors in samples]) for name in levels}


def image_of(data: bytes, *, where: str) -> np.ndarray:
    """Read an image, encoded or as npy, uint8 (H, W, 3): grey is repeated, alpha left out.

    Raises:
        DataError: whatever is wrong with it.
    """
    given = unpack_npy(data, where=where) if data.startswith(NPY_MAGIC) else data
    try:
        if isinstance(given, np.ndarray) and given.ndim not in (2, 3):
            raise InvalidImageError(f"array of shape {list(given.shape)}, expected (H, W, 3)")
        return np.asarray(decode(given))
    except InvalidImageError as error:
        raise DataError(f"{where}: got an image that cannot be used ({error}).") from None


def _told(kind_and_shape: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if kind_and_shape is None else f"{kind_and_shape[0]} {list(kind_and_shape[1])}"
