"""Write SS-GAN's networks as the codes do whose files `pipeline/teachers/gan/` reads.

torch-mimicry: `netG.pth` and `netD.pth`, a dict of `model_state_dict` with torch's own spectral
vectors. compare_gan: `ssgan.npz` with the variables of both, norms divided out of the kernels.
BigGAN-PyTorch (the conditional baseline): `G_ema.pth` and `D.pth`, norms divided out, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from pipeline.learning.checkpoint import flush
from pipeline.learning.pretraining.adversarial.norms import plain_state
from pipeline.teachers.gan.ssgan.compare_gan import CONVS, MOMENTS, NORMS
from pipeline.teachers.gan.ssgan.layout import GeneratorLayout
from pipeline.teachers.gan.ssgan.mimicry import AFFINE, LAYERS

SPELLING = {
    "parametrizations.weight.original": "weight_orig",
    "parametrizations.weight.0._u": "weight_u",
    "parametrizations.weight.0._v": "weight_v",
}
"""torch's names of a normalised weight -> those that torch-mimicry's files have."""


def write_mimicry(
    generator: nn.Module, discriminator: nn.Module, folder: Path, dtype: torch.dtype
) -> tuple[Path, ...]:
    """Write `netG.pth` and `netD.pth`; return them."""
    files = []
    for name, network in (("netG", generator), ("netD", discriminator)):
        numbers = [int(each.removeprefix("block")) for each in network.blocks]  # type: ignore[union-attr]
        state = {
            _mimicry_name(_respelled(key), last=max(numbers) + 1): stored(value, dtype)
            for key, value in network.state_dict().items()
        }
        files.append(save_pth({"model_state_dict": state}, folder / f"{name}.pth"))
    return tuple(files)


def write_compare_gan(
    generator: nn.Module, discriminator: nn.Module, folder: Path, dtype: torch.dtype
) -> tuple[Path, ...]:
    """Write `ssgan.npz`; return it."""
    variables: dict[str, np.ndarray] = {}
    for part, network in (("generator", generator), ("discriminator", discriminator)):
        mode = network.training
        state = plain_state(network.eval())
        network.train(mode)
        layout = network.layout
        halves = {block.name: block.resample for block in layout.blocks}  # type: ignore[union-attr]
        for name, value in state.items():
            if isinstance(layout, GeneratorLayout) and name.startswith("linear."):
                cells, channels = layout.bottom**2, layout.blocks[0].inputs
                value = value.reshape(channels, cells, -1).transpose(0, 1).reshape(value.shape)
            own = _compare_gan_name(name, part=part, resampled=halves)
            if name.endswith("weight"):
                value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
            variables[own] = stored(value, dtype).numpy()
    file = folder / "ssgan.npz"
    part_file = part_of(file)
    with part_file.open("wb") as opened:
        np.savez(opened, **variables)  # type: ignore[arg-type]
    return (_finish(part_file, file),)


def write_biggan(
    generator: nn.Module, discriminator: nn.Module, folder: Path, dtype: torch.dtype
) -> tuple[Path, ...]:
    """Write `G_ema.pth` and `D.pth`; return them."""
    return tuple(
        save_pth(plain_tensors(network, dtype), folder / f"{name}.pth")
        for name, network in (("G_ema", generator), ("D", discriminator))
    )


def plain_tensors(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a network's tensors as its loader names them, on the CPU, norms divided out."""
    mode = network.training
    state = plain_state(network.eval())
    network.train(mode)
    return {name: stored(value, dtype) for name, value in state.items()}


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as files have it."""
    kind = dtype if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", kind).contiguous()


def save_pth(content: Mapping[str, object], file: Path) -> Path:
    """Write a dict of tensors by torch.save, flushed and renamed; return the file."""
    part = part_of(file)
    torch.save(dict(content), part)
    return _finish(part, file)


def _finish(part: Path, file: Path) -> Path:
    apply_umask(part)
    flush(part)
    part.replace(file)
    return file


def _respelled(name: str) -> str:
    for own, theirs in SPELLING.items():
        if name.endswith(own):
            return name.removesuffix(own) + theirs
    return name


def _mimicry_name(name: str, *, last: int) -> str:
    """Spell our name of a tensor as torch-mimicry; `last` numbers the layers after the blocks."""
    layers = {own: theirs for theirs, own in LAYERS.items()}
    affine = {own: theirs for theirs, own in AFFINE.items()}
    layer, _, end = name.rpartition(".")
    if match := re.fullmatch(r"blocks\.(block\d+)\.(\w+)", layer):
        end = affine.get(end, end) if match[2].startswith("norm") else end
        return f"{match[1]}.{layers[match[2]]}.{end}"
    if layer == "norm":
        return f"b{last}.{affine.get(end, end)}"
    names = {"linear": "l1", "last": f"c{last}", "logit": f"l{last}", "rotation": "l_y"}
    return f"{names[layer]}.{end}"


def _compare_gan_name(name: str, *, part: str, resampled: Mapping[str, bool]) -> str:
    """Spell our name of a tensor as compare_gan does."""
    moments = {own: theirs for theirs, own in reversed(MOMENTS.items())}
    layer, _, end = name.rpartition(".")
    kind = {"weight": "kernel"}.get(end, end)
    if layer == "rotation":
        return f"discriminator_rotation/score_classify/{kind}"
    plain = {"linear": "fc_noise", "last": "final_conv", "logit": "disc_final_fc"}
    if layer in plain:
        return f"{part}/{plain[layer]}/{kind}"
    pieces = layer.split(".")
    at = "final_norm"
    if pieces[0] == "blocks":
        block, which = pieces[1:3]
        if which in CONVS.values():
            conv = next(theirs for theirs, own in CONVS.items() if own == which)
            return f"{part}/{block}/{_scale(part, which, resampled[block])}_{conv}/{kind}"
        at = f"{block}/{next(theirs for theirs, own in NORMS.items() if own == which)}"
        pieces = pieces[2:]
    within = "".join(f"sbn/{piece}/" for piece in pieces[1:])
    return f"{part}/{at}/{within}{moments.get(end, kind)}"


def _scale(part: str, conv: str, resampled: bool) -> str:
    """Say where a block of compare_gan changes the map: up before, down after its convolutions."""
    if not resampled:
        return "same"
    if part == "generator":
        return "same" if conv == "conv2" else "up"
    return "same" if conv == "conv1" else "down"
