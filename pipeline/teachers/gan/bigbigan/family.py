"""BigBiGAN's generator: the published PyTorch checkpoint, `BigBiGAN_x1.pth`, or a folder of it.

    teacher:
      kind: bigbigan
      path: checkpoints/bigbigan/BigBiGAN_x1.pth
      levels: [s16, s8, s4]

It is a BigGAN of 128 pixels in BigGAN-PyTorch's layout (`gan/biggan/`), with the same taps, told
class 0 at all times, whose epsilons are 1e-4. See `encoder.py` for `part: encoder`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.gan.biggan import family as biggan
from pipeline.teachers.gan.biggan import flags as biggan_flags
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher

NAME = "BigBiGAN"
"""Beginning of the published checkpoint's name."""
TOLD: dict[str, Scalar] = {
    **biggan_flags.SETTINGS,
    "BN_eps": biggan_flags.TENSORFLOW_EPS,
    "SN_eps": biggan_flags.TENSORFLOW_EPS,
    "class_cond": False,
    "z_var": 1.0,
}
"""Official flags that a BigBiGAN always has."""


class BigBiGANTeacher(GeneratorTeacher):
    """Run BigBiGAN's generator; see the module's text."""

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return no settings of its own, and what describes it; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe, path)


def describe(
    path: Path, settings: Mapping[str, Scalar], _image_size: tuple[int, int] | None = None
) -> GeneratorDescription:
    """Describe the generator in a checkpoint; raises as `biggan.family.describe`."""
    known = biggan.describe(find_file(path), {**settings, **TOLD})
    flags = (
        Flag(name=flag.name, value=flag.value, source="file", whose="BigBiGAN's")
        for flag in known.flags
    )
    return dataclasses.replace(known, family="bigbigan", flags=tuple(flags))


def find_file(path: Path) -> Path:
    """Return the checkpoint of a path; a folder holds one `BigBiGAN*` or one `G_ema*`.

    Raises: ConfigError if there is none, or more than one.
    """
    if not path.is_dir():
        return biggan.find_file(path)
    suffixes = (*weights.SAFE, *weights.PICKLED)
    files = [
        file
        for file in sorted(path.glob(f"{NAME}*"))
        if file.suffix in suffixes and "encoder" not in file.name.lower()
    ]
    if len(files) > 1:
        got = ", ".join(file.name for file in files)
        raise ConfigError(Problem("path", got, f"one {NAME}*.pth", "Name the file."))
    return files[0] if files else biggan.find_file(path)
