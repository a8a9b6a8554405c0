"""What a launcher and the environment say besides the settings: taken, or refused aloud.

Accelerate reads variables that `accelerate launch` sets from its own configuration, and anybody's
shell may have set. Some change results: gradients are divided, numbers rounded, networks compiled.
A run is what its settings say, so whatever says otherwise is an error and not a silent winner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

ON = ("1", "true", "yes", "on", "y", "t")
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")


def start(
    *,
    device: str,
    precision: str,
    names: Mapping[str, str],
    instead: Mapping[str, str],
    mixed_precision: str = "no",
    log_with: list[str] | None = None,
    project_dir: str | None = None,
) -> Accelerator:
    """Join the other ranks, if a launcher started any, exactly as the settings say.

    Args:
        device: "cpu" or "cuda".
        precision: of the settings, in their words.
        names: the settings' words for Accelerate's formats bf16 and fp16, as far as there are any.
        instead: what to set here instead of the launcher's: by "accumulate", "clip", "compile".
        mixed_precision, log_with, project_dir: as Accelerate's.

    Raises:
        ConfigError: variables that would make it another run; all at once.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    problems = launcher_problems(
        os.environ, device=device, precision=precision, names=names, instead=instead
    )
    if problems:
        raise ConfigError(problems)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=log_with,  # pyright: ignore[reportArgumentType]
        project_dir=project_dir,
    )


def launcher_problems(
    environment: Mapping[str, str],
    *,
    device: str,
    precision: str,
    names: Mapping[str, str],
    instead: Mapping[str, str],
) -> list[Problem]:
    """List the variables that say otherwise than the settings; arguments as those of `start`."""
    told = {key.upper(): value.strip() for key, value in environment.items() if value.strip()}
    problems = []
    kind = told.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if kind != "no" and names.get(kind) != precision:
        allowed = f"{precision!r}, the setting `precision`, or no"
        take = f"Set --precision {names[kind]}, or " if kind in names else "Set "
        hint = f"{take}the launcher's mixed_precision to no."
        problems.append(Problem("ACCELERATE_MIXED_PRECISION", repr(kind), allowed, hint))
    parts = told.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts != "1":
        hint = instead.get("accumulate", "Unset it.").format(parts)
        name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
        problems.append(Problem(name, parts, "1: it divides gradients", hint))
    clip = told.get("ACCELERATE_GRADIENT_CLIPPING", "none").lower()
    if clip != "none":
        hint = instead.get("clip", "Unset it.")
        problems.append(Problem("ACCELERATE_GRADIENT_CLIPPING", clip, "none", hint))
    backend = told.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        hint = instead.get("compile", "Unset it.")
        problems.append(Problem("ACCELERATE_DYNAMO_BACKEND", backend, "no", hint))
    if device != "cpu" and told.get("ACCELERATE_USE_CPU", "").lower() in ON:
        hint = "Set --device cpu, or launch without --cpu."
        problems.append(Problem("ACCELERATE_USE_CPU", "true", "false where GPUs are used", hint))
    place = told.get("ACCELERATE_TORCH_DEVICE", device)
    if place.partition(":")[0] != device:
        problems.append(Problem("ACCELERATE_TORCH_DEVICE", place, f"{device}, or unset"))
    for name in SHARDING:
        if told.get(f"ACCELERATE_USE_{name}", "").lower() in ON:
            hint = "Run `accelerate config` again and choose neither FSDP nor DeepSpeed."
            allowed = "false: backbones fit on one GPU, and checkpoints hold whole weights"
            problems.append(Problem(f"ACCELERATE_USE_{name}", "true", allowed, hint))
    return problems
