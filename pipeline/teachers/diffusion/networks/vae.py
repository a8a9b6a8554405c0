"""The latent space of a latent diffusion teacher: an AutoencoderKL used deterministically.

Latents can be recorded (the level `latent`, once per image) and given back in place of images. The
autoencoder is read when it is first needed, so not at all for a teacher that works from latents.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.diffusion.networks.accepted import check_network
from pipeline.teachers.diffusion.networks.description import build, plain_config
from pipeline.teachers.recording.taps import Tap
from storage.schema import digest_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


KIND, LATENT = "AutoencoderKL", "latent"


@dataclass(frozen=True)
class LatentSpace:
    """What a VAE's config tells.

    Args:
        config: its config.json.
        files: its weights.
        stride: image pixels per latent cell.
        channels: of a latent.
        scale, shift: latents are `(z - shift) * scale`.
    """

    config: Mapping[str, Any]
    files: tuple[Path, ...]
    stride: int
    channels: int
    scale: float
    shift: float

    @property
    def identity(self) -> str:
        """Return a digest of what decides an image's latent: weights, architecture, scale."""
        return digest_of(weights.identity(KIND, self.files, plain_config(self.config)))

    def tap(self, image_size: tuple[int, int]) -> Tap:
        """Return the tap of an image's latent, (C, h, w), the same at every timestep."""
        form = (self.channels, *(side // self.stride for side in image_size))
        return Tap(LATENT, "", self.channels, self.stride, form=form, kind="latent", once=True)

    def load(self, dtype: torch.dtype) -> Vae:
        """Return the VAE; float16 is replaced by float32, in which no published VAE overflows."""
        import torch

        return Vae(self, torch.float32 if dtype == torch.float16 else dtype)


class Vae:
    """Encode to the mode of the posterior (no randomness), decode back.

    Args:
        space: whose.
        dtype: of the computation.
    """

    def __init__(self, space: LatentSpace, dtype: torch.dtype) -> None:
        self._space, self._dtype = space, dtype

    @functools.cached_property
    def module(self) -> Any:
        """The network, read when first used."""
        return build(KIND, self._space.config, self._space.files, self._dtype)

    def to_space(self, pixels: Tensor) -> Tensor:
        """Turn pixels (N, 3, H, W) in [-1, 1] into float32 latents."""
        self.module.to(pixels.device)
        latents = self.module.encode(pixels.to(self.module.dtype)).latent_dist.mode()
        return (latents.float() - self._space.shift) * self._space.scale

    def to_pixels(self, x0: Tensor) -> Tensor:
        """Turn latents into pixels (N, 3, H, W)."""
        self.module.to(x0.device)
        latents = x0 / self._space.scale + self._space.shift
        return self.module.decode(latents.to(self.module.dtype), return_dict=False)[0].float()


def describe_vae(pipeline: Path, channels: int) -> LatentSpace:
    """Describe the VAE of a pipeline folder.

    Args:
        pipeline: folder with a `vae` subfolder.
        channels: latent channels the denoising network takes.

    Raises: TeacherError if there is none or it does not fit the network.
    """
    folder = pipeline / "vae"
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"{folder}: not found. A latent teacher needs its VAE: point teacher.path at the "
            "pipeline's folder, which holds the network and vae side by side."
        )
    return read_vae(folder, channels)


def read_vae(folder: Path, channels: int) -> LatentSpace:
    """Describe the AutoencoderKL in a folder; arguments and errors as `describe_vae`."""
    where = str(folder / "config.json")
    config, files = weights.read_json(folder / "config.json"), weights.find_weights(folder)
    if config.get("_class_name", KIND) != KIND:
        raise TeacherError(
            f"{where}: _class_name: got {config['_class_name']!r:.80}, allowed {KIND}. Take the "
            "autoencoder that the network was trained with."
        )
    check_network(config, KIND, where=where)
    own = int(config.get("latent_channels", 4))
    if own != channels:
        raise TeacherError(
            f"{folder}: latent_channels: got {own}, allowed {channels} (the network)"
        )
    return LatentSpace(
        config=config,
        files=files,
        stride=2 ** (len(config.get("block_out_channels", [64])) - 1),
        channels=own,
        scale=float(config.get("scaling_factor", 0.18215)),
        shift=float(config.get("shift_factor") or 0.0),
    )
