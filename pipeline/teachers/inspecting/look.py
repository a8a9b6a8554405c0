"""Run a teacher on a few samples: which channels dominate each level, and a contact sheet of maps.

Shapes: N samples, C channels, cells h x w of a level.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from dreamshard.errors import TeacherError
from dreamshard.pictures import feature_rgb
from pipeline.teachers.base import Scalar, Teacher
from pipeline.teachers.door import open_teacher
from storage.schema import FeatureBatch, Level

STRONGEST = 10
"""Channels named per level."""
FEW = 0.01
"""Share of the channels, one at least, that may not hold most of a level's energy."""
MOST = 0.5
MICRO_BATCH = 4
CELL, MARGIN, GAP = 128, 150, 4
"""Pixels of a picture on the sheet, of the names beside them, between them."""


@dataclass(frozen=True)
class Seen:
    """What a teacher gave of some samples.

    Args:
        images: uint8 (N, H, W, 3).
        levels: what was recorded, in order.
        values: level name -> (N, *shape).
        drawn: whether the images are samples of the teacher's own.
    """

    images: np.ndarray
    levels: tuple[Level, ...]
    values: dict[str, np.ndarray]
    drawn: bool


@dataclass(frozen=True)
class Energy:
    """How a level's energy is spread over its channels.

    Args:
        level: its name.
        strongest: (channel, share of the energy) of the strongest, falling.
        channels: of the level (count).
        few: channels that hold over half of it (count), the strongest first.
    """

    level: str
    strongest: list[tuple[int, float]] = field(default_factory=list)
    channels: int = 0
    few: int = 0

    @property
    def lopsided(self) -> bool:
        """Whether a hundredth of the channels, or a single one, holds most of the energy."""
        return self.few <= max(1, round(FEW * self.channels)) and self.channels >= STRONGEST


def look(
    path: str,
    *,
    kind: str,
    part: str = "",
    levels: Sequence[str] | None = None,
    settings: Mapping[str, Scalar],
    image_size: tuple[int, int] | None = None,
    samples: int,
    timesteps: Sequence[int] | None = None,
    encode: Callable[[Teacher], Iterable[FeatureBatch]] | None = None,
) -> Seen:
    """Run a teacher on samples of its own, or on images.

    Args:
        levels: names or aliases; None for the usual ones.
        settings: as `teacher.settings`; `seed` selects the samples, too.
        samples: how many.
        timesteps: of a diffusion teacher; None for the usual one.
        encode: gives the teacher images, and what it makes of them; None for its own samples.

    Raises:
        ConfigError, TeacherError: as when the teacher is loaded.
    """
    teacher = open_teacher(
        path,
        kind=kind,
        part=part,
        levels=levels,
        timesteps=timesteps,
        mode="encode" if encode else "synthesize",
        image_size=image_size,
        seed=int(cast(int, settings.get("seed", 0))),
        micro_batch=MICRO_BATCH,
        settings={name: value for name, value in settings.items() if name != "seed"},
    )
    starts = range(0, samples, MICRO_BATCH)
    batches = list(encode(teacher)) if encode else [_drawn(teacher, start) for start in starts]
    images = [batch.image for batch in batches if batch.image is not None]
    return Seen(
        images=np.concatenate(images)[:samples],
        levels=teacher.levels,
        values={
            level.name: np.concatenate([batch.levels[level.name] for batch in batches])[:samples]
            for level in teacher.levels
        },
        drawn=encode is None,
    )


def _drawn(teacher: Teacher, start: int) -> FeatureBatch:
    return teacher.synthesize(np.arange(start, start + MICRO_BATCH))


def energies(seen: Seen) -> list[Energy]:
    """Return how each level's energy is spread over its channels."""
    spread = []
    for level in seen.levels:
        values = seen.values[level.name].astype(np.float64)
        power = (values**2).mean(axis=tuple(i for i in range(values.ndim) if i != 1))
        total = float(power.sum())
        if not total:
            raise TeacherError(f"level {level.name}: every value is 0. Is this the right network?")
        order = np.argsort(-power, kind="stable")
        shares = power[order] / total
        few = int(np.searchsorted(np.cumsum(shares), MOST) + 1)
        strongest = [(int(c), float(s)) for c, s in zip(order[:STRONGEST], shares, strict=False)]
        spread.append(Energy(level.name, strongest, len(power), few))
    return spread


def format_energies(energies: Sequence[Energy]) -> str:
    """Format the strongest channels as text, a line per level, and what to beware of."""
    width = max(len("level"), *(len(each.level) for each in energies))
    lines = [f"{'level':<{width}} strongest channels (share of the level's energy)"]
    for each in energies:
        told = " ".join(f"{channel}:{share:.1%}" for channel, share in each.strongest)
        lines.append(f"{each.level:<{width}} {told}")
    for each in energies:
        if each.lopsided:
            some = "1 channel holds" if each.few == 1 else f"{each.few} channels hold"
            lines.append(
                f"warning: {each.level}: {some} over half of the energy of {each.channels} "
                "(massive activations): a regression learns little else. Take a tap behind a norm, "
                "such as block.k.norm or final."
            )
    return "\n".join(lines)


def contact_sheet(seen: Seen) -> bytes:
    """Draw samples and, below them, each map's first three principal components as colours.

    Returns: PNG bytes.
    """
    from PIL import Image, ImageDraw

    maps = [level for level in seen.levels if len(level.shape) == 3]
    rows = [("samples" if seen.drawn else "images", seen.images)]
    for level in maps:
        rows.append((level.name, feature_rgb(seen.values[level.name].astype(np.float32))))
    height, width = seen.images.shape[1:3]
    cell = (CELL, max(1, round(CELL * height / width)))
    size = (MARGIN + len(seen.images) * (cell[0] + GAP), len(rows) * (cell[1] + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, pictures) in enumerate(rows):
        top = number * (cell[1] + GAP)
        draw.text((4, top + 4), name, fill="black")
        draw.text((4, top + 18), _told(name, seen), fill="gray")
        for column, picture in enumerate(pictures):
            grows = picture.shape[1] < cell[0]
            way = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
            drawn = Image.fromarray(np.ascontiguousarray(picture)).resize(cell, way)
            sheet.paste(drawn, (MARGIN + column * (cell[0] + GAP), top))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _told(name: str, seen: Seen) -> str:
    level = next((level for level in seen.levels if level.name == name), None)
    if level is None:
        return f"{seen.images.shape[1]}x{seen.images.shape[2]} pixels"
    channels, rows, columns = level.shape
    return f"{channels} x {rows}x{columns}, stride {level.stride}"
