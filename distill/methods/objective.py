"""What a student learns: objectives that share its forward passes, and methods made of them.

Shapes: B samples, C channels, h and w cells of a map.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.data.sets import REAL, Needs
from distill.data.views import random_view
from distill.methods.base import Method
from distill.modules.anchors import AnchorQueue
from distill.modules.gradients import check_weights, gradient_norm
from distill.modules.memory_bank import MemoryBank
from dreamshard.errors import ConfigError, Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.methods import AugmentConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student

IMAGE, FIRST, SECOND = "image", "view 1", "view 2"
"""Views of a sample: its image as it is, beside which its maps lie, and two random ones."""
REAL_FIRST, REAL_SECOND = "real view 1", "real view 2"
"""Random views of the real images beside the samples."""
SHIFTED = "shifted image"
"""The image moved by whole cells, by the objective that compares it with unmoved maps."""
PLACE = "objectives."
GRADIENT, WEIGHT = "gradient.", "weight."
"""Beginnings of the names under which a term's gradient and weight are told."""


@dataclass(frozen=True)
class Batch:
    """Hold what objectives are given beside what the student made of it.

    Args:
        images: view to float32 (B, 3, H, W), normalised, as the student saw it.
        targets: level name to the recorded values, float32; "label" to int64 (B,).
    """

    images: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]


class Objective(nn.Module):
    """Say one thing that a student is to learn; hold the heads for it and their settings.

    Args:
        config: the objective's own settings.
        student: the backbone; it stays the method's.
        levels: of the training set, as the student sees them, finest first; an objective picks its
            own.
        image_size: (H, W) in pixels.
        seed: of the initial weights of heads that seed themselves.
    """

    over_batch: ClassVar[str] = ""
    """Terms that are statistics of a batch; gather it over ranks (`gathered_rows`)."""
    fixed_rate: tuple[str, ...] = ()
    """Beginnings of the names of parameters whose learning rate stays at its peak."""

    def __init__(
        self,
        config: Any,
        *,
        student: Student,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.build(student, levels, image_size=image_size, seed=seed)

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Say which levels, labels and views it needs."""
        return Needs(kinds=())

    @classmethod
    def settled(cls, config: Any, training_set: TrainingSet) -> Any:
        """Return the settings with what follows from the training set; refuse what does not fit."""
        return config

    def build(
        self,
        student: Student,
        levels: Sequence[Level],
        *,
        image_size: tuple[int, int],
        seed: int,
    ) -> None:
        """Build the heads; PyTorch's generator is seeded already. Arguments as the class has."""

    def prepare(self, training_set: TrainingSet) -> None:
        """Look at the training set before the first step, for statistics of it."""

    def meet(self, others: Mapping[str, Objective]) -> None:
        """Share heads with the other objectives of a method, by name."""

    def weights(self) -> dict[str, float]:
        """Return the weight of each term that is a part of the loss."""
        return {}

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pooled: Mapping[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return the loss and its terms.

        Args:
            maps: view to the student's maps (B, C, h, w), finest first.
            pooled: view to the deepest map's mean, float32 (B, C).
            batch: images and targets.

        Returns:
            float32 scalars: "loss", the sum of the terms by their weights, and the terms.
        """
        raise NotImplementedError

    def show(self, view: str, images: Tensor, targets: Mapping[str, Tensor]) -> Tensor | None:
        """Return what the student sees in a view of this objective's own; None for the others'.

        Args:
            view: its name, among those that the objective needs.
            images: (B, 3, H, W), normalised.
            targets: as of `Batch`.
        """
        return None

    def before_step(self) -> None:
        """Forget what forward passes without a step, such as a rehearsal's, have left behind."""

    def after_step(self) -> None:
        """Do what follows an optimiser's step, such as a moving average."""

    def keep(self, folder: Path) -> None:
        """Write into the run's folder what is worth keeping beside the student."""


@dataclass(frozen=True)
class Part:
    """Name an objective of a method.

    Args:
        kind: what it is.
        settings: its own.
        weight: of its loss in the method's.
    """

    kind: type[Objective]
    settings: Any
    weight: float = 1.0


class Composite(Method):
    """Train one student for several objectives; it runs once per view, however many there are.

    A preset is named after its paper, and its tensors and terms have the names of its heads and
    terms alone; those of a mix begin with the objective's name.

    Raises:
        ConfigError: an objective whose levels, labels or views are missing.
    """

    is_preset: ClassVar[bool] = True
    qualified: ClassVar[bool] = False
    """Names of terms begin with the objective's."""
    section: ClassVar[str] = ""
    """Key of its settings, which messages begin with."""

    @classmethod
    def parts(cls, config: Any) -> dict[str, Part]:
        """Return the objectives by name, in the order in which they are computed."""
        raise NotImplementedError

    @classmethod
    def augment(cls, config: Any) -> AugmentConfig | None:
        """Return how random views are made; None for methods without."""
        return None

    @classmethod
    def shares_draws(cls, config: Any) -> bool:
        """Tell whether a random view of the samples is one draw for the whole batch."""
        return False

    @classmethod
    def needs(cls, config: Any) -> Needs:
        """Say what all objectives together need."""
        needs = Needs(kinds=(), views=())
        for part in cls.parts(config).values():
            needs = needs | part.kind.needs(part.settings)
        return needs

    @classmethod
    def settled(cls, config: Any, training_set: TrainingSet) -> Any:
        """Ask every objective; those that are settled by the training set are so in place."""
        problems: list[Any] = []
        for name, part in cls.parts(config).items():
            if not training_set.offers(part.kind.needs(part.settings)):
                continue  # refused where the set is opened
            try:
                settled = part.kind.settled(part.settings, training_set)
            except ConfigError as error:
                problems += [cls.placed(problem, name) for problem in error.problems]
                continue
            if settled is not part.settings:
                config = cls.with_settings(config, old=part.settings, new=settled)
        if problems:
            raise ConfigError(problems)
        return config

    @classmethod
    def placed(cls, problem: Problem | str, name: str) -> Problem | str:
        """Return what is wrong with an objective's settings under their whole key."""
        if isinstance(problem, str):
            return problem
        place = cls.section if cls.is_preset else f"{cls.section}.{name}"
        return problem.under(place)

    @classmethod
    def with_settings(cls, config: Any, *, old: Any, new: Any) -> Any:
        """Return the settings with an objective's replaced; a preset of one has no others."""
        if old is config:
            return new
        name = next(name for name, value in vars(config).items() if value is old)
        return replace(config, **{name: new})

    def build(self, levels: Sequence[Level], *, image_size: tuple[int, int], seed: int) -> None:
        """Build the objectives, the last one first: so do checkpoints have them."""
        self.chosen = self.parts(self.config)
        built: dict[str, Objective] = {}
        for name, part in reversed(self.chosen.items()):
            own = seed if self.is_preset else seed + zlib.crc32(name.encode())
            with torch.random.fork_rng(devices=[]):  # its weights do not depend on the others
                torch.manual_seed(own)
                built[name] = part.kind(
                    part.settings,
                    student=self.student,
                    levels=levels,
                    image_size=image_size,
                    seed=own,
                )
        self.objectives = nn.ModuleDict(built)
        for objective in built.values():
            objective.meet(built)
        terms = {
            name: {term: part.weight * weight for term, weight in built[name].weights().items()}
            for name, part in self.chosen.items()
        }
        check_weights(terms, section=self.section, apart=not self.is_preset)
        # All ranks push the same rows: DistributedDataParallel need not send them round.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self,
            [
                f"{name}.{buffer}"
                for name, module in self.named_modules()
                if isinstance(module, (AnchorQueue, MemoryBank))
                for buffer, _ in module.named_buffers()
            ],
        )
        self.seen = type(self).needs(self.config).views
        self.views, self.several = len(self.seen), len(built) > 1
        over_batch = dict.fromkeys(one.over_batch for one in built.values() if one.over_batch)
        self.over_batch = ", ".join(over_batch)
        self.fixed_rate = tuple(
            f"{PLACE}{name}.{begin}" for name, one in built.items() for begin in one.fixed_rate
        )
        if self.is_preset:
            self.register_state_dict_post_hook(_shorten)
            self.register_load_state_dict_pre_hook(_lengthen)

    def prepare(self, training_set: TrainingSet) -> None:
        """Let every objective look at the training set."""
        for objective in self._each():
            objective.prepare(training_set)

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" and, by name, every objective's terms of one batch.

        Args:
            images: (B, 3, H, W), normalised.
            targets: level name to the recorded features (B, C, h, w); "label" to int64 (B,).
        """
        shown: dict[str, Tensor] = {}
        maps: dict[str, Sequence[Tensor]] = {}
        for view in self.seen:
            shown[view] = self.show(view, images, targets)
            maps[view] = self.student(shown[view])
        pooled = {view: of[-1].float().mean(dim=(2, 3)) for view, of in maps.items()}
        batch = Batch(images=shown, targets=targets)
        terms: dict[str, Tensor] = {}
        told: dict[str, Tensor] = {}
        total = None
        for name, part in self.chosen.items():
            losses = self.objectives[name](maps, pooled, batch)
            weighted = part.weight * losses["loss"]
            total = weighted if total is None else total + weighted
            begin = f"{name}." if self.qualified else ""
            terms |= {f"{begin}{term}": value for term, value in losses.items()}
            if self.measuring:
                told |= self._measure(name, losses, maps)
        assert total is not None
        return {**terms, "loss": total, **told}

    def show(self, view: str, images: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return what the student sees in a view."""
        if view == IMAGE:
            return images
        for objective in self._each():
            shown = objective.show(view, images, targets)
            if shown is not None:
                return shown
        augment = self.augment(self.config)
        assert augment is not None, "a method whose objectives need random views says how"
        is_real = view in (REAL_FIRST, REAL_SECOND)
        return random_view(
            targets[REAL] if is_real else images,
            augment,
            mean=self.student.mean,
            std=self.student.std,
            shared=not is_real and self.shares_draws(self.config),
        )

    def keep(self, folder: Path) -> None:
        """Let the objectives write what is worth keeping."""
        for objective in self._each():
            objective.keep(folder)

    def before_step(self, *, measured: bool) -> None:
        """Tell the objectives that a step begins."""
        super().before_step(measured=measured)
        for objective in self._each():
            objective.before_step()

    def after_step(self) -> None:
        """Tell the objectives that a step was taken."""
        for objective in self._each():
            objective.after_step()

    def _each(self) -> list[Objective]:
        return [self.objectives[name] for name in self.chosen]  # pyright: ignore

    def _measure(
        self, name: str, terms: Mapping[str, Tensor], maps: Mapping[str, Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return each term's weight, and the norm of its gradient at the deepest maps."""
        deepest = [each[-1] for each in maps.values()]
        told = {}
        for term, weight in self.objectives[name].weights().items():  # pyright: ignore
            key = f"{name}.{term}" if self.qualified else term
            told[f"{GRADIENT}{key}"] = gradient_norm(terms[term], deepest)
            whole = self.chosen[name].weight * weight
            told[f"{WEIGHT}{key}"] = torch.full_like(terms[term], whole).detach()
        return told


def _owners(method: Composite) -> dict[str, str]:
    """Say which objective has a head (or tensor) of a name."""
    owners = {}
    for name, objective in method.objectives.items():
        own = (objective._modules, objective._parameters, objective._buffers)
        owners |= {child: name for group in own for child in group}
    return owners


def _shorten(method: Composite, state: dict[str, Any], prefix: str, _: object) -> None:
    """Leave the objectives' names out of a preset's tensors: those of a head are enough."""
    for key in list(state):
        rest = key.removeprefix(f"{prefix}{PLACE}")
        if rest != key:
            state[prefix + rest.partition(".")[2]] = state.pop(key)


def _lengthen(method: Composite, state: dict[str, Any], prefix: str, *_: object) -> None:
    owners = _owners(method)
    for key in list(state):
        head = key.removeprefix(prefix).partition(".")[0]
        if key.startswith(prefix) and head in owners:
            name = f"{prefix}{PLACE}{owners[head]}.{key.removeprefix(prefix)}"
            state[name] = state.pop(key)
