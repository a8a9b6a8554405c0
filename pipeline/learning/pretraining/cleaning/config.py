"""Settings of `dreamshard clean`; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config import FolderName
from dreamshard.config.reads import When
from dreamshard.errors import Problem
from pipeline.images.source import ImageConfig, SourceConfig

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


@dataclass(kw_only=True)
class CleanConfig:
    """Train a copy of a diffusion teacher whose features of clean images need no noise."""

    main_settings: ClassVar[str] = """
    teacher out levels source.kind source.path source.split image.flip steps batch_size lr highest
    device seed
    """

    reads: ClassVar = (When("nowhere: the teacher has its own size", "image.size image.width"),)

    teacher: str = ""
    """Folder of the diffusion teacher, which stays as it is."""
    out: FolderName = "teachers/my-clean-teacher"
    """Folder for the clean teacher; reused if one that fits is there."""
    run_dir: str = ""
    """Folder for the record and the checkpoint of this run; empty for <out>/run."""
    overwrite: bool = False
    """Replace a different clean teacher that is already in the folder."""
    levels: list[str] = field(default_factory=list)
    """Taps whose noisy features are predicted; empty for the middle and every decoder layer."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Images such as the teacher knows; labels are not used."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the teacher's size."""
    highest: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Highest timestep whose features are predicted, as a share of the schedule, 0 .. 1."""
    width: Annotated[int, Field(ge=8, le=4096)] = 256
    """Numbers that tell a head the timestep; 256 in CleanDIFT."""
    depth: Annotated[int, Field(ge=1, le=16)] = 3
    """Layers of a head (count); 3 in CleanDIFT."""
    steps: Count = 2000
    """Optimiser steps (count)."""
    batch_size: Count = 8
    """Images per step (count); 8 in CleanDIFT."""
    lr: Positive = 1e-5
    """Peak learning rate of the copy (AdamW); 1e-5 in CleanDIFT, of a network of 10^9 weights."""
    head_lr: Positive = 1e-3
    """Peak learning rate of the heads, which begin as nothing."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up (count); a cosine down to 0 follows."""
    weights_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the finished weights."""
    checkpoint_every: Count = 200
    """Steps between checkpoints (count); a rerun goes on from the last one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: CountOrNone = 0
    """CPU threads (count); 0 for torch's choice."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the order of images, the noise and the timesteps."""

    @property
    def record(self) -> Path:
        """Return the folder of the run's record."""
        return Path(self.run_dir or Path(self.out) / "run")

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        if not self.teacher:
            hint = "Such as dreamshard clean teachers/my-teacher --source.path FOLDER."
            problems.append(
                Problem("teacher", "nothing", "a folder with a diffusion teacher", hint)
            )
        if self.warmup_steps >= self.steps:
            allowed = f"less than steps ({self.steps})"
            problems.append(Problem("warmup_steps", str(self.warmup_steps), allowed))
        if self.image.views > 1:
            problems.append(Problem("image.views", str(self.image.views), "1"))
        return problems
