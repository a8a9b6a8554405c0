"""Label distillation: the student's logit head and what it is matched to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.data.sets import Needs
from distill.losses.label import from_top_k, resized_logits, soft_cross_entropy
from distill.methods.objective import IMAGE, Batch, Objective
from distill.modules.heads import PooledHead, UperHead, save_head
from dreamshard.errors import ConfigError, Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.objectives import LabelConfig
    from distill.students.student import Student

PAIR = re.compile(r"(?P<base>.+)\.top\d+\.(?P<part>logit|class)")


@dataclass(frozen=True)
class SoftLabel:
    """Say where a soft label is: all logits in one level, or the best in two.

    Args:
        logits: name of the level that holds logits.
        classes: name of the level that holds their classes; empty where all logits are there.
        head: number of the head that predicts it.
        num_classes: K.
        size: (h, w) of its cells; () for labels of whole images.
    """

    logits: str
    classes: str
    head: int
    num_classes: int
    size: tuple[int, ...]


class LabelBranch(nn.Module):
    """Predict soft labels from a student's maps: one head per interpreter, of UPerNet's kind.

    Args:
        config: the method's settings.
        channels: of the student's maps, finest first.
        levels: the soft labels to match; strides of one interpreter share its head.
        seed: of the heads' initialisation.

    Raises:
        ConfigError: half of a top-k pair.

    Source: DreamTeacher, section 3.2.
    """

    def __init__(
        self,
        config: LabelConfig,
        *,
        channels: Sequence[int],
        levels: Sequence[Level],
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        taps = list(dict.fromkeys(level.tap for level in levels))
        self.soft_labels = find_soft_labels(levels, taps=taps)
        self.heads = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number in range(len(taps)):
                mine = next(soft for soft in self.soft_labels if soft.head == number)
                if mine.size:
                    head: nn.Module = UperHead(
                        channels, num_classes=mine.num_classes, width=config.head_width
                    )
                else:
                    head = PooledHead(channels, num_classes=mine.num_classes)
                self.heads.append(head)

    def forward(self, maps: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the soft labels, a float32 scalar.

        Args:
            maps: the student's, finest first.
            targets: level name to recorded values, float32 (B, K, h, w) or (B, K).
        """
        predicted = [head(maps) for head in self.heads]
        losses = []
        for soft in self.soft_labels:
            teacher = targets[soft.logits]
            if soft.classes:
                classes = targets[soft.classes]
                teacher = from_top_k(teacher, classes, num_classes=soft.num_classes)
            size = tuple(teacher.shape[2:])  # of a crop, where samples are cropped
            student = resized_logits(predicted[soft.head], size=size)
            losses.append(
                soft_cross_entropy(
                    student,
                    teacher,
                    temperature=self.config.temperature,
                    scaled=self.config.temperature_scaled,
                )
            )
        return torch.stack(losses).mean()

    def keep(self, folder: Path) -> None:
        """Write the first head that predicts maps, for the read-outs of segmentation."""
        for soft in self.soft_labels:
            head = self.heads[soft.head]
            if isinstance(head, UperHead):
                save_head(head, folder, num_classes=soft.num_classes, width=self.config.head_width)
                return


class Label(Objective):
    """Match soft labels from the student's maps.

    Source: DreamTeacher, section 3.2.
    """

    config: LabelConfig

    @classmethod
    def needs(cls, config: LabelConfig) -> Needs:
        """Say that it needs soft labels, and the images that they lie beside."""
        return Needs(kinds=("soft_label",), views=(IMAGE,))

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the heads."""
        soft = [level for level in levels if level.kind == "soft_label"]
        self.labels = LabelBranch(
            self.config, channels=student.channels, levels=soft, seed=seed + 1
        )

    def weights(self) -> dict[str, float]:
        """Return that of the only term."""
        return {"label": 1.0}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return "loss" and the same as "label"; arguments as `Objective` has them."""
        loss = self.labels(maps[IMAGE], batch.targets)
        return {"loss": loss, "label": loss}

    def keep(self, folder: Path) -> None:
        """Write the student's logit head, if it has one."""
        self.labels.keep(folder)


def find_soft_labels(levels: Sequence[Level], *, taps: Sequence[str]) -> list[SoftLabel]:
    """Put the levels of soft labels together.

    Args:
        levels: soft labels; their tap is NAME:K, the interpreter's name and its classes.
        taps: of the heads, in order.

    Raises:
        ConfigError: half of a top-k pair, or a tap that does not tell the number of classes.
    """
    names = {level.name for level in levels}
    soft_labels, problems = [], []
    for level in levels:
        pair = PAIR.fullmatch(level.name)
        other = level.name
        if pair is not None:
            part = "class" if pair["part"] == "logit" else "logit"
            other = level.name[: -len(pair["part"])] + part
        if other not in names:
            problems.append(Problem("data.levels", level.name, f"{other} beside it"))
        elif not level.tap.rpartition(":")[2].isdigit():
            problems.append(Problem("data.levels", f"{level.name} of {level.tap}", "NAME:CLASSES"))
        elif pair is None or pair["part"] == "logit":
            soft_labels.append(
                SoftLabel(
                    logits=level.name,
                    classes=other if pair is not None else "",
                    head=taps.index(level.tap),
                    num_classes=int(level.tap.rpartition(":")[2]),
                    size=tuple(level.shape[1:]),
                )
            )
    if problems:
        raise ConfigError(problems)
    return soft_labels
