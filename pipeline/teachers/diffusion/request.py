"""What may be asked of a diffusion teacher: settings, checks, and the levels they lead to.

Nothing here loads weights or imports torch, so every mistake is found before anything is spent.
"""

from __future__ import annotations

import dataclasses
import re
from typing import cast

import numpy as np

from dreamshard.errors import Problem
from pipeline.teachers.base import Scalar, TeacherSpec
from pipeline.teachers.diffusion import sampling
from pipeline.teachers.diffusion.networks import tokens
from pipeline.teachers.diffusion.networks.description import Description
from pipeline.teachers.recording.teacher import NetworkRequest
from pipeline.teachers.request import NO_TIMESTEP, level_name
from storage.schema import Level

SETTINGS: dict[str, Scalar] = {
    "encoding": "stochastic",
    "inversion_steps": 25,
    "mean_draws": 1,
    "class_label": None,
    "sampler": "ddim",
    "steps": 50,
    "eta": 0.0,
    "record": "reencode",
    "memory_format": "auto",
    "compile": False,
}
"""Settings of every diffusion teacher with their defaults; families add their own."""
CHOICES = {
    "encoding": ("stochastic", "inversion"),
    "sampler": ("ddim", "dpm"),
    "record": ("reencode", "steps"),
    "memory_format": ("auto", "channels_last", "contiguous"),
}
SAMPLING = ("sampler", "steps", "eta", "record")
"""Settings of drawing images, which encoding given ones does not read."""
NO_CLASS = -1
LOWEST = {"inversion_steps": 1, "mean_draws": 1, "steps": 1, "eta": 0}


@dataclasses.dataclass(kw_only=True)
class DiffusionRequest(NetworkRequest):
    """A checked request: what the network is, what to record, and how."""

    description: Description

    @property
    def has_labels(self) -> bool:
        """Return whether samples are drawn of classes, which are recorded."""
        known = self.description.classes > 0 and self.mode == "synthesize"
        return known and self.settings["class_label"] != NO_CLASS

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Return the timesteps to record at, ascending."""
        return tuple(sorted(self.config.timesteps))

    def number(self, name: str) -> int:
        """Return a whole-number setting."""
        return int(cast(int, self.settings[name]))

    def sampler_timesteps(self) -> list[int]:
        """Return the sampler's timesteps, ascending."""
        schedule = self.description.schedule
        if schedule.prediction in ("flow_prediction", "edm"):
            share = np.linspace(0, 1, self.number("steps") + 1)[1:]
            if schedule.prediction == "flow_prediction":  # lean towards noise, as its sampler does
                share = schedule.shift * share / (1 + (schedule.shift - 1) * share)
            return sorted({round(float(value) * (len(schedule) - 1)) for value in share})
        return sampling.leading_timesteps(len(schedule), self.number("steps"), schedule.offset)

    def inversion_timesteps(self) -> list[int]:
        """Return the inversion's grid, ascending: evenly spaced, with every recorded step in it."""
        highest = max(self.timesteps)
        total = len(self.description.schedule)
        even = sampling.leading_timesteps(total, self.number("inversion_steps"))
        return sorted({step for step in even if step < highest} | set(self.timesteps))

    def check(self) -> list[Problem | str]:
        """Settle the levels, the class and the layout; return what is wrong."""
        problems: list[Problem | str] = [*self._class_problems()]
        if self.settings["memory_format"] == "auto":
            exact = self.description.exact and self.config.compute_dtype == "float32"
            self.settings["memory_format"] = "contiguous" if exact else "channels_last"
        problems += [_stride_hint(each, self.description) for each in super().check()]
        problems += self._way_problems()
        if not problems and (mean := self.number("mean_draws")) > 1:
            self.levels = tuple(
                level if level.timestep == NO_TIMESTEP else _averaged(level, mean)
                for level in self.levels
            )
        return problems

    @property
    def spec(self) -> TeacherSpec:
        """Return what the pipeline may know; latents are those of one autoencoder."""
        vae = self.description.vae
        kept = [level.name for level in self.levels if level.kind == "latent"]
        facts = {name: {"vae": vae} for name in kept}
        return dataclasses.replace(super().spec, latents=vae, level_facts=facts)

    def warnings(self) -> tuple[str, ...]:
        """Say where a few channels of a transformer's block may drown all others."""
        raw = [level.tap for level in self.levels if tokens.is_raw(level.tap)]
        return (f"{raw[0]}: {tokens.RAW.format(name=raw[0])}",) if raw else ()

    def mode_settings(self) -> dict[str, object]:
        """Return the settings that change recorded bytes in this mode, defaults filled in."""
        inverted = self.settings["encoding"] == "inversion"
        names = ["encoding", "memory_format", "inversion_steps" if inverted else "mean_draws"]
        if self.description.clean:
            names = ["memory_format"]
        if self.description.classes:
            names.append("class_label")
        if self.mode == "synthesize":
            names += ["sampler", "steps", "eta", "record"]
        if self.settings["compile"]:  # other kernels, other last digits
            names.append("compile")
        return {name: self.settings[name] for name in names}

    def _class_problems(self) -> list[Problem]:
        label, known = self.settings["class_label"], self.description
        if not known.classes:
            return [] if label is None else [_class_problem(label, "none: it has no classes")]
        allowed = f"0..{known.classes - 1}, or {NO_CLASS} to leave it out"
        if label is None and self.mode == "encode":
            if known.null_class is None:
                return [_class_problem("nothing", allowed)]
            self.settings["class_label"] = NO_CLASS
        elif label is not None and not (type(label) is int and NO_CLASS <= label < known.classes):
            return [_class_problem(label, allowed)]
        return []

    def _way_problems(self) -> list[Problem]:
        """Find what contradicts itself in how timesteps are reached."""
        if self.description.clean:
            return self._clean_problems()
        total = len(self.description.schedule)
        latents_alone = {level.kind for level in self.levels} == {"latent"}
        if not self.timesteps and not latents_alone:
            return [Problem("timesteps", "[]", f"0..{total - 1}", "Try --teacher.timesteps [50].")]
        problems = []
        if self.timesteps and latents_alone:
            hint = "Leave teacher.timesteps empty, or add levels of the network."
            problems.append(Problem("timesteps", str(self.timesteps), "none for latents", hint))
        synthesize = self.mode == "synthesize"
        inverted = self.settings["encoding"] == "inversion"
        on_the_way = synthesize and self.settings["record"] == "steps"
        problems += self._unread_problems(synthesize, on_the_way, inverted)
        if inverted or on_the_way:
            why = "inversion has no noise to draw" if inverted else "a sample is drawn once"
            draws = {
                "draws": self.config.draws,
                "settings.mean_draws": self.settings["mean_draws"],
            }
            problems += [
                Problem(name, str(value), f"1 ({why})")
                for name, value in draws.items()
                if value != 1
            ]
        for name, used in (("steps", synthesize), ("inversion_steps", inverted)):
            value = self.settings[name]
            if used and isinstance(value, int) and value > total:
                problems.append(Problem(f"settings.{name}", str(value), f"1..{total}"))
        steps = self.settings["steps"]
        if on_the_way and not problems and isinstance(steps, int) and steps > 0:
            grid = self.sampler_timesteps()
            if missing := [step for step in self.timesteps if step not in grid]:
                shown = ", ".join(map(str, grid))
                allowed = f"steps of the sampler: {shown}"
                problems.append(Problem("timesteps", str(missing), allowed))
        return problems

    def _clean_problems(self) -> list[Problem]:
        """Find what a clean teacher, which draws nothing, cannot do."""
        problems = []
        if self.mode == "synthesize":
            hint = "Use the teacher it was cleaned from."
            problems.append(Problem("path", "a clean teacher for synthesize", "encode alone", hint))
        hint = "A clean teacher reads each image once, without noise: leave it out."
        draws = {"draws": self.config.draws, "settings.mean_draws": self.settings["mean_draws"]}
        problems += [Problem(k, str(v), "1", hint) for k, v in draws.items() if v != 1]
        if self.settings["encoding"] != "stochastic":
            got = str(self.settings["encoding"])
            problems.append(Problem("settings.encoding", got, "nothing", hint))
        return problems

    def _unread_problems(self, synthesize: bool, on_the_way: bool, inverted: bool) -> list[Problem]:
        """Find settings that were given and that this way of recording does not read."""
        unread: dict[str, str] = (
            {} if synthesize else dict.fromkeys(SAMPLING, "dreamshard synthesize")
        )
        if synthesize and self.settings["sampler"] == "dpm":
            unread["eta"] = "sampler ddim"
        if not inverted:
            unread["inversion_steps"] = "encoding inversion"
        if on_the_way:
            unread |= dict.fromkeys(("encoding", "inversion_steps"), "record reencode")
        return [
            Problem(
                f"settings.{name}",
                str(self.config.settings[name]),
                f"{SETTINGS[name]}, as nothing reads it here",
                f"It is read with {readers}: leave it out.",
            )
            for name, readers in unread.items()
            if self.config.settings.get(name, SETTINGS[name]) != SETTINGS[name]
        ]


def _averaged(level: Level, mean: int) -> Level:
    """Return a level under the name that says how many draws it is the mean of."""
    name = level_name(
        level.tap, timestep=level.timestep, draw=level.draw, mean=mean, pool=level.pool
    )
    return dataclasses.replace(level, name=name)


def _class_problem(got: object, allowed: str) -> Problem:
    hint = "A class-conditional network needs a label; encode gives every image the same."
    return Problem("settings.class_label", str(got), allowed, hint)


def _stride_hint(problem: Problem | str, description: Description) -> Problem | str:
    """Say what to do about a stride that the network has no map of."""
    strides = [tap.stride for tap in description.taps if tap.module]
    if isinstance(problem, str) or not re.fullmatch(r"s\d+", problem.got):
        return problem
    hint = f"This network has strides {min(strides)} to {max(strides)}."
    if description.latent:
        hint += " A latent model has no finer map: a larger image gives more cells."
    return dataclasses.replace(problem, hint=hint)
