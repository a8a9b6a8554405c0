"""The null teacher: features out of a table, no network. For tests and for finding bottlenecks.

Everything it gives is a function of `(seed, index, level)` and, when encoding, of the image's
bytes; `settings.delay_s` makes a micro-batch take as long as a real network would.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from typing import cast

import numpy as np

from dreamshard.errors import Problem
from dreamshard.rng import generator
from pipeline.teachers.base import Mode, Scalar, TeacherConfig, TeacherSpec
from pipeline.teachers.request import check_settings, expand_levels
from storage.schema import FeatureBatch, Level, Pins

NUM_TIMESTEPS = 1000
TABLE_SIZE = 1 << 20
"""Values in the table that rows are cut from: 2 MB of float16, small enough to stay in cache."""
DEFAULTS: dict[str, Scalar] = {"channels": 32, "image_size": 32, "delay_s": 0.0}


class NoiseTeacher:
    """Cut rows from a fixed table of normal noise at hashed offsets.

    Levels: `b<size>` maps of size x size cells for every power of two up to the image (aliases
    `s<stride>`), and the embedding `w`. Settings: channels per map (count), image_size when
    synthesizing (pixels), delay_s, the least time per micro-batch (seconds).
    """

    modes: tuple[Mode, ...] = ("encode", "synthesize")

    def __init__(
        self,
        config: TeacherConfig,
        *,
        mode: Mode,
        image_size: tuple[int, int] | None,
        seed: int,
        pins: Pins,
    ) -> None:
        spec = self.describe(config, mode=mode, image_size=image_size)
        self.levels, self.image_size, self.fingerprint = (
            spec.levels,
            spec.image_size,
            spec.fingerprint,
        )
        self._seed = seed
        self._micro_batch = pins.micro_batch
        self._delay_s = float(cast(float, config.settings.get("delay_s", DEFAULTS["delay_s"])))
        table = generator(seed, 0, 0, "noise-teacher").standard_normal(TABLE_SIZE, dtype=np.float32)
        self._table = table.astype(np.float16)

    @classmethod
    def describe(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> TeacherSpec:
        """Resolve a request; see `pipeline.teachers.base.TeacherClass.describe`."""
        settings, problems = check_settings(config, DEFAULTS)
        for name, least in (("channels", 1), ("image_size", 4), ("delay_s", 0)):
            value = settings[name]
            if isinstance(value, int | float) and value < least:
                problems.append(Problem(f"settings.{name}", str(value), f"at least {least}"))
        side = cast(int, settings["image_size"])
        height, width = image_size or (side, side)
        channels = cast(int, settings["channels"])
        taps: dict[str, tuple[tuple[int, ...], int]] = {}
        for power in range(6):
            stride = 2**power
            if height % stride == 0 and width % stride == 0:
                shape = (channels, height // stride, width // stride)
                taps[f"b{height // stride}"] = (shape, stride)
        aliases = {f"s{stride}": name for name, (_, stride) in taps.items()}
        taps["w"] = ((channels,), 0)
        levels = expand_levels(
            config, taps=taps, aliases=aliases, num_timesteps=NUM_TIMESTEPS, problems=problems
        )
        return TeacherSpec(
            levels=levels,
            image_size=(height, width),
            fingerprint={"kind": "noise", "channels": channels, "weights": "none"},
            mode_settings={},
            licence="none needed",
        )

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Give each image rows that depend on its index and its bytes."""
        started = time.perf_counter()
        salts = [zlib.crc32(image.tobytes()) for image in images]
        return self._finish(started, indices, salts, None)

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Give each index a noise image and rows."""
        started = time.perf_counter()
        size = (*self.image_size, 3)
        pixels = self._rows(indices, [0] * len(indices), "image", size)
        images = np.clip(pixels.astype(np.float32) * 64 + 128, 0, 255).astype(np.uint8)
        return self._finish(started, indices, [0] * len(indices), images)

    def _finish(
        self, started: float, indices: np.ndarray, salts: list[int], images: np.ndarray | None
    ) -> FeatureBatch:
        if len(indices) != self._micro_batch:
            raise ValueError(f"got {len(indices)} rows, micro_batch is {self._micro_batch}")
        levels = {level.name: self._level(level, indices, salts) for level in self.levels}
        left = self._delay_s - (time.perf_counter() - started)
        if left > 0:
            time.sleep(left)
        return FeatureBatch(
            index=np.asarray(indices, np.int64),
            key=[f"{index:08d}" for index in indices],
            valid=np.ones(len(indices), bool),
            image=images,
            levels=levels,
        )

    def _level(self, level: Level, indices: np.ndarray, salts: list[int]) -> np.ndarray:
        return self._rows(indices, salts, level.name, level.shape)

    def _rows(
        self, indices: np.ndarray, salts: list[int], purpose: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Copy one row per index out of the table, wrapping at its end."""
        out = np.empty((len(indices), *shape), np.float16)
        flat = out.reshape(len(indices), -1)
        for row, (index, salt) in enumerate(zip(indices, salts, strict=True)):
            text = f"{purpose}/{self._seed}/{int(index)}/{salt}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            start = int.from_bytes(digest, "little") % TABLE_SIZE
            filled = 0
            while filled < flat.shape[1]:
                piece = self._table[start : start + flat.shape[1] - filled]
                flat[row, filled : filled + len(piece)] = piece
                filled, start = filled + len(piece), 0
        return out
