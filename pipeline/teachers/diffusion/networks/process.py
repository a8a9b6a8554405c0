"""The noise process of a network's training: its scheduler's config, or settings in its place.

The weights do not tell it, and another process gives other features. A pipeline of diffusers keeps
it beside the network; a network alone needs it told. Pixel networks without either are taken for
DDPM's published ones, and that guess is said and recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.schedules import Schedule

FILE = "scheduler_config.json"
DDPM: Mapping[str, Scalar] = MappingProxyType(
    {
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "num_train_timesteps": 1000,
    }
)
"""What DDPMScheduler takes where nothing is said."""
SETTINGS: Mapping[str, Scalar] = MappingProxyType(dict.fromkeys(DDPM))
FLOW: Mapping[str, Scalar] = MappingProxyType({"shift": None, "num_train_timesteps": None})
"""Settings that stand in for a scheduler's config, as diffusers names them."""
STEPS = "num_train_timesteps"


@dataclass(frozen=True)
class Process:
    """How a network was trained to see noise.

    Args:
        config: of the scheduler, as recorded.
        schedule: what it means.
        flags: what no file said.
    """

    config: Mapping[str, Any]
    schedule: Schedule
    flags: tuple[Flag, ...] = ()


def find_process(
    folder: Path,
    settings: Mapping[str, Scalar],
    *,
    allowed: tuple[str, ...] = schedulers.KNOWN,
    guess: bool = False,
    time_scale: float = 1000.0,
) -> Process:
    """Find the process of the network in a folder.

    Args:
        folder: of the network; its scheduler lies in it, or beside it.
        settings: as `SETTINGS` (`FLOW` for networks of a flow), those not given None.
        allowed: classes of schedulers that fit the network.
        guess: take DDPM's where nothing is said, instead of asking.
        time_scale: flow only, what the network is told of pure noise.

    Raises:
        ConfigError: settings that contradict the file, or are needed and missing.
        TeacherError: a scheduler without a rule.
    """
    path = _file(folder)
    if path is not None:
        config, where = weights.read_json(path), str(path)
        schedule = schedulers.from_config(
            config, where=where, allowed=allowed, time_scale=time_scale
        )
        given = {n: settings[n] for n in (*SETTINGS, *FLOW) if settings.get(n) is not None}
        if problems := _contradictions(config, given, where):
            raise ConfigError(problems)
        return Process(config, schedule)
    return told_process(settings, allowed=allowed, guess=guess, time_scale=time_scale, of=folder)


def told_process(
    settings: Mapping[str, Scalar],
    *,
    of: Path,
    allowed: tuple[str, ...] = schedulers.KNOWN,
    guess: bool = False,
    time_scale: float = 1000.0,
) -> Process:
    """Take a process from settings alone; arguments and errors as `find_process`.

    Args:
        of: the network, for messages.
    """
    flow = all(name in schedulers.FLOWS for name in allowed)
    names = FLOW if flow else SETTINGS
    kind = allowed[0] if flow else "DDPMScheduler"
    rules = schedulers.keys_of(kind)
    config: dict[str, Any] = {"_class_name": kind}
    flags, problems = [], []
    for name in names:
        value, source = settings.get(name), "user"
        if value is None and (guess or name == STEPS):
            value, source = DDPM[name], "default"
        text = rules[name](value)
        if value is None:
            hint = f"No {FILE} lies beside {of}: fetch the pipeline's scheduler, or say it."
            problems.append(Problem(f"settings.{name}", "nothing", str(text), hint))
        elif text is not None:
            problems.append(Problem(f"settings.{name}", repr(value), text))
        config[name] = value
        whose = "DDPMScheduler's" if source == "default" else ""
        flags.append(Flag(name=name, value=value, source=source, whose=whose))  # type: ignore[arg-type]
    if problems:
        raise ConfigError(problems)
    schedule = schedulers.from_config(config, where=str(of), allowed=allowed, time_scale=time_scale)
    return Process(config, schedule, tuple(flags))


def _file(folder: Path) -> Path | None:
    for place in (folder / "scheduler", folder.parent / "scheduler", folder):
        if (place / FILE).is_file():
            return place / FILE
    return None


def _contradictions(
    config: Mapping[str, Any], given: Mapping[str, Scalar], where: str
) -> list[Problem]:
    return [
        Problem(
            f"settings.{name}",
            repr(value),
            f"{config.get(name)!r}, as {where} says",
            "Leave it out.",
        )
        for name, value in given.items()
        if config.get(name) != value
    ]
