"""CRD, contrastive representation distillation: a baseline of CompRess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.sets import NUMBER, Needs
from distill.losses.contrast import noise_contrast
from distill.methods.compress import Embedding
from distill.methods.objective import Batch, Composite, Part
from distill.modules.draws import SampleDraws
from distill.modules.memory_bank import MemoryBank
from distill.modules.vectors import as_vector
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.augment import AugmentConfig
    from distill.configs.similarity import ContrastConfig, CRDConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Contrast(Embedding):
    """Tell a sample's embedding of the other network from those of other samples.

    Negatives are any other sample, as no labels are used; a level is never decoded for them, as
    banks keep every sample's last embeddings.

    Source: CRD (Tian et al. 2020).
    """

    config: ContrastConfig

    @classmethod
    def needs(cls, config: ContrastConfig) -> Needs:
        """Say that it needs an embedding, one view, and the samples' numbers."""
        return replace(super().needs(config), numbers=True)

    @classmethod
    def settled(cls, config: ContrastConfig, training_set: TrainingSet) -> ContrastConfig:
        """Count the samples; refuse streams, which have none, and more negatives than samples."""
        super().settled(config, training_set)
        stored = training_set.source.stored
        if stored is None:
            got, allowed = "a stream", "a dataset: the memory has a row for each of its samples"
            raise ConfigError(Problem("samples", got, allowed, "Record it, or use compress."))
        count, problems = len(stored), []
        if config.negatives >= count:
            allowed = f"less than {count}, the samples of {training_set.source.url}"
            problems.append(Problem("negatives", str(config.negatives), allowed, "Set it to less."))
        if config.samples not in (0, count):
            allowed = f"0, or {count}, the samples of {training_set.source.url}"
            problems.append(Problem("samples", str(config.samples), allowed, "Leave it out."))
        if problems:
            raise ConfigError(problems)
        return replace(config, samples=count)

    def heads(self, width: int, teacher_width: int, *, student: Student) -> None:
        """Build both sides' linear heads and banks."""
        config = self.config
        self.student_head = nn.Linear(width, config.width)
        self.teacher_head = nn.Linear(teacher_width, config.width)
        self.student_bank, self.teacher_bank = (
            MemoryBank(config.samples, config.width, momentum=config.bank_momentum)
            for _ in range(2)
        )
        self.draws = SampleDraws(self.seed)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss"; arguments as `Objective` has them."""
        config, numbers = self.config, batch.targets[NUMBER]
        student = F.normalize(self.student_head(pooled[self.view]).float(), dim=1)
        vector = as_vector(batch.targets[self.level.name])
        teacher = F.normalize(self.teacher_head(vector).float(), dim=1)
        others = self.draws.integers(numbers, config.negatives, below=config.samples - 1)
        others = others + (others >= numbers[:, None])  # any sample but its own
        rows = torch.cat([numbers[:, None], others], dim=1)
        pairs = ((student, self.teacher_bank), (teacher, self.student_bank))
        losses = [
            noise_contrast(
                bank.log_scores(embedding, rows, temperature=config.temperature),
                samples=config.samples,
            )
            for embedding, bank in pairs
        ]
        self.waiting.append((student.detach(), teacher.detach(), numbers))
        return {"loss": torch.stack(losses).sum()}

    def before_step(self) -> None:
        """Drop what a rehearsal left: no bank takes it in."""
        self.waiting.clear()

    def after_step(self) -> None:
        """Let the banks take in the step's batch, whose parts so have not seen one another."""
        for student, teacher, numbers in self.waiting:
            self.student_bank.update(student, numbers)
            self.teacher_bank.update(teacher, numbers)
        self.waiting.clear()


class CRD(Composite):
    """Contrastive representation distillation.

    Source: CRD; CompRess, table 1.
    """

    section = "crd"

    @classmethod
    def parts(cls, config: CRDConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"contrast": Part(Contrast, config)}

    @classmethod
    def augment(cls, config: CRDConfig) -> AugmentConfig:
        """Return how the view is made."""
        return config.augment
