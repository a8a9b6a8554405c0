"""The training of an encoder: batches of positions and real images, its sheet, its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dreamshard.config.words import command_line
from dreamshard.errors import ConfigError, Problem
from dreamshard.pictures import image_grid
from dreamshard.progress import stage
from pipeline.learning.pretraining.adversarial.bigbigan.measure import relative_l1
from pipeline.learning.pretraining.adversarial.run import AdversarialRun
from pipeline.learning.pretraining.batches import Batch, Batches
from pipeline.learning.pretraining.data import TrainingImages
from pipeline.learning.pretraining.encoding import losses
from pipeline.learning.pretraining.encoding.objective import PART, EncoderObjective, held_out
from pipeline.learning.pretraining.watch import CELL
from pipeline.teachers.pixels import signed

COLUMNS = 8
"""Images in a row of the sheet; below each row are its reconstructions."""
MOST_HELD_OUT = 0.1
"""Share of the real images that is held out at most."""
Real = tuple[Tensor, Tensor | None]
"""Images (N, 3, H, W) in [-1, 1], and their classes."""


@dataclasses.dataclass(frozen=True)
class EncoderBatches:
    """Prepare one rank's share of every batch: positions of samples to generate, real images.

    Args:
        batch_size: of all ranks, real ones included (count).
        rank, ranks: this process and how many there are.
        device: where real images go.
        real: batches of real images; None for none.
    """

    batch_size: int
    rank: int
    ranks: int
    device: torch.device
    real: Batches | None

    @property
    def images(self) -> TrainingImages | None:
        """The real images."""
        return None if self.real is None else self.real.images

    def between(self, done: int, end: int) -> Generator[Batch, None, None]:
        """Yield the batches of the steps after `done` up to `end`."""
        whole = self.batch_size - (self.real.batch_size if self.real else 0)
        share = whole // self.ranks
        nothing = Batch(torch.zeros(0, 3, 1, 1, device=self.device), torch.zeros(0), None, range(0))
        real = self.real.between(done, end) if self.real else None
        for step in range(done, end):
            batch = nothing if real is None else next(real)
            start = step * whole + share * self.rank
            yield dataclasses.replace(batch, positions=range(start, start + share))


def keep_back(images: TrainingImages, count: int, *, device: torch.device) -> Real:
    """Take evenly spread real images out of the training; return them.

    Args:
        images: changed: those taken never come up.
        count: how many, of up to a tenth.
        device: where they go.
    """
    rows = np.flatnonzero(images.valid)
    count = max(2, min(count, int(len(rows) * MOST_HELD_OUT)))
    rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    pixels, labels = images.batch(rows, [int(row) for row in rows])
    images.valid[rows] = False
    told = None if labels is None else torch.from_numpy(labels).to(device)
    return signed(torch.from_numpy(pixels).to(device)), told


def real_count(batch_size: int, share: float, ranks: int) -> int:
    """Return how many images of a batch are real.

    Raises: ConfigError where that, or the rest, is no equal number for every process.
    """
    count = round(batch_size * share)
    if 0 < share < 1 and (count in (0, batch_size) or count % ranks):
        allowed = f"a share of {batch_size} images that is a multiple of {ranks}, and not all"
        raise ConfigError(Problem("encoder.real_share", f"{share:g}", allowed))
    return count


class EncoderRun(AdversarialRun):
    """Train an encoder; see `AdversarialRun`.

    Args:
        real: real images that are held out; None for none.
    """

    def __init__(self, *told: Any, real: Real | None, **named: Any) -> None:
        super().__init__(*told, **named)
        self.real = real

    @property
    def _encoder(self) -> EncoderObjective:
        return cast(EncoderObjective, self.objective)

    def _sheet(self, path: Path) -> None:
        """Draw rows of images, generated and real, with their reconstructions below."""
        count = min(self.plan.num_samples, self._encoder.config.held_out)
        columns = min(COLUMNS, count)
        rows = range(count - count % columns)
        pairs = [self._encoder.pairs(self.players.averages, rows)]
        if self.real is not None:
            images, labels = (None if x is None else x[: len(rows)] for x in self.real)
            assert images is not None
            told = self._encoder.generator.labels_of_real(labels, len(images))
            again = self._encoder.reconstruct(self.players.averages, images, told)[1]
            pairs.append((_pixels(images), _pixels(again)))
        strips = [
            each[at : at + columns]
            for pair in pairs
            for at in range(0, len(pair[0]) - len(pair[0]) % columns, columns)
            for each in pair
        ]
        width = strips[0].shape[2]
        cell = width * max(1, CELL // width)
        picture = image_grid(np.concatenate(strips), columns=columns, cell_px=cell, gap_px=1)
        path.write_bytes(picture)

    def _examine(self) -> dict[str, float]:
        """Measure errors on samples, and real images, that were never trained on; say them."""
        config, side = self._encoder.config, self._encoder.generator
        numbers = range(config.held_out)
        figures: dict[str, float] = {}
        if config.real_share < 1:
            images, latents, labels = _stacked(
                [side.draw(held_out(part)) for part in _parts(numbers)]
            )
            assert latents is not None
            figures |= self._errors(images, labels, latents)
        if self.real is not None:
            images, told = self.real
            labels = side.labels_of_real(told, len(images))
            errors = self._errors(images, labels, None)
            figures |= {f"{REAL}{name}": value for name, value in errors.items()}
        own = {name: value for name, value in figures.items() if not name.startswith(REAL)}
        real = {name[len(REAL) :]: v for name, v in figures.items() if name.startswith(REAL)}
        for what, errors in (("generated", own), ("real", real)):
            if errors:
                told = (f"{NAMES[name]} {value:.4g}" for name, value in errors.items())
                stage(f"held out, {what}: {', '.join(told)}")
        return figures

    def _errors(
        self, images: Tensor, labels: Tensor | None, latents: Tensor | None
    ) -> dict[str, float]:
        latent, again = [], []
        for part in _parts(range(len(images))):
            rows = slice(part.start, part.stop)
            told = None if labels is None else labels[rows]
            one = self._encoder.reconstruct(self.players.averages, images[rows], told)
            latent.append(one[0])
            again.append(one[1])
        whole = torch.cat(again)
        errors = {
            "relative_l1": relative_l1(images, whole),
            "l1": float(losses.pixel_distance(images, whole)),
        }
        if latents is not None:
            predicted = torch.cat(latent)
            error = float(losses.latent_distance(latents, predicted))
            spread = float((latents - latents.mean(0)).square().mean())
            errors |= {"latent_mse": error, "latent_error": error / max(spread, 1e-12)}
        return errors

    def _next(self) -> tuple[str, ...]:
        """Spell how to look at the teacher and to record real images with it."""
        folder = str(self.plan.folder)
        space = self._encoder.target.layout.latent
        name = {"z": "e.z", "w": "e.w", "w_plus": "e.ws"}[space]
        words = ("--teacher.kind", "encoder", "--teacher.path", folder)
        return (
            command_line("dreamshard", "inspect", "teacher", folder, "--kind", "encoder"),
            command_line("dreamshard", "encode", *words, "--teacher.levels", f"[e.avepool,{name}]"),
        )


REAL = "real_"
"""Beginning of the names of errors of real images."""
NAMES: Mapping[str, str] = {
    "relative_l1": "relative L1 (1: no nearer than to another image)",
    "l1": "L1 in [-1, 1]",
    "latent_mse": "squared error of latents",
    "latent_error": "as a share of their variance",
}


def _pixels(images: Tensor) -> np.ndarray:
    from pipeline.teachers.pixels import to_uint8

    return to_uint8(images).cpu().numpy()


def _parts(numbers: range) -> list[range]:
    return [numbers[at : at + PART] for at in range(0, len(numbers), PART)]


def _stacked(parts: list[Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    images, latents, labels = (
        None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)
    )
    assert images is not None
    return images, latents, labels
