"""Where an adversarial run goes on, and whether what it is to make is already there."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamshard.config import flatten
from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.text import read_json
from dreamshard.owner.folders import is_owner
from pipeline.learning.checkpoint import checkpoints, forget, read_state
from pipeline.learning.pretraining.state import NOT_THE_WEIGHTS, differing, occupied
from pipeline.teachers.weights import CARD
from storage.schema import canonical_json

ALGORITHM = {"ssgan": 2, "bigbigan": 2}
"""Kinds' numbers, 1 of all others, raised whenever the same settings would train other weights. 2:
a pass is one step of every spectral norm, also of a network's first convolution, which took two."""
LENGTH = ("steps", "minutes", "teacher")
"""Settings that say when to stop, and what to keep of it: a run may be told others and goes on."""
ANEW = "Give that back, choose another --out, or train anew with --overwrite true."


@dataclass(frozen=True)
class Budget:
    """Say how long to train: for some steps, or for some minutes over all starts of a run."""

    steps: int
    minutes: float | None

    @property
    def last_step(self) -> int:
        """The step after which nothing comes, whatever the clock says."""
        return self.steps if self.minutes is None else sys.maxsize

    def is_spent(self, step: int, seconds: float) -> bool:
        """Tell whether a run of so many steps and seconds has nothing left."""
        return self.progress(step, seconds) >= 1

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the budget that is spent, 0..1."""
        if self.minutes is None:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (self.minutes * 60))


@dataclass(frozen=True)
class Recipe:
    """What decides a run's weights, but for its length.

    Args:
        settings: by dotted key, with `kind`'s own section alone.
        source: fingerprint of the images.
    """

    settings: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The SHA-256 that two runs share if they train the same networks."""
        number = ALGORITHM.get(str(self.settings.get("kind")), 1)
        facts = {"algorithm": number, "settings": self.settings, "source": self.source}
        return hashlib.sha256(canonical_json(facts).encode()).hexdigest()

    def problems(self, told: Mapping[str, Any], where: object) -> list[Problem]:
        """List what another recipe, of a checkpoint or card, has otherwise.

        Args:
            told: `settings` and `source` of the other; damaged ones are another recipe.
            where: names it.
        """
        settings = told.get("settings")
        now, then = self.settings, settings if isinstance(settings, dict) else {}
        if "kind" in then and now.get("kind") != then["kind"]:
            now, then = {"kind": now.get("kind")}, {"kind": then["kind"]}  # another method's else
        named = differing(now, then, where=where, hint=ANEW)
        if told.get("source") != dict(self.source):
            named.append(Problem("source", "other images", f"those of {where}", ANEW))
        return named or [Problem("out", "another version's run", "this version's", ANEW)]


@dataclass
class Start:
    """Say where a run goes on: steps and seconds it has taken, and what it has found."""

    step: int = 0
    seconds: float = 0.0
    checkpoint: Path | None = None
    adaptive: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)


def recipe_of(settings: Mapping[str, Any], source: Mapping[str, Any], kinds: set[str]) -> Recipe:
    """Sort out what decides the weights.

    Args:
        settings: the whole configuration as plain values.
        source: fingerprint of the images; it stands for the settings of their source.
        kinds: names of sections of which only the chosen one counts.
    """
    others = kinds - {settings["kind"]}
    ruled = {*NOT_THE_WEIGHTS, *LENGTH, "source", "generator", *others, *OF_DIFFUSION}
    told = {name: value for name, value in settings.items() if name not in ruled}
    return Recipe(dict(sorted(flatten(told).items())), dict(source))


OF_DIFFUSION = (
    *("crop", "unet", "objective", "lr", "weight_decay", "warmup_steps", "floor", "clip", "ema"),
)
"""Settings of the diffusion trainer alone."""


def find_finished(
    folder: Path, run_dir: Path, *, recipe: Recipe, budget: Budget, files: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return the card of the teacher in a folder if it has had this budget; None: there is work.

    Args:
        folder: of the teacher.
        run_dir: of its checkpoints.
        recipe, budget: of the run.
        files: names that hold weights.

    Raises:
        ConfigError: another teacher is there, or one that cannot go on.
    """
    try:
        card = read_json(folder / CARD, infinite=True)
        if not isinstance(card, dict):
            raise ValueError("no object")
    except (CannotReadError, ValueError):
        ours = is_owner(run_dir, "pretrain", {"recipe": recipe.key})
        if any((folder / name).exists() for name in files) and not ours:
            raise occupied(folder, "weights without a card") from None
        return None
    if card.get("recipe_key") != recipe.key:
        raise occupied(folder, "a teacher trained with other settings or images")
    if budget.is_spent(int(card.get("trained_steps", 0)), float(card.get("seconds", 0))):
        return card
    if not checkpoints(run_dir):
        name, got, had = "steps", str(budget.steps), card.get("trained_steps")
        if budget.minutes is not None:
            name, got, had = "minutes", f"{budget.minutes:g}", float(card.get("seconds", 0)) / 60
        got = f"{got}, and in {run_dir} no checkpoint to go on from"
        raise ConfigError(Problem(name, got, f"{had:.4g}, which it has had", ANEW))
    return None


def resume_point(run_dir: Path, *, recipe: Recipe, overwrite: bool) -> Start:
    """Find where a run goes on.

    Args:
        run_dir: of its checkpoints.
        recipe: of the run.
        overwrite: throw another run's checkpoints away.

    Raises:
        DataError: a damaged checkpoint.
        ConfigError: it is of another architecture, of other settings or images; all of them.
    """
    known = checkpoints(run_dir)
    if not known:
        return Start()
    state = read_state(known[-1])
    if state.get("key") != recipe.key:
        if overwrite:
            forget(run_dir)
            return Start()
        told = state.get("recipe")
        raise ConfigError(recipe.problems(told if isinstance(told, dict) else {}, known[-1]))
    return Start(
        step=int(state["step"]),
        seconds=float(state.get("seconds", 0)),
        checkpoint=known[-1],
        adaptive={name: float(value) for name, value in dict(state.get("adaptive", {})).items()},
        best=dict(state.get("best", {})),
    )
