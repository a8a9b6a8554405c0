"""guided-diffusion's flags: their names, what the weights say of them, what must be given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.official.adm_layout import AdmLayout
from pipeline.teachers.diffusion.schedules import Schedule

SETTINGS: Mapping[str, Scalar] = {
    # not in the weights
    "image_size": None,
    "num_heads": None,
    "num_head_channels": None,
    "num_heads_upsample": None,
    "use_new_attention_order": None,
    "noise_schedule": None,
    "diffusion_steps": None,
    "predict_xstart": None,
    "rescale_timesteps": None,
    # in the weights: checked if given
    "num_channels": None,
    "num_res_blocks": None,
    "channel_mult": None,
    "attention_resolutions": None,
    "learn_sigma": None,
    "class_cond": None,
    "use_scale_shift_norm": None,
    "resblock_updown": None,
    # without effect on features
    "dropout": None,
    "use_fp16": None,
    "use_checkpoint": None,
    "use_kl": None,
    "rescale_learned_sigmas": None,
    "timestep_respacing": None,
}
"""Flags of guided-diffusion's `model_and_diffusion_defaults()`."""

Flags = dict[str, Scalar]

RELEASED: Mapping[tuple[int, tuple[float, ...], int], Flags] = {
    (192, (1, 2, 3, 4), 3): {
        "image_size": 64,
        "num_head_channels": 64,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
    },
    (256, (1, 1, 2, 3, 4), 2): {"image_size": 128, "num_heads": 4},
    (256, (1, 1, 2, 2, 4, 4), 2): {"image_size": 256, "num_head_channels": 64},
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2): {"image_size": 512, "num_head_channels": 64},
}
"""Base width, multiples and depth of the published networks (ImageNet 64 to 512, LSUN) -> the flags
they go with."""


OFFICIAL: Flags = {
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "predict_xstart": False,
    "rescale_timesteps": False,
}
"""What the official code does where its command line says nothing."""
ASKED = {
    "use_new_attention_order": "true | false",
    "noise_schedule": "linear | cosine",
}
"""Flags that networks of these shapes differ in: a default is a guess that changes features. Where
the user gives flags that weights do tell, they are the training command's, whose others had theirs.
"""
MINIMAL = ("image_size", "num_heads", "num_head_channels", "num_heads_upsample", *ASKED)
TOLD = (
    "image_size", "num_heads", "num_head_channels", "num_heads_upsample", *OFFICIAL
)  # fmt: skip
"""Flags that decide the features and that no weights tell."""


def complete(flags: Flags, layout: AdmLayout) -> tuple[Flags, tuple[Flag, ...]]:
    """Check flags against the weights and fill in what can be known.

    Returns:
        all flags, and those that weights do not tell with the source of each.

    Raises: ConfigError naming each contradiction and each flag that has to be given.
    """
    problems = _contradictions(flags, layout)
    given, released = dict(flags), _released(layout)
    known: Flags = {**OFFICIAL, **released}
    heads = {"num_heads", "num_head_channels"}
    if any(flags[name] is not None for name in heads):
        known = {name: value for name, value in known.items() if name not in heads}
    flags = {**flags, **{name: v for name, v in known.items() if flags.get(name) is None}}
    hint = "The weights do not tell it; it is in the command the network was trained with."
    if not released and all(given.get(name) is None for name in SETTINGS if name not in MINIMAL):
        problems += _asked(flags, given=given, layout=layout)
    if flags["image_size"] is None:
        problems.append(Problem("settings.image_size", "nothing", "pixels", hint))
        flags["image_size"] = 2 ** (len(layout.widths) - 1)
    wrong_types = _type_problems(flags)
    problems += wrong_types or _head_problems(flags, layout, hint)
    if problems:
        raise ConfigError(problems)
    return flags, _sources(flags, given=given, released=released, layout=layout)


def _asked(flags: Flags, *, given: Flags, layout: AdmLayout) -> list[Problem]:
    """Ask for the flags that change features and for which nothing speaks."""
    hint = (
        "The weights do not tell it; it is in the command the network was trained with. Give that "
        "command's other flags, too, and what it leaves out is guided-diffusion's default ({})."
    )
    return [
        Problem(f"settings.{name}", "nothing", allowed, hint.format(_shown(OFFICIAL[name])))
        for name, allowed in ASKED.items()
        if given.get(name) is None and not _is_idle(name, flags, layout)
    ]


def _is_idle(name: str, flags: Flags, layout: AdmLayout) -> bool:
    """Tell whether a flag changes nothing: with one head the two orders are one."""
    if flags["num_heads"] is None and flags["num_head_channels"] in (None, -1):
        return False
    return name == "use_new_attention_order" and all(
        heads_of(width, flags, upsample=up) == 1
        for width in layout.head_widths
        for up in (False, True)
    )


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _released(layout: AdmLayout) -> Flags:
    """Return the flags of the published network of these sizes; {} if there is none."""
    if not (layout.learn_sigma and layout.resblock_updown and layout.scale_shift):
        return {}
    shape = (layout.model_channels, layout.channel_mult, layout.num_res_blocks)
    return RELEASED.get(shape, {})


def _sources(flags: Flags, *, given: Flags, released: Flags, layout: AdmLayout) -> tuple[Flag, ...]:
    """Say where each flag that the weights do not tell comes from."""
    idle = {name for name in TOLD if _is_idle(name, flags, layout)}
    if flags["diffusion_steps"] == 1000:
        idle.add("rescale_timesteps")
    listed = []
    for name in TOLD:
        if (value := flags.get(name)) is None or name in idle:
            continue
        if given.get(name) is not None:
            listed.append(Flag(name=name, value=value, source="user"))
        else:
            whose = (
                "the published network of these sizes" if name in released else "guided-diffusion's"
            )
            listed.append(Flag(name=name, value=value, source="default", whose=whose))
    return tuple(listed)


def _head_problems(flags: Flags, layout: AdmLayout, hint: str) -> list[Problem]:
    if flags["num_heads"] is None and flags["num_head_channels"] in (None, -1):
        name = "settings.num_heads or settings.num_head_channels"
        return [Problem(name, "nothing", "one of the two", hint)]
    for channels in layout.head_widths:
        for upsample in (False, True):
            heads = heads_of(channels, flags, upsample=upsample)
            per_head = cast(int, flags["num_head_channels"] or -1)
            if heads < 1 or channels % heads or (per_head != -1 and channels % per_head):
                name = "num_heads" if per_head == -1 else "num_head_channels"
                allowed = f"a divisor of {channels} (channels of an attention)"
                return [Problem(f"settings.{name}", str(flags[name]), allowed)]
    return []


def _type_problems(flags: Flags) -> list[Problem]:
    problems = []
    for name in ("image_size", "diffusion_steps", "num_heads", "num_head_channels"):
        value = flags[name]
        least = -1 if name == "num_head_channels" else 1
        if value is not None and (type(value) is not int or value < least):
            problems.append(Problem(f"settings.{name}", repr(value), "a whole number above 0"))
    schedule = flags["noise_schedule"]
    if schedule not in ("linear", "cosine"):
        problems.append(Problem("settings.noise_schedule", str(schedule), "linear | cosine"))
    for name in ("use_new_attention_order", "predict_xstart", "rescale_timesteps"):
        if type(flags[name]) is not bool:
            problems.append(Problem(f"settings.{name}", repr(flags[name]), "true | false"))
    return problems


def _contradictions(flags: Flags, layout: AdmLayout) -> list[Problem]:
    """Compare given flags with what the weights say."""
    problems: list[Problem] = []

    def differ(name: str, told: object) -> None:
        said = f"{told} (the weights say so)"
        problems.append(Problem(f"settings.{name}", str(flags[name]), said, "Leave it out."))

    def numbers(name: str) -> tuple[float, ...] | None:
        try:
            return tuple(map(float, str(flags[name]).split(","))) if flags[name] != "" else ()
        except ValueError:
            got = repr(flags[name])
            problems.append(Problem(f"settings.{name}", got, "numbers such as 1,2,3"))
            return None

    told: dict[str, object] = {
        "num_channels": layout.model_channels,
        "num_res_blocks": layout.num_res_blocks,
        "learn_sigma": layout.learn_sigma,
        "class_cond": layout.classes > 0,
        "use_scale_shift_norm": layout.scale_shift,
    }
    if len(layout.widths) > 1:
        told["resblock_updown"] = layout.resblock_updown
    for name, value in told.items():
        if flags[name] not in (None, value):
            differ(name, value)
    own = layout.channel_mult
    mult = numbers("channel_mult") if flags["channel_mult"] not in (None, "") else own
    if mult is not None and (len(mult) != len(own) or not all(map(math.isclose, mult, own))):
        differ("channel_mult", ",".join(f"{value:g}" for value in own))
    size, name = flags["image_size"], "attention_resolutions"
    if flags[name] is not None and type(size) is int and (given := numbers(name)) is not None:
        strides = {size // int(value) for value in given if value > 0}
        if tuple(2**level in strides for level in range(len(layout.widths))) != layout.attention:
            attends = [size // 2**k for k, here in enumerate(layout.attention) if here]
            differ(name, ",".join(map(str, attends)) or "none")
    return problems


def heads_of(channels: int, flags: Flags, *, upsample: bool = False) -> int:
    """Return the number of heads of an attention of so many channels."""
    per_head = cast(int, flags["num_head_channels"] or -1)
    if per_head != -1:
        return channels // per_head
    on_the_way_up = cast(int, flags["num_heads_upsample"] or -1)
    return on_the_way_up if upsample and on_the_way_up != -1 else cast(int, flags["num_heads"])


def noise_schedule(flags: Flags) -> Schedule:
    """Return the schedule the flags name."""
    steps = cast(int, flags["diffusion_steps"])
    if flags["noise_schedule"] == "cosine":
        betas = schedules.cosine_betas(steps)
    else:
        scale = 1000 / steps
        betas = np.linspace(scale * 1e-4, scale * 0.02, steps)
    prediction = "sample" if flags["predict_xstart"] else "epsilon"
    schedule = schedules.from_betas(betas, prediction=prediction)
    if flags["rescale_timesteps"]:
        schedule = dataclasses.replace(schedule, time=schedule.time * (1000.0 / steps))
    return schedule
