"""CompRess: a student's similarities to anchors become those of its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.sets import Needs
from distill.losses.similarity import anchor_similarity
from distill.methods.objective import FIRST, IMAGE, Batch, Composite, Objective, Part
from distill.modules.anchors import AnchorQueue, KeyEncoder
from distill.modules.vectors import as_vector, the_embedding
from dreamshard.errors import ConfigError, Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.augment import AugmentConfig
    from distill.configs.similarity import CompressConfig, EmbeddingConfig, SimilarityConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student


class Embedding(Objective):
    """Learn from a teacher's embedding of the whole image.

    Raises:
        ConfigError: no such level, or several and none is named.
    """

    config: EmbeddingConfig

    @classmethod
    def needs(cls, config: EmbeddingConfig) -> Needs:
        """Say that it needs an embedding, and one view."""
        view = FIRST if config.view == "random" else IMAGE
        return Needs(kinds=("embedding",), views=(view,), deepest=True)

    @classmethod
    def settled(cls, config: EmbeddingConfig, training_set: TrainingSet) -> EmbeddingConfig:
        """Find the level."""
        the_embedding(training_set.levels, name=config.level, key="level")
        return config

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Find the level and the view."""
        self.level = the_embedding(levels, name=self.config.level, key="level")
        self.view = FIRST if self.config.view == "random" else IMAGE
        self.heads(student.channels[-1], self.level.shape[0], student=student)

    def heads(self, width: int, teacher_width: int, *, student: Student) -> None:
        """Build what is trained beside the student.

        Args:
            width: of the student's embedding.
            teacher_width: of the teacher's.
            student: itself.
        """

    def weights(self) -> dict[str, float]:
        """Return that of the only term."""
        return {"loss": 1.0}


class Similarity(Embedding):
    """Match the teacher's similarities to anchors: those of the last K samples.

    Source: CompRess, section 3.
    """

    config: SimilarityConfig

    @classmethod
    def settled(cls, config: SimilarityConfig, training_set: TrainingSet) -> SimilarityConfig:
        """Find the level; refuse a queue that a dataset cannot fill."""
        super().settled(config, training_set)
        count = training_set.source.num_valid  # 0: a generator without end
        if count and config.queue > count:
            hint = f"Set it to {count} or less; a quarter to half of the samples is usual."
            allowed = f"at most {count}, the samples of {training_set.source.url}"
            raise ConfigError(Problem("queue", str(config.queue), allowed, hint))
        return config

    def heads(self, width: int, teacher_width: int, *, student: Student) -> None:
        """Build the queues, and a linear head (1q) or the key encoder (2q)."""
        config = self.config
        self.waiting: list[tuple[Tensor, Tensor | None]] = []
        self.teacher_queue = AnchorQueue(config.queue, teacher_width)
        self.head = self.student_queue = self.key = None
        if config.variant == "1q":
            self.head = nn.Linear(width, teacher_width)
            return
        self.student_queue = AnchorQueue(config.queue, width)
        if config.momentum:
            self.key = KeyEncoder(student, momentum=config.momentum)
        self.followed = [student]  # in a list: it stays the method's, not this module's

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss"; the step's batch becomes anchors when the step is taken.

        So parts of a batch do not see one another. Arguments as `Objective` has them.
        """
        student, teacher = pooled[self.view], as_vector(batch.targets[self.level.name])
        anchors = self.teacher_queue.anchors()
        own, keys = anchors, None
        if self.head is not None:
            student = self.head(student)
        if self.student_queue is not None:
            own = self.student_queue.anchors()
            keys = student if self.key is None else self.key(batch.images[self.view])
            keys = F.normalize(keys.detach().float(), dim=1)
        self.waiting.append((F.normalize(teacher, dim=1), keys))
        loss = anchor_similarity(
            student,
            teacher,
            student_anchors=own,
            teacher_anchors=anchors,
            temperature=self.config.temperature,
        )
        return {"loss": loss}

    def before_step(self) -> None:
        """Drop what a rehearsal left: it becomes no anchors."""
        self.waiting.clear()

    def after_step(self) -> None:
        """Put the step's batch into the queues; let the key encoder follow the student."""
        for teacher, keys in self.waiting:
            self.teacher_queue.push(teacher)
            if self.student_queue is not None and keys is not None:
                self.student_queue.push(keys)
        self.waiting.clear()
        if self.key is not None:
            self.key.follow(self.followed[0])


class CompRess(Composite):
    """Compress a self-supervised teacher by similarities to anchors.

    Source: CompRess (Koohpayegani et al. 2020).
    """

    section = "compress"

    @classmethod
    def parts(cls, config: CompressConfig) -> dict[str, Part]:
        """Return the only objective."""
        return {"similarity": Part(Similarity, config)}

    @classmethod
    def augment(cls, config: CompressConfig) -> AugmentConfig:
        """Return how the view is made."""
        return config.augment
