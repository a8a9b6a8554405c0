"""The null teacher: features out of a table, no network. For tests and for finding bottlenecks.

Everything it gives is a function of `(seed, index, level)` and, when encoding, of the image's
bytes; `settings.delay_s` makes a micro-batch take as long as a real network would.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError
from dreamshard.rng import generator
from pipeline.teachers.base import Mode, Scalar, TeacherConfig, TeacherSpec
from pipeline.teachers.recording.teacher import BaseTeacher
from pipeline.teachers.request import Recordable, check_settings, expand_levels
from storage.schema import FeatureBatch, Pins

NUM_TIMESTEPS = 1000
TABLE_SIZE = 1 << 20
"""Values in the table that rows are cut from: 2 MB of float16, small enough to stay in cache."""
DEFAULTS: dict[str, Scalar] = {"channels": 32, "image_size": 32, "delay_s": 0.0}
LOWEST = {"channels": 1, "image_size": 4, "delay_s": 0}


@dataclass(frozen=True)
class NoiseRequest:
    """A checked request: what to record, and the least time per micro-batch (seconds)."""

    spec: TeacherSpec
    delay_s: float


class NoiseTeacher(BaseTeacher):
    """Cut rows from a fixed table of normal noise at hashed offsets.

    Levels: `b<size>` maps of size x size cells for every power of two up to the image (aliases
    `s<stride>`), and the embedding `w`. Settings: channels per map (count), image_size when
    synthesizing (pixels), delay_s, the least time per micro-batch (seconds).
    """

    @classmethod
    def resolve(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> NoiseRequest:
        """Check a request; see `pipeline.teachers.base.TeacherClass.describe`."""
        settings, problems = check_settings(config, DEFAULTS, lowest=LOWEST)
        side, channels = cast(int, settings["image_size"]), cast(int, settings["channels"])
        height, width = image_size or (side, side)
        taps: dict[str, Recordable] = {}
        for power in range(6):
            stride = 2**power
            if height % stride == 0 and width % stride == 0:
                shape = (channels, height // stride, width // stride)
                taps[f"b{height // stride}"] = Recordable(shape, stride)
        aliases = {f"s{tap.stride}": name for name, tap in taps.items()}
        taps["w"] = Recordable((channels,), 0)
        levels, unknown = expand_levels(
            config, taps=taps, aliases=aliases, num_timesteps=NUM_TIMESTEPS
        )
        if problems or unknown:
            raise ConfigError([*problems, *unknown])
        spec = TeacherSpec(
            levels=levels,
            image_size=(height, width),
            fingerprint={"kind": "noise", "channels": channels, "weights": "none"},
            mode_settings={},
            licence="none needed",
        )
        return NoiseRequest(spec, float(cast(float, settings["delay_s"])))

    def load(self, pins: Pins) -> None:
        """Draw the table."""
        self._micro_batch = pins.micro_batch
        noise = generator(self.seed, 0, 0, "noise-teacher")
        self._table = noise.standard_normal(TABLE_SIZE, dtype=np.float32).astype(np.float16)

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Give each image rows that depend on its index and its bytes."""
        return self._finish(indices, [zlib.crc32(image.tobytes()) for image in images], False)

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Give each index a noise image and rows."""
        return self._finish(indices, [0] * len(indices), True)

    def _finish(self, indices: np.ndarray, salts: Sequence[int], images: bool) -> FeatureBatch:
        started = time.perf_counter()
        if len(indices) != self._micro_batch:
            raise ValueError(f"got {len(indices)} rows, micro_batch is {self._micro_batch}")
        pixels = None
        if images:
            drawn = self._rows(indices, salts, "image", (*self.image_size, 3)).astype(np.float32)
            pixels = np.clip(drawn * 64 + 128, 0, 255).astype(np.uint8)
        levels = {
            level.name: self._rows(indices, salts, level.name, level.shape) for level in self.levels
        }
        left = self.request.delay_s - (time.perf_counter() - started)
        if left > 0:
            time.sleep(left)
        return self.batch(indices, levels, image=pixels)

    def _rows(
        self, indices: np.ndarray, salts: Sequence[int], purpose: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Copy one row per index out of the table, wrapping at its end."""
        out = np.empty((len(indices), *shape), np.float16)
        flat = out.reshape(len(indices), -1)
        for row, (index, salt) in enumerate(zip(indices, salts, strict=True)):
            text = f"{purpose}/{self.seed}/{int(index)}/{salt}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            start = int.from_bytes(digest, "little") % TABLE_SIZE
            filled = 0
            while filled < flat.shape[1]:
                piece = self._table[start : start + flat.shape[1] - filled]
                flat[row, filled : filled + len(piece)] = piece
                filled, start = filled + len(piece), 0
        return out
