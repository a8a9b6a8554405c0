"""Write BigBiGAN's networks as the loaders read them.

`BigBiGAN.pth`: G in BigGAN-PyTorch's layout, norms divided out of the weights.
`encoder.safetensors`: E as `pipeline/teachers/gan/bigbigan/layout.py` has it. `D.pth`: F and its
score of images, a BigGAN discriminator. `scores.safetensors`: H (`latents.B.fc1|fc2|shortcut`), J
(`pairs.B. ...`), and the layers `score_z` and `score_xz`, norms divided out; no loader reads it.

A deterministic encoder's standard deviations are written as about 1e-13 (softplus of -30). What a
uniform one and its generator are told is not z as the loaders draw it: theirs are called
`uniform-generator.pth` and `uniform-encoder.pth`, which the loaders do not find by folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from pipeline.learning.checkpoint import flush
from pipeline.learning.pretraining.adversarial.ssgan.export import plain_tensors, save_pth
from pipeline.teachers.gan.bigbigan.layout import RESNET, REVNET, EncoderLayout

NO_SPREAD = -30.0
"""Softplus of it is a standard deviation of nothing."""


def write(
    whole: Mapping[str, nn.Module], folder: Path, dtype: torch.dtype, *, posterior: str
) -> tuple[Path, ...]:
    """Write all networks of a BigBiGAN; return the files.

    Args:
        whole: generator, discriminator (`Scores`) and, unless it is a GAN, encoder.
        folder: that they go to.
        dtype: of the stored weights.
        posterior: of `BigBiGANConfig`.
    """
    uniform = posterior == "uniform"
    name = "uniform-generator.pth" if uniform else "BigBiGAN.pth"
    files = [save_pth(plain_tensors(whole["generator"], dtype), folder / name)]
    scores = plain_tensors(whole["discriminator"], dtype)
    images = {key: value for key, value in scores.items() if key.startswith("images.")}
    named = {key.removeprefix("images."): value for key, value in images.items()}
    files.append(save_pth(named, folder / "D.pth"))
    if rest := {key: value for key, value in scores.items() if key not in images}:
        files.append(_save(rest, folder / "scores.safetensors", {"format": "pt"}))
    if (encoder := whole.get("encoder")) is not None:
        state = plain_tensors(encoder, dtype)
        if uniform:
            files.append(save_pth(state, folder / "uniform-encoder.pth"))
            return tuple(files)
        layout = encoder.layout
        assert isinstance(layout, EncoderLayout)
        if posterior == "deterministic":
            state["out.weight"][layout.latent :] = 0
            state["out.bias"][layout.latent :] = NO_SPREAD
        told = {
            "architecture": REVNET if layout.reversible else RESNET,
            "bn_eps": repr(layout.eps),
            "image_size": str(layout.image_size),
            "last_relu": str(layout.last_relu).lower(),
        }
        files.append(_save(state, folder / "encoder.safetensors", told))
    return tuple(files)


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    part = part_of(file)
    save_file(tensors, part, metadata=metadata)
    apply_umask(part)
    flush(part)
    part.replace(file)
    return file
