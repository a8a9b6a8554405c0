"""A teacher with an interpreter attached: its records gain soft labels, levels like any other.

`teacher.interpreter` names the interpreter's folder, `teacher.soft_labels` the strides to record
its logits at, `teacher.top_k` how many classes of each cell to keep. The levels that the
interpreter reads need not be among those recorded: with `teacher.levels: []` a dataset holds soft
labels alone, and joins one that was recorded before.

Shapes: N samples, K classes, cells h x w of a stride.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.teachers.base import (
    Mode,
    Teacher,
    TeacherClass,
    TeacherConfig,
    TeacherSpec,
    foreseer,
)
from pipeline.teachers.interpreted.card import (
    InterpreterCard,
    interpreter_digest,
    read_interpreter_card,
)
from pipeline.teachers.request import NO_TIMESTEP
from storage.schema import FeatureBatch, Level, Pins, canonical_json

if TYPE_CHECKING:
    from torch import Tensor

CLASS_DTYPE = "int16"


@dataclass(frozen=True)
class Attachment:
    """Say what a teacher with an interpreter records, and what its network is asked for.

    Args:
        inner: the request to the teacher itself: levels recorded and levels read.
        recorded: those of its levels that are kept, as the request named them.
        inputs: per noise draw, the interpreter's own name of a level -> the teacher's.
        soft: the soft labels, in order of draws and strides.
        spec: all of it, as the pipeline sees it.
    """

    inner: TeacherConfig
    recorded: tuple[Level, ...]
    inputs: tuple[dict[str, str], ...]
    soft: tuple[Level, ...]
    spec: TeacherSpec


def attach(
    cls: TeacherClass, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
) -> Attachment:
    """Resolve a request with an interpreter, from small files only.

    Raises:
        ConfigError: no interpreter there, one of another teacher or of other features, strides or
            a number of classes that it cannot give; keys as in `TeacherConfig`.
        TeacherError: damaged files.
    """
    folder = Path(config.interpreter)
    card = read_interpreter_card(folder)
    plain = dataclasses.replace(config, interpreter="", soft_labels=[], top_k=0)
    recorded: tuple[Level, ...] = ()
    if config.levels:
        recorded = cls.describe(plain, mode=mode, image_size=image_size).levels
    inner = dataclasses.replace(
        plain,
        levels=list(dict.fromkeys(level.tap for level in (*recorded, *card.inputs))),
        timesteps=sorted({level.timestep for level in (*recorded, *card.inputs)} - {NO_TIMESTEP}),
    )
    spec = cls.describe(inner, mode=mode, image_size=image_size)
    problems = _fit_problems(card, spec, mode=mode, folder=folder)
    problems += _soft_problems(config, card, image_size=spec.image_size)
    if problems:
        raise ConfigError(problems)
    soft = _soft_levels(config, card, image_size=spec.image_size)
    names = {(level.tap, level.timestep, level.draw): level.name for level in spec.levels}
    inputs = tuple(
        {level.name: names[level.tap, level.timestep, draw] for level in card.inputs}
        for draw in range(inner.draws)
    )
    fact = {"interpreter": interpreter_digest(folder, card)}
    spec = dataclasses.replace(
        spec, levels=(*recorded, *soft), level_facts={level.name: fact for level in soft}
    )
    return Attachment(inner, recorded, inputs, soft, spec)


class InterpretedTeacher:
    """Run a teacher and read soft labels out of its features; see the module's text.

    Args:
        cls: the teacher's class.
        config: the request, with an interpreter.
        mode, image_size, seed, pins: as for any teacher.
    """

    def __init__(
        self,
        cls: TeacherClass,
        config: TeacherConfig,
        *,
        mode: Mode,
        image_size: tuple[int, int] | None,
        seed: int,
        pins: Pins,
    ) -> None:
        from pipeline.teachers.interpreted.interpreter import load_interpreter

        self._attached = attach(cls, config, mode=mode, image_size=image_size)
        self.levels, self.image_size = self._attached.spec.levels, self._attached.spec.image_size
        self.teacher: Teacher = cls(
            self._attached.inner, mode=mode, image_size=image_size, seed=seed, pins=pins
        )
        self.fingerprint = self.teacher.fingerprint
        interpreter, _ = load_interpreter(Path(config.interpreter))
        self._interpreter, self._device = interpreter.to(pins.device), pins.device
        self._top_k = config.top_k

    def foresee(self, indices: np.ndarray) -> object:
        """Prepare a micro-batch; see `base.foreseer`."""
        return foreseer(lambda: self.teacher)(indices)

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record features and soft labels of images; see `base.Teacher.encode`."""
        return self._interpret(self.teacher.encode(images, indices))

    def encode_latents(self, latents: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record features and soft labels of kept latents, with a teacher that takes them."""
        return self._interpret(cast(Any, self.teacher).encode_latents(latents, indices))

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples, record features and soft labels; see `base.Teacher.synthesize`."""
        return self._interpret(self.teacher.synthesize(indices))

    def _interpret(self, batch: FeatureBatch) -> FeatureBatch:
        import torch

        levels = {level.name: batch.levels[level.name] for level in self._attached.recorded}
        with torch.inference_mode():
            for draw, names in enumerate(self._attached.inputs):
                features = {
                    own: torch.from_numpy(batch.levels[name]).to(self._device).float()
                    for own, name in names.items()
                }
                logits = self._interpreter(features)
                for level in self._attached.soft:
                    if level.draw == draw:
                        levels[level.name] = self._keep(level, logits)
        batch.levels = levels
        return batch

    def _keep(self, level: Level, logits: Tensor) -> np.ndarray:
        """Bring logits to a level's resolution, keep the best classes, convert."""
        from torch.nn import functional as F

        if len(level.shape) == 3 and tuple(logits.shape[-2:]) != level.shape[1:]:
            logits = F.interpolate(logits, size=level.shape[1:], mode="bilinear", antialias=True)
        if self._top_k:
            best = logits.topk(self._top_k, dim=1)
            if level.dtype == CLASS_DTYPE:
                return best.indices.cpu().numpy().astype(np.int16)
            logits = best.values
        values = logits.cpu().numpy().astype(np.float16)
        if not np.isfinite(values).all():
            raise DataError(
                f"level {level.name}: a logit is NaN or beyond float16's 65504. Train the "
                "interpreter again, with a smaller lr."
            )
        return values


def _fit_problems(
    card: InterpreterCard, spec: TeacherSpec, *, mode: Mode, folder: Path
) -> list[Problem | str]:
    problems: list[Problem | str] = []
    if canonical_json(card.teacher) != canonical_json(spec.fingerprint):
        got, allowed = f"{folder}, trained on {card.teacher}", f"one of {spec.fingerprint}"
        problems.append(
            Problem("interpreter", got, allowed, "Train one with `dreamshard interpret`.")
        )
    for key, value in card.mode_settings.items():
        now = spec.mode_settings.get(key, value)
        if now != value:
            allowed = f"{value!r}, as the interpreter was trained with"
            problems.append(Problem(f"settings.{key}", repr(now), allowed))
    for level in spec.levels:
        if level.pool != "none":
            hint = "Record pooled features in a dataset of their own; the two join."
            problems.append(Problem("pool", level.pool, "none with an interpreter", hint))
            break
    return problems


def _soft_problems(
    config: TeacherConfig, card: InterpreterCard, *, image_size: tuple[int, int]
) -> list[Problem]:
    problems = []
    if card.target == "label" and config.soft_labels:
        allowed = "none: this interpreter gives one label per image"
        problems.append(Problem("soft_labels", str(config.soft_labels), allowed))
    for name in config.soft_labels:
        stride = _stride(name)
        if not stride or any(side % stride for side in image_size):
            size, hint = f"{image_size[0]} x {image_size[1]}", "Try --teacher.soft_labels [s4]."
            allowed = f"s1, s2, s4 ...: strides that divide {size} pixels"
            problems.append(Problem("soft_labels", name, allowed, hint))
    if config.top_k > len(card.classes):
        allowed = f"0 for all, or up to {len(card.classes)}, the interpreter's classes"
        problems.append(Problem("top_k", str(config.top_k), allowed))
    return problems


def _soft_levels(
    config: TeacherConfig, card: InterpreterCard, *, image_size: tuple[int, int]
) -> tuple[Level, ...]:
    """Lay out the soft labels: draws x strides, as all logits or as top-k pairs.

    Their tap is NAME:CLASSES, for a student's head must know how many classes there are.
    """
    wanted = [_stride(name) for name in config.soft_labels] or [card.inputs[-1].stride]
    steps = {level.timestep for level in card.inputs}
    timestep = steps.pop() if len(steps) == 1 else NO_TIMESTEP
    levels = []
    for draw in range(config.draws):
        for stride in wanted if card.target == "mask" else [0]:
            cells = tuple(side // stride for side in image_size) if stride else ()
            name = card.name + (f".s{stride}" if stride else "") + (f".d{draw}" if draw else "")
            parts = {"": "float16"}
            if config.top_k:
                parts = {
                    f".top{config.top_k}.logit": "float16",
                    f".top{config.top_k}.class": CLASS_DTYPE,
                }
            for suffix, dtype in parts.items():
                levels.append(
                    Level(
                        name=name + suffix,
                        kind="soft_label",
                        tap=f"{card.name}:{len(card.classes)}",
                        timestep=timestep,
                        draw=draw,
                        pool="none",
                        stride=stride,
                        shape=(config.top_k or len(card.classes), *cells),
                        dtype=dtype,
                    )
                )
    if len({level.name for level in levels}) < len(levels):
        raise ConfigError(Problem("soft_labels", str(config.soft_labels), "every stride once"))
    return tuple(levels)


def _stride(name: str) -> int:
    match = re.fullmatch(r"s([1-9]\d{0,3})", name)
    return int(match[1]) if match else 0
