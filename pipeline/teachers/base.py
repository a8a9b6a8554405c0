"""The teacher protocol: what the pipeline may know about a network that it records.

A teacher is a class with three parts:

- `describe(config, mode=..., image_size=...)` answers what it would record, from small files only
  (a JSON of the architecture, never the weights on a device), so that every mistake in a request is
  found before a model loads or Ray starts;
- its constructor `(config, mode=..., image_size=..., seed=..., pins=...)` loads the network;
- `encode(images, indices)` and `synthesize(indices)` run it on exactly one padded micro-batch.

It may also have `foresee(indices)`, which prepares what only depends on the indices, such as noise,
while the network works on micro-batches before; see `foreseer`.

To add one: write a class of this shape in its own file and enter it in `load.TEACHERS`, or name it
in the config as `kind: my_module:MyTeacher`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from dreamshard.config.reads import OWN, Table
from dreamshard.errors import Problem
from dreamshard.progress import stage
from storage.schema import FeatureBatch, Level, Pins

Mode = Literal["encode", "synthesize"]
Part = Literal["", "generator", "discriminator", "encoder"]
Scalar = str | int | float | bool | None


FROM_FILES = "path timesteps draws"
WITH_PARTS = f"{FROM_FILES} part"


@dataclass(kw_only=True)
class TeacherConfig:
    """Which network to run and which of its features to record."""

    reads: ClassVar = (
        Table(
            "kind",
            {
                "diffusers": FROM_FILES,
                "biggan": WITH_PARTS,
                "bigbigan": WITH_PARTS,
                "ssgan": WITH_PARTS,
                "stylegan2": WITH_PARTS,
                "noise": "timesteps draws",
                "encoder": "path",
                "timm": "path",
                "student": "path",
                OWN: WITH_PARTS,
            },
        ),
    )

    kind: str = "diffusers"
    """Teacher family: noise | diffusers | biggan | bigbigan | ssgan | stylegan2 | encoder | timm |
    student, or an import path `module:Class` of your own."""
    path: str = ""
    """Folder, file or URL of the weights; unused by families without weights."""
    part: Part = ""
    """Which network of a family that has several: generator | discriminator | encoder; empty for
    the family's usual one of this command (encode: one that looks at images)."""
    levels: list[str] = field(default_factory=lambda: ["s2", "s4", "s8"])
    """Levels to record: tap names of this teacher (`up.1`, `mid`) or strides in pixels (s2 ...
    s32)."""
    timesteps: list[Annotated[int, Field(ge=0)]] = field(default_factory=list)
    """Diffusion steps t at which to record, 0 .. steps of the model - 1; empty for other
    families."""
    draws: Annotated[int, Field(ge=1, le=64)] = 1
    """Independent noise draws per image and step, each recorded as its own level (count)."""
    pool: Literal["none", "gap"] = "none"
    """Record whole maps (none) or their mean over space (gap)."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the teacher's forward pass; maps are recorded as float16 either way."""
    settings: dict[str, Scalar] = field(default_factory=dict)
    """Further settings of this family, by name; `describe` lists those it knows."""
    interpreter: str = ""
    """Folder of an interpreter of this teacher (`dreamshard interpret`), whose logits are recorded
    as soft labels; empty for none. With one, levels may be empty."""
    soft_labels: list[str] = field(default_factory=list)
    """Strides (s4, s8 ...) at which to record an interpreter's masks; empty for its finest."""
    top_k: Annotated[int, Field(ge=0, le=1000)] = 0
    """Classes of a soft label to keep, as pairs of logit and class, best first; 0 for all."""

    def problems(self) -> list[Problem]:
        """List what is wrong whatever the family."""
        problems = []
        for key, values in (("levels", self.levels), ("timesteps", self.timesteps)):
            if len(set(values)) < len(values):
                hint = "Remove the repeats."
                problems.append(Problem(key, str(values), "every entry once", hint))
        for key, value in (("soft_labels", self.soft_labels), ("top_k", self.top_k)):
            if value and not self.interpreter:
                hint = "Train one with `dreamshard interpret`."
                problems.append(Problem(key, str(value), "none without teacher.interpreter", hint))
        if not self.levels and not self.interpreter:
            problems.append(
                Problem("levels", "[]", "at least one level", "Try --teacher.levels [s4].")
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Say one thing that decides a network's features and that its weights do not tell.

    Args:
        name: as in `teacher.settings`.
        value: fit for JSON.
        source: user (a setting), file (read beside the weights, or off their name), default
            (nothing said it: a guess).
        whose: where it was read, or whose default it is.
    """

    name: str
    value: Scalar
    source: Literal["user", "file", "default"]
    whose: str = ""


def guesses(flags: Sequence[Flag]) -> tuple[str, ...]:
    """Say in one line what was guessed; nothing where nothing was."""
    guessed = [flag for flag in flags if flag.source == "default"]
    if not guessed:
        return ()
    owners = dict.fromkeys(flag.whose for flag in guessed)
    shown = "; ".join(
        ", ".join(f"{flag.name} {_shown(flag.value)}" for flag in guessed if flag.whose == owner)
        + f" ({owner})"
        for owner in owners
    )
    return (f"guessed, as no file says it: {shown}. Say what is true in teacher.settings.",)


def say(notes: Sequence[str]) -> None:
    """Print what was guessed about a teacher, a line each; where data is made."""
    for note in notes:
        stage(f"teacher: {note}")


def _shown(value: Scalar) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What a teacher would record for a request; everything a recipe needs to know about it."""

    levels: tuple[Level, ...]
    """Levels in the order recorded, names resolved (no aliases)."""
    image_size: tuple[int, int]
    """Height and width in pixels of the images it takes or makes."""
    fingerprint: dict[str, object]
    """JSON-able identity: kind, digest of the weights, digest of the architecture."""
    mode_settings: dict[str, object]
    """JSON-able settings of this mode with defaults filled in: all that changes a recorded byte."""
    has_labels: bool = False
    """Whether `synthesize` gives class labels."""
    seeded: bool = True
    """Whether seed and index decide anything; a network that only looks at images draws nothing."""
    licence: str = "unknown"
    """Licence of the weights, as recorded beside them; kept with the dataset."""
    notes: tuple[str, ...] = ()
    """Sentences worth saying before a run: what was guessed."""
    flags: tuple[Flag, ...] = ()
    """What decides the features and is not in the weights, with its source."""
    latents: str = ""
    """What identifies the autoencoder that its kept latents are of; empty: it takes no latents."""
    level_facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Level name -> what else decides its bytes, JSON-able (an interpreter's digest)."""


Foresee = Callable[[np.ndarray], object]
"""Indices of a micro-batch -> what to keep until the teacher is given it."""


def foreseer(teacher: Callable[[], object]) -> Foresee:
    """Return what prepares micro-batches, in other threads, for the teacher that there is then.

    Args:
        teacher: returns it: one that is replaced must be let go.
    """

    def foresee(indices: np.ndarray) -> object:
        prepare = getattr(teacher(), "foresee", None)
        return prepare(indices) if prepare is not None else None

    return foresee


class Teacher(Protocol):
    """A loaded network. Both calls get exactly `pins.micro_batch` rows and keep their order.

    Rows may be padding (a repeated index, a black image); the caller drops what they give. The
    result depends on `(seed, index, draw)` and the image alone: never on the order of calls or on
    global state.
    """

    levels: tuple[Level, ...]
    image_size: tuple[int, int]
    fingerprint: dict[str, object]

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record the features of given images.

        Args:
            images: uint8 (N, H, W, 3), RGB, already at `image_size`.
            indices: int64 (N,), the samples' places in the dataset; they select the noise.

        Returns:
            `index` and `levels`, one array (N, *level.shape) of `level.dtype` per level; the caller
            supplies key, image, label and mask.
        """
        ...

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples from the generator and record the features on the way.

        Args:
            indices: int64 (N,), the samples' places in the dataset; they select the latents.

        Returns:
            `index`, `image` uint8 (N, H, W, 3), `levels`, and `label` where the generator has
            classes.
        """
        ...


class TeacherClass(Protocol):
    """The class side of a teacher: what it can do, told without loading it."""

    modes: tuple[Mode, ...]
    """Of encode and synthesize, those it supports."""

    def __call__(
        self,
        config: TeacherConfig,
        *,
        mode: Mode,
        image_size: tuple[int, int] | None,
        seed: int,
        pins: Pins,
    ) -> Teacher:
        """Load the network; arguments as those of `load_teacher`."""
        ...

    def describe(
        self, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> TeacherSpec:
        """Resolve a request without loading weights.

        Args:
            config: the request.
            mode: encode or synthesize.
            image_size: height and width asked for, in pixels; None for the teacher's own.

        Raises:
            ConfigError: with every problem found, keys as in `TeacherConfig` (`levels`,
            `timesteps`,
                `settings.steps`), each listing what exists.
        """
        ...
