"""BigGAN, BigGAN-deep, BigBiGAN's generator and IC-GAN: `G_ema*.pth` of the official codes.

BigGAN-deep is also read in Hugging Face's layout (`pytorch_model.bin`, `huggingface.py`).

    teacher:
      kind: biggan
      path: checkpoints/biggan-256/G_ema.pth   # or the folder
      levels: [s32, s16, s8, s4]

Taps are the outputs of the blocks by their official numbers, after attention where there is one
(`blocks.2`; before it, `blocks.2.0`), and the first map, `linear`. BigBiGAN was trained without
classes: no labels are drawn or kept. Flags that the weights do not tell: `flags.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.gan.biggan import flags as biggan_flags
from pipeline.teachers.gan.biggan import huggingface
from pipeline.teachers.gan.biggan.layout import BigGANLayout, read_layout
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import PlainNetwork

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS = "G_ema"
HUGGINGFACE = ("pytorch_model.bin", "biggan*pytorch_model.bin")


class BigGANTeacher(GeneratorTeacher):
    """Run a BigGAN generator; see the module's text."""

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return the official flags and what describes a checkpoint; see `NetworkTeacher.find`."""
        return biggan_flags.SETTINGS, functools.partial(describe, path)


def describe(
    path: Path, settings: Mapping[str, Scalar], _image_size: tuple[int, int] | None = None
) -> GeneratorDescription:
    """Describe the generator in a checkpoint from small files and shapes.

    Raises:
        ConfigError: settings that contradict it or are missing.
        TeacherError: unusable files.
    """
    file = find_file(path)
    shapes = weights.shapes(file)
    if huggingface.MARK in shapes:
        return _describe_huggingface(file, shapes, settings)
    flags, sources = biggan_flags.find_flags(file, shapes, settings)
    layout = read_layout(shapes, flags, where=str(file))
    if flags.get("cross_replica") is False:
        layout = dataclasses.replace(layout, additive=False)
    listed = tuple(block_taps(layout))
    unconditional = bool(flags.get("constant_conditioning")) or (
        flags.get("class_cond") is False and layout.classes > 0 and not layout.features
    )
    eps = {name: flags[name] for name in biggan_flags.EPS}
    return GeneratorDescription(
        family="biggan",
        image_size=(layout.image_size, layout.image_size),
        taps=listed,
        aliases=taps.stride_aliases(listed),
        weights=(file,),
        architecture={**dataclasses.asdict(layout), **eps, "z_var": flags["z_var"]},
        latent=layout.latent,
        latent_std=flags["z_var"],
        load=lambda dtype: PlainNetwork(load(file, layout, eps, dtype)),
        classes=layout.classes,
        # Unconditional networks of this layout are told class 0 at all times.
        usual_class=0 if unconditional else None,
        unconditional=unconditional,
        features=layout.features,
        flags=_decisive(sources, layout, unconditional=unconditional),
    )


def _describe_huggingface(
    file: Path, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Scalar]
) -> GeneratorDescription:
    config, name = huggingface.read_config(file)
    eps, flag = huggingface.find_eps(config, name, settings, where=str(file))
    layout = huggingface.read_layout(shapes, config, where=str(file))
    listed = tuple(huggingface.block_taps(layout, shapes))
    truncation = float(settings.get("truncation") or 1.0)  # pyright: ignore[reportArgumentType]
    told = {"layout": "huggingface", "eps": eps}

    def load_network(dtype: torch.dtype) -> PlainNetwork:
        state = weights.read((file,))
        state = huggingface.rename(state, layout, truncation=truncation, where=str(file))
        return PlainNetwork(build(state, layout, eps=eps, output_eps=eps, where=file, dtype=dtype))

    return GeneratorDescription(
        family="biggan",
        image_size=(layout.image_size, layout.image_size),
        taps=listed,
        aliases=taps.stride_aliases(listed),
        weights=(file,),
        architecture={**dataclasses.asdict(layout), **told},
        latent=layout.latent,
        load=load_network,
        classes=layout.classes,
        flags=(flag,),
    )


def _decisive(
    sources: Sequence[Flag], layout: BigGANLayout, *, unconditional: bool
) -> tuple[Flag, ...]:
    """Keep the flags that decide features, and add what the layout leaves to a default."""
    if not layout.classes:
        sources = [flag for flag in sources if flag.name != "class_cond"]
    names = {flag.name for flag in sources}
    added = {}
    if layout.classes and not names & {"class_cond", "constant_conditioning"}:
        added["class_cond"] = not unconditional
    if layout.additive and "cross_replica" not in names:
        added["cross_replica"] = True
    record = next((flag.whose for flag in sources if flag.whose.endswith(".pth")), "")
    return (*sources, *(biggan_flags.official(n, v, record=record) for n, v in added.items()))


def load(
    file: Path, layout: BigGANLayout, eps: Mapping[str, float], dtype: torch.dtype
) -> nn.Module:
    """Read the network and make it ready.

    Raises: TeacherError for weights that are damaged or of another shape.
    """
    from pipeline.teachers.gan.biggan.network import OUTPUT_EPS, plain_weights

    state = plain_weights(weights.read((file,)), layout, eps=eps["SN_eps"], where=str(file))
    return build(state, layout, eps=eps["BN_eps"], output_eps=OUTPUT_EPS, where=file, dtype=dtype)


def build(
    state: Mapping[str, Tensor],
    layout: BigGANLayout,
    *,
    eps: float,
    output_eps: float,
    where: Path,
    dtype: torch.dtype,
) -> nn.Module:
    """Put weights, named as our modules are, into a generator; errors as `weights.load_into`."""
    import torch

    from pipeline.teachers.gan.biggan.network import Attention, BigGANGenerator

    module = weights.unbuilt(
        lambda: BigGANGenerator(layout, eps=eps, output_eps=output_eps), where=str(where)
    )
    weights.load_into(module, state, where=str(where))
    for part in module.modules():  # conditions are told in float32: they are cheap and add up
        if isinstance(part, torch.nn.Conv2d | Attention):
            part.to(dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def find_file(path: Path) -> Path:
    """Return the checkpoint file of a path; a folder holds one `G_ema*.pth` or Hugging Face's.

    Raises: ConfigError if there is none, or more than one.
    """
    of = f"{WEIGHTS}.pth of BigGAN-PyTorch"
    return weights.one_file(path, named=f"{WEIGHTS}*.pth", of=of, look=_files_in)


def _files_in(folder: Path) -> list[Path]:
    suffixes = (*weights.SAFE, *weights.PICKLED)
    files = sorted(p for p in folder.glob(f"{WEIGHTS}*") if p.suffix in suffixes)
    return files or sorted(file for name in HUGGINGFACE for file in folder.glob(name))


def block_taps(layout: BigGANLayout) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    stride = layout.image_size // layout.bottom
    listed = [Tap("linear", "first", layout.blocks[0].inputs, stride)]
    for number, block in enumerate(layout.blocks):
        stride //= 2 if block.upsample else 1
        name = f"blocks.{number}"
        if block.attention:
            listed.append(Tap(f"{name}.0", f"{name}.0", block.outputs, stride))
        listed.append(Tap(name, f"{name}.{int(block.attention)}", block.outputs, stride))
    return listed
