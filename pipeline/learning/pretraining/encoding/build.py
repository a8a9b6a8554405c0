"""Build an encoder's run; whatever is wrong with its generator or images is told here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import stage
from pipeline.images.source import ImageConfig, ImageSource
from pipeline.learning.pretraining.adversarial.kept import Recipe
from pipeline.learning.pretraining.adversarial.objective import Facts
from pipeline.learning.pretraining.batches import Batches
from pipeline.learning.pretraining.data import TrainingImages
from pipeline.learning.pretraining.encoding.config import PosthocConfig
from pipeline.learning.pretraining.encoding.frozen import find_target, open_perceptual
from pipeline.learning.pretraining.encoding.objective import EncoderObjective
from pipeline.learning.pretraining.encoding.run import (
    EncoderBatches,
    EncoderRun,
    keep_back,
    real_count,
)
from pipeline.teachers.base import guesses, say

if TYPE_CHECKING:
    from accelerate import Accelerator

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Asked:
    """Say what a run is asked for; the fields are settings of the same names, `own` its section."""

    own: PosthocConfig
    generator: str
    image: ImageConfig
    batch_size: int
    seed: int
    licence: str


class Encoding:
    """Know a run's generator and perceptual network, and build the rest of it.

    Args:
        asked: the settings.
        accelerator: the processes.
        source: real images; None for none.

    Raises: ConfigError, TeacherError: as `find_target` and `open_perceptual`; images of another
        size, or without the classes that the generator is told.
    """

    def __init__(self, asked: Asked, accelerator: Accelerator, source: ImageSource | None) -> None:
        self._asked, self._accelerator, self._source = asked, accelerator, source
        self.target, ranks = find_target(asked.generator, asked.own), accelerator.num_processes
        self._real = real_count(asked.batch_size, asked.own.real_share, ranks)
        if problems := self._image_problems():
            raise ConfigError(problems)
        self._perceptual = open_perceptual(asked.own, self.target, accelerator.device)
        if accelerator.is_main_process:
            say(guesses(self.target.known.flags))
            if self._perceptual is None:
                stage(
                    "pretrain encoder: encoder.perceptual.path names no network: the perceptual "
                    "distance is OFF"
                )

    def _image_problems(self) -> list[Problem]:
        """Say where real images are not what the generator makes."""
        target, source, image = self.target, self._source, self._asked.image
        problems = []
        if source is None:
            return problems
        if image.shape != target.known.image_size:
            got, own = (
                "x".join(map(str, size)) for size in (image.shape or (), target.known.image_size)
            )
            hint = f"Set image.size to {target.side}."
            problems.append(Problem("image.size", got, f"{own}, the generator's", hint))
        if target.classes and not source.has_labels:
            allowed = f"images with labels: the generator is told one of {target.classes} classes"
            problems.append(Problem("source", "images without labels", allowed))
        return problems

    @property
    def licence(self) -> str:
        """Return the licence of what is made: as the settings say, else the generator's."""
        told = self._asked.licence
        return self.target.known.licence if told == UNKNOWN else told

    def recipe(self, recipe: Recipe) -> Recipe:
        """Add to a run's recipe what its networks are, in place of where they lie."""
        settings = {
            name: value
            for name, value in recipe.settings.items()
            if name != "encoder.perceptual.path"
            and (self._source is not None or not name.startswith("image."))
        }
        own = {"network": self.target.layout.network, "latent": self.target.layout.latent}
        settings |= {f"encoder.{name}": value for name, value in own.items()}
        settings["generator"] = self.target.known.fingerprint["weights"]
        perceptual = self._perceptual
        settings["encoder.perceptual"] = None if perceptual is None else perceptual.fingerprint
        return Recipe(dict(sorted(settings.items())), recipe.source)

    def parts(
        self, *, half: bool
    ) -> tuple[EncoderBatches, EncoderObjective, Callable[..., EncoderRun]]:
        """Build batches, the objective, and what runs them.

        Args:
            half: compute the encoder in bfloat16.

        Raises: ConfigError: fewer real images than a batch has, or classes that there are not.
        """
        asked, engine = self._asked, self._accelerator
        ranks, real, kept = engine.num_processes, None, None
        if self._source is not None:
            images = TrainingImages(self._source, config=asked.image, seed=asked.seed)
            kept = keep_back(images, asked.own.held_out, device=engine.device)
            self._check_usable(images)
            real = Batches(
                images=images, seed=asked.seed, batch_size=self._real, rank=engine.process_index,
                ranks=ranks, device=engine.device, labels=self.target.classes > 0, noise=False,
            )  # fmt: skip
        batches = EncoderBatches(asked.batch_size, engine.process_index, ranks, engine.device, real)
        facts = Facts(
            side=self.target.side, classes=self.target.classes, batch_size=asked.batch_size,
            seed=asked.seed, device=engine.device, half=half,
        )  # fmt: skip
        objective = EncoderObjective(asked.own, facts, self.target, self._perceptual)
        return batches, objective, functools.partial(EncoderRun, real=kept)

    def _check_usable(self, images: TrainingImages) -> None:
        from pipeline.learning.pretraining.network import count_classes

        usable = int(images.valid.sum())
        problems = []
        if usable < self._real:
            allowed = f"1..{usable}, the images left to train on"
            problems.append(Problem("batch_size", f"{self._real} real images", allowed))
        assert self._source is not None
        if self.target.classes and (known := count_classes(self._source)) > self.target.classes:
            allowed = f"0..{self.target.classes - 1}, the generator's"
            problems.append(Problem("source", f"labels up to {known - 1}", allowed))
        if problems:
            images.close()
            raise ConfigError(problems)
