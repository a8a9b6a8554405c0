"""Settings of evaluation; no torch here, so that help and errors come at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.tables import name_problem
from distill.tasks import TASKS
from distill.tasks.few_label import FewLabelConfig
from dreamshard.errors import Problem
from pipeline.images import ImageConfig, SourceConfig
from pipeline.teachers.base import TeacherConfig

Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure what a trained student has learned."""

    run_dir: str = "runs/evaluate"
    """Folder of this run: results.json and what made it."""
    student: str = "runs/train"
    """Run folder of `dreamshard train`, or the folder of an exported student."""
    tasks: list[str] = field(default_factory=lambda: ["few_label"])
    """What to measure: few_label, or module:Class; settings are in the section of that name."""
    baselines: list[Literal["pixels", "teacher", "random"]] = field(
        default_factory=lambda: ["pixels", "teacher", "random"]
    )
    """Compare with: pixels, the teacher's pooled features, the student before training."""
    seed: Seed = 0
    """Seed of the label draws and of the teacher's noise."""
    train_images: SourceConfig = field(default_factory=lambda: SourceConfig(split="train"))
    """Labelled images that probes are fitted on."""
    heldout_images: SourceConfig = field(default_factory=lambda: SourceConfig(split="heldout"))
    """Labelled images that probes are judged on."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the student's size."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The student's own teacher, with the levels and timesteps it was distilled from."""
    few_label: FewLabelConfig = field(default_factory=FewLabelConfig)
    """Settings of the task few_label."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where features are computed; auto: CUDA where there is one."""
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """Images per forward pass (count)."""

    def task_settings(self, task: str) -> FewLabelConfig | None:
        """Return the section of a task; None for a task of the user's own."""
        return {"few_label": self.few_label}.get(task)

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = [name_problem(task, table=TASKS, key="tasks") for task in self.tasks]
        found = [problem for problem in problems if problem is not None]
        if self.image.views != 1:
            found.append(Problem("image.views", str(self.image.views), "1: a probe sees each once"))
        return found
