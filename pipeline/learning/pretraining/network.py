"""The network that is trained: built from settings, its first weights from the seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem
from pipeline.images.source import ImageSource
from pipeline.learning.pretraining.config import UNetConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from pipeline.learning.loop import Learner
    from pipeline.learning.schedule import WarmupCosine


def build_network(
    unet: UNetConfig, *, sample_size: int | tuple[int, int], classes: int, seed: int
) -> nn.Module:
    """Build the untrained network, its weights drawn from the seed alone.

    Args:
        unet: what it is like.
        sample_size: of its images in pixels: the side of square ones, or (H, W).
        classes: number of labels to condition on; 0 for none.
        seed: of the weights.

    Raises: ConfigError if a given config.json is not a UNet2DModel's.
    """
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    from pipeline.teachers import weights
    from pipeline.teachers.diffusion.networks import conditioned

    settings, own = _unet_settings(unet, sample_size, classes), unet.self_conditioning
    if unet.config:
        settings = weights.read_json(Path(unet.config))
        settings["num_class_embeds"] = classes or None
        own = settings.get("_class_name") == conditioned.CONDITIONED
    cls = conditioned.SelfConditionedUNet2DModel if own else UNet2DModel
    settings.pop("_class_name", None)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = cls.from_config(settings).train()  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem("unet", str(error), "a UNet2DModel")) from error
    if unet.weights:
        _begin_with(network, Path(unet.weights))
    return network


def _begin_with(network: nn.Module, folder: Path) -> None:
    """Load a teacher's weights into a network that may have further parts.

    Raises: ConfigError naming what does not fit.
    """
    from pipeline.teachers import weights

    state, ours = weights.read(weights.find_weights(folder)), network.state_dict()
    new = {name for name in ours if name.startswith("mid_condition.")}
    unlike = [name for name in state if name not in ours or state[name].shape != ours[name].shape]
    unlike += sorted(ours.keys() - state.keys() - new)
    if unlike:
        name = unlike[0]
        stored, here = (
            tuple(each[name].shape) if name in each else "none" for each in (state, ours)
        )
        got = f"{folder}, whose {name} is {stored}, here {here} ({len(unlike)} such)"
        hint = "Set unet.config to its config.json, or the same widths and layers."
        raise ConfigError(Problem("unet.weights", got, "a teacher of this architecture", hint))
    network.load_state_dict({k: v.to(ours[k].dtype) for k, v in state.items()}, strict=False)


def _unet_settings(
    unet: UNetConfig, sample_size: int | tuple[int, int], classes: int
) -> dict[str, Any]:
    count = len(unet.block_out_channels)
    attends = [level in unet.attention_levels for level in range(count)]
    plain = "DownBlock2D" if unet.resampling == "conv" else "ResnetDownsampleBlock2D"
    plain_up = "UpBlock2D" if unet.resampling == "conv" else "ResnetUpsampleBlock2D"
    return {
        "sample_size": sample_size,
        "block_out_channels": tuple(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if a else plain for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else plain_up for a in reversed(attends)),
        "downsample_type": unet.resampling,
        "upsample_type": unet.resampling,
        "attention_head_dim": unet.attention_head_dim,
        "norm_num_groups": unet.norm_num_groups,
        "attn_norm_num_groups": unet.norm_num_groups,
        "resnet_time_scale_shift": unet.time_scale_shift,
        "add_attention": bool(unet.attention_levels),
        "dropout": unet.dropout,
        "num_class_embeds": classes or None,
    }


def build_learner(
    module: nn.Module,
    network: nn.Module,
    schedule: WarmupCosine,
    *,
    decay: float,
    clip: float,
    ema: float,
) -> Learner:
    """Put AdamW, its learning rate and the average of the weights beside a network.

    Args:
        module: what is trained: the network, perhaps with what is dropped in the end.
        network: what is kept.
        schedule: of the learning rate.
        decay: of the weights.
        clip, ema: as the settings have them.
    """
    from torch.optim import AdamW

    from pipeline.learning.average import RatioEma
    from pipeline.learning.loop import Learner

    return Learner(
        module=module,
        network=network,
        optimizer=AdamW(module.parameters(), lr=schedule.peak, weight_decay=decay),
        schedule=schedule,
        clip=clip,
        average=RatioEma(network, decay=ema),
    )


def start_ranks(device: str, precision: str, threads: int, *, batch_size: int) -> Accelerator:
    """Join the other processes of a training, if there are any.

    Args:
        device, precision: as the settings have them.
        threads: of a CPU (count); 0 for torch's choice.
        batch_size: of all processes together; each takes its equal share.

    Raises:
        ConfigError: a launcher says otherwise than the settings, or shares are not equal.
    """
    import torch

    from pipeline.learning import launcher
    from pipeline.learning.device import choose_device

    if threads:
        torch.set_num_threads(threads)
    device = choose_device(device)
    half = uses_bfloat16(precision, device)
    accelerator = launcher.start(  # without a format of its own: the loop has an autocast
        device=device,
        precision="bfloat16" if half else "float32",
        names={"bf16": "bfloat16"},
        instead={},
    )
    if batch_size % accelerator.num_processes:
        allowed = f"a multiple of the {accelerator.num_processes} processes"
        raise ConfigError(Problem("batch_size", str(batch_size), allowed))
    return accelerator


LONG = 1000
"""Steps from which on compiling, a minute or so, pays on a GPU (count)."""


def compiles(asked: str, device: str, steps: int) -> bool:
    """Tell whether to compile the network's blocks: if asked, or by itself where it pays."""
    return asked == "on" or (asked == "auto" and device == "cuda" and steps >= LONG)


def uses_bfloat16(precision: str, device: str) -> bool:
    """Tell whether to compute in bfloat16: if asked, or by itself where the hardware has it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        # Without AMX, bfloat16 is emulated and slower than float32.
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def count_classes(source: ImageSource) -> int:
    """Return the number of classes: the largest label plus one."""
    from pipeline.images.reading import read_retrying

    largest = -1
    for start in range(0, len(source), 1024):
        rows = list(range(start, min(start + 1024, len(source))))
        largest = max(largest, *(record.label for record in read_retrying(source, rows)))
    return largest + 1
