"""What a launcher and the environment say besides the settings: taken, or refused aloud.

Accelerate reads variables that `accelerate launch` sets from its own configuration, and anybody's
shell may have set. Some change results: gradients are divided, numbers rounded, networks compiled.
A run is what its settings say, so whatever says otherwise is an error and not a silent winner.

A rank ends with its launcher: torchrun puts each into a session of its own, where it would train on
without the others' being watched, beside the run that is started in its place.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, DreamshardError, Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

ON = ("1", "true", "yes", "on", "y", "t")
PATIENCE_S = 20.0
"""How long the launcher may be out of reach before it counts as gone (seconds)."""
_parents: list[int] = []
"""This process's parent when it joined the others, if a launcher started it."""

log = logging.getLogger(__name__)
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
        DreamshardError: the launcher is gone.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    problems = launcher_problems(
        os.environ, device=device, precision=precision, names=names, instead=instead
    )
    if problems:
        raise ConfigError(problems)
    _meet_launcher(os.environ)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=log_with,  # pyright: ignore[reportArgumentType]
        project_dir=project_dir,
    )


def check_one(verb: str) -> None:
    """Refuse a launcher's several processes for what one does: each would do all of it.

    Args:
        verb: that was typed.

    Raises: ConfigError.
    """
    ranks = os.environ.get("WORLD_SIZE", "").strip()
    if ranks.isdecimal() and int(ranks) > 1:
        hint = f"Start it without torchrun or `accelerate launch`: dreamshard {verb} ..."
        problem = Problem("WORLD_SIZE", ranks, f"1: one process does all of {verb}", hint)
        raise ConfigError(problem)


def has_died() -> bool:
    """Tell whether torchrun or `accelerate launch`, which started this process, is gone."""
    if not _parents or os.getppid() == _parents[0]:
        return False
    log.warning("the launcher, process %d, is gone: this process ends, too", _parents[0])
    return True


def _meet_launcher(environment: Mapping[str, str]) -> None:
    """Note who started this process; do not wait for half an hour for one that is gone."""
    # Only theirs: a shell that started a process and ended is usual.
    _parents[:] = [os.getppid()] if "TORCHELASTIC_RUN_ID" in environment else []
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(place, timeout=PATIENCE_S).close()
            return
        except OSError as error:
            if time.monotonic() > ends:
                raise DreamshardError(
                    f"launcher at {place[0]}:{place[1]}: got {error}, allowed one that this "
                    "process can join. It has ended meanwhile: start the command again."
                ) from error
        time.sleep(0.5)


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
