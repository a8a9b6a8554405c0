"""Settings of `dreamshard interpret`; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config import FolderName
from dreamshard.config.reads import Table, When
from dreamshard.errors import Problem
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.interpreted.card import check_interpreter_name

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


@dataclass(kw_only=True)
class InterpretConfig:
    """Train a feature interpreter on a few labelled images."""

    main_settings: ClassVar[str] = """
    out name target classes ignore labelled validation epochs batch_size lr seed device
    teacher.kind teacher.path teacher.levels teacher.timesteps source.kind source.path
    source.split image.size
    """

    reads: ClassVar = (
        Table("target", {"mask": "dice_weight"}),
        When("nowhere: each image is shown as it is", "image.views"),
        When(
            "with labelled or validation above 0",
            "draw",
            lambda config: bool(config.labelled or config.validation),
            "labelled",
        ),
    )

    out: FolderName = "interpreters/my-labels"
    """Folder for the interpreter; reused if one that fits is there."""
    run_dir: str = ""
    """Folder for the record of this run; empty for <out>/run."""
    overwrite: bool = False
    """Replace a different interpreter that is already in the folder."""
    name: str = "soft"
    """First part of the names of its soft labels, such as camvid (then camvid.s4)."""
    target: Literal["mask", "label"] = "mask"
    """What to predict: mask, a class for every cell, or label, one for the image."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, in order of their numbers."""
    ignore: Annotated[int, Field(ge=-1, le=255)] = 255
    """Number in masks, or label, that stands for no class (unlabelled images have label -1)."""
    labelled: CountOrNone = 0
    """Labelled images to train on (count), drawn by the seed; 0 for all of the source."""
    draw: Literal["random", "even"] = "random"
    """Draw them at random, or at even distances through the source: frames of videos."""
    validation: CountOrNone = 0
    """Further images to judge on (count), drawn after those; never trained on."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The frozen teacher; its levels and timesteps are what the interpreter reads."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The labelled images."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the teacher's size; views are not used."""
    noisings: Annotated[int, Field(ge=1, le=1024)] = 4
    """Noise draws per image (count), computed once and kept in memory; 1 where none is drawn."""
    mirror: bool = True
    """Show the teacher mirrored images as well."""
    width: Annotated[int, Field(ge=1, le=4096)] = 256
    """Channels inside; 256 in the paper."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of features dropped before the last layer; 0.1 in the paper."""
    dice_weight: Weight = 3.0
    """Weight of the generalised Dice loss of masks; 3 in the paper."""
    epochs: Count = 100
    """Times every labelled image is shown (count); 100 in the paper."""
    batch_size: Count = 8
    """Images per step (count)."""
    lr: Positive = 4e-3
    """Peak learning rate (AdamW); 4e-3 in the paper."""
    weight_decay: Weight = 0.05
    """Decoupled weight decay; 0.05 in the paper."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = field(default_factory=lambda: [0.9, 0.95])
    """Adam's decay rates."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps over which the rate rises linearly; a cosine to 0 follows."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides which images are labelled, the noise, the weights and the order."""
    micro_batch: Annotated[int, Field(ge=1, le=4096)] = 8
    """Images per forward pass of the teacher (count)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: CountOrNone = 0
    """CPU threads (count); 0 for torch's choice."""
    memory_gb: Positive = 16.0
    """Most memory that the kept features may take (GB)."""

    @property
    def record(self) -> Path:
        """Return the folder of the run's record."""
        return Path(self.run_dir or Path(self.out) / "run")

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        name = check_interpreter_name(self.name)
        if name is not None:
            problems.append(name)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            problems.append(Problem("classes", str(self.classes), "two names or more, each once"))
        if 0 <= self.ignore < len(self.classes):
            allowed = f"-1, or {len(self.classes)}..255: it is the number of a class"
            problems.append(Problem("ignore", str(self.ignore), allowed))
        if len(self.betas) != 2:
            problems.append(Problem("betas", str(self.betas), "two numbers", "Try [0.9, 0.95]."))
        if self.teacher.interpreter:
            problems.append(Problem("teacher.interpreter", self.teacher.interpreter, "none here"))
        if self.teacher.draws != 1:
            allowed = "1: noisings says how many are drawn"
            problems.append(Problem("teacher.draws", str(self.teacher.draws), allowed))
        if self.teacher.pool != "none":
            problems.append(Problem("teacher.pool", self.teacher.pool, "none: maps are needed"))
        return problems
