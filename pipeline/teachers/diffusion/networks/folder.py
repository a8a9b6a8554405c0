"""A latent network's folder in a pipeline, read together with all that lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError
from pipeline.teachers import weights
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.networks.accepted import check_network
from pipeline.teachers.diffusion.networks.description import (
    Description,
    Network,
    build,
    fit_image_size,
    plain_config,
)
from pipeline.teachers.diffusion.networks.process import Process, find_process
from pipeline.teachers.diffusion.networks.prompts import SETTING, Prompt, find_prompt
from pipeline.teachers.diffusion.networks.vae import LatentSpace, describe_vae
from pipeline.teachers.recording.taps import Tap

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LatentFolder:
    """What a latent network's folder holds.

    Args:
        path: the `unet` or `transformer` folder.
        config, files: of the network.
        process: the noise it was trained on.
        space: of the autoencoder.
        image_size: (height, width) in pixels.
        prompt: file of the empty prompt, None for networks without text.
    """

    path: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    process: Process
    space: LatentSpace
    image_size: tuple[int, int]
    prompt: Path | None

    def describe(
        self,
        family: str,
        network: Callable[..., Network],
        *,
        taps: Sequence[Tap],
        aliases: Mapping[str, str],
        classes: int = 0,
        null_class: int | None = None,
        facts: Mapping[str, object] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Description:
        """Describe the network.

        Args:
            network: makes it of the module, the autoencoder and, where there is text, the prompt.
            facts: what else decides the computation.
            notes: why aliases stand for what they do.
        """

        def load(dtype: torch.dtype) -> Network:
            module = build(self.config["_class_name"], self.config, self.files, dtype)
            text = [Prompt(self.prompt)] if self.prompt else []
            return network(module, self.space.load(dtype), *text)

        height, width = (side // self.space.stride for side in self.image_size)
        return Description(
            family=family,
            image_size=self.image_size,
            taps=(*taps, self.space.tap(self.image_size)),
            aliases=aliases,
            schedule=self.process.schedule,
            weights=(*self.files, *self.space.files, *([self.prompt] if self.prompt else [])),
            architecture={
                "config": plain_config(self.config),
                "scheduler": plain_config(self.process.config),
                "vae": plain_config(self.space.config),
                **(facts or {}),
            },
            space=(self.space.channels, height, width),
            load=load,
            classes=classes,
            null_class=null_class,
            latent=True,
            vae=self.space.identity,
            flags=self.process.flags,
            notes=notes,
        )


def read_network(path: Path, kind: str) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Read a network's config, checked key by key, and find its weights.

    Raises: TeacherError for a config that nothing here computes, or weights that are not there.
    """
    config, files = weights.read_json(path / "config.json"), weights.find_weights(path)
    check_network(config, kind, where=str(path / "config.json"))
    return config, files


def read_folder(
    path: Path,
    settings: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    *,
    config: Mapping[str, Any],
    files: tuple[Path, ...],
    channels: int,
    multiple: int,
    prompt: tuple[int, int | None] | None = None,
    allowed: tuple[str, ...] = tuple(schedulers.VARIANCE_PRESERVING),
    time_scale: float = 1000.0,
) -> LatentFolder:
    """Read what lies in and beside a latent network's folder.

    Args:
        path: the folder.
        settings: checked by name already.
        image_size: (height, width) in pixels asked for, None for the network's own.
        config, files: the network's, checked.
        channels: latent channels that the network takes.
        multiple: latent cells that its sides must be multiples of.
        prompt: widths of the empty prompt and of its pooled form (None if it takes none); None for
            networks without text.
        allowed: classes of schedulers that fit the network.
        time_scale: what a network of a flow is told of pure noise.

    Raises:
        ConfigError: an image size that does not fit; no scheduler, and no settings in its place.
        TeacherError: missing or unusable parts.
    """
    space, own = describe_vae(path.parent, channels), config.get("sample_size")
    own = own * space.stride if isinstance(own, int) else own
    size, problems = fit_image_size(image_size, own, space.stride * multiple)
    if problems:
        raise ConfigError(problems)
    noise = find_process(path, settings, allowed=allowed, time_scale=time_scale)
    text = None
    if prompt is not None:
        text = find_prompt(path.parent, settings[SETTING], width=prompt[0], pooled=prompt[1])
    return LatentFolder(
        path=path,
        config=config,
        files=files,
        process=noise,
        space=space,
        image_size=size,
        prompt=text,
    )
