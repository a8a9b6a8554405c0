"""BigGAN, BigGAN-deep, BigBiGAN's generator and IC-GAN: `G_ema*.pth` of the official codes.

    teacher:
      kind: biggan
      path: checkpoints/biggan-256/G_ema.pth   # or the folder
      levels: [s32, s16, s8, s4]

Taps are the outputs of the blocks by their official numbers, after attention where there is one
(`blocks.2`; before it, `blocks.2.0`), and the first map, `linear`. BigBiGAN was trained without
classes: give `settings.class_label: 0`. Flags that the weights do not tell: `biggan_flags.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.gan.biggan import flags as biggan_flags
from pipeline.teachers.gan.biggan.layout import BigGANLayout, read_layout
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS = "G_ema"


class BigGANTeacher(GeneratorTeacher):
    """Run a BigGAN generator; see the module's text."""

    SETTINGS: Mapping[str, Scalar] = biggan_flags.SETTINGS

    @classmethod
    def describe_network(cls, path: Path, settings: Mapping[str, Scalar]) -> GeneratorDescription:
        """Describe the generator in a checkpoint; see `GeneratorTeacher.describe_network`."""
        file = find_file(path)
        shapes = weights.shapes(file)
        flags, notes = biggan_flags.find_flags(file, shapes, settings)
        layout = read_layout(shapes, flags, where=str(file))
        if flags.get("cross_replica") is False:
            layout = dataclasses.replace(layout, additive=False)
        found = tuple(block_taps(layout))
        eps = {name: flags[name] for name in biggan_flags.EPS}
        return GeneratorDescription(
            family="biggan",
            image_size=(layout.image_size, layout.image_size),
            taps=found,
            aliases=taps.stride_aliases(found),
            weights=(file,),
            architecture={**dataclasses.asdict(layout), **eps, "z_var": flags["z_var"]},
            latent=layout.latent,
            latent_std=flags["z_var"],
            load=lambda dtype: _Loaded(file, layout, eps, dtype),
            classes=layout.classes,
            # ic_gan's unconditional BigGANs are told class 0 at all times.
            usual_class=0 if flags.get("constant_conditioning") else None,
            features=layout.features,
            licence=weights.licence(file.parent),
            notes=notes,
        )


class _Loaded:
    """The network, read and ready."""

    def __init__(
        self, file: Path, layout: BigGANLayout, eps: Mapping[str, float], dtype: torch.dtype
    ) -> None:
        import torch
        from accelerate import init_empty_weights

        from pipeline.teachers.gan.biggan.network import Attention, BigGANGenerator, plain_weights

        with init_empty_weights():
            module = BigGANGenerator(layout, eps=eps["BN_eps"])
        state: Any = weights.read((file,))
        state = plain_weights(state, layout, eps=eps["SN_eps"], where=str(file))
        weights.load_into(module, state, where=str(file))
        for part in module.modules():  # conditions are told in float32: they are cheap and add up
            if isinstance(part, torch.nn.Conv2d | Attention):
                part.to(dtype)
        self.module: nn.Module = module.eval().requires_grad_(False)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, z: Tensor, labels: Tensor | None, features: Tensor | None) -> Tensor:
        return self.module(z, labels, features)


def find_file(path: Path) -> Path:
    """Return the checkpoint file of a path; a folder holds one `G_ema*.pth`.

    Raises: ConfigError if there is none, or more than one.
    """
    suffixes = (*weights.SAFE, *weights.PICKLED)
    if path.is_file():
        if path.suffix not in suffixes:
            raise ConfigError(Problem("path", str(path), f"a file of {', '.join(suffixes)}"))
        return path
    if not path.is_dir():
        hint = f"Give {WEIGHTS}.pth of BigGAN-PyTorch, or its folder."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    found = sorted(p for p in path.glob(f"{WEIGHTS}*") if p.suffix in suffixes)
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or f"no {WEIGHTS}*.pth in {path}"
        raise ConfigError(Problem("path", got, f"one {WEIGHTS}*.pth", "Name the file."))
    return found[0]


def block_taps(layout: BigGANLayout) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    stride = layout.image_size // layout.bottom
    found = [Tap("linear", "first", layout.blocks[0].inputs, stride)]
    for number, block in enumerate(layout.blocks):
        stride //= 2 if block.upsample else 1
        name = f"blocks.{number}"
        if block.attention:
            found.append(Tap(f"{name}.0", f"{name}.0", block.outputs, stride))
        found.append(Tap(name, f"{name}.{int(block.attention)}", block.outputs, stride))
    return found
