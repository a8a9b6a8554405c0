"""Representations of probe images: pixels, a teacher's pooled features, a student before and after.

Shapes: N images, D features. Every extractor maps uint8 images (N, H, W, 3) and their numbers to
float32 (N, D).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from distill.probes.knn import choose_scalings
from distill.probes.logistic import choose
from distill.probes.scaling import SCALINGS, Scaling, scaled
from distill.students.card import StudentCard
from distill.students.normalise import Normaliser
from distill.students.student import Student
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import Progress
from pipeline.images.pair import require_labels, say_unusable

if TYPE_CHECKING:
    from pipeline.images.inputs import ImageInput
    from pipeline.teachers.base import Teacher

BATCH = 256
"""Images whose statistics are measured at once (count)."""
VOTERS, MANY = 5, 100
"""Labels or neighbours that decide between statistics; classes from which it is neighbours."""
Statistics = Literal["initial", "measured"]
Extractor = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pixels(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the pixels themselves, 0..1."""
    return (images.reshape(len(images), -1) / np.float32(255)).astype(np.float32)


def student_extractor(
    student: Student, *, device: torch.device, pool: Literal["all", "last"] = "all"
) -> Extractor:
    """Pool each of a student's maps over space and join them, finest first.

    Args:
        student: put on the device and into evaluation mode.
        device: where it runs.
        pool: all maps, or the deepest alone.
    """
    student.to(device).eval()
    normalise = Normaliser(student.mean, student.std, device=device)

    @torch.inference_mode()
    def extract(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        maps = student(normalise(images))[-1 if pool == "last" else 0 :]
        return torch.cat([m.float().mean(dim=(2, 3)) for m in maps], dim=1).cpu().numpy()

    return extract


@torch.no_grad()
def measure_statistics(student: Student, images: np.ndarray, *, device: torch.device) -> Student:
    """Give a student's batch norms the means and variances that images have in it.

    Args:
        student: changed in place; weights stay as they are.
        images: uint8 (N, H, W, 3); the averages are over batches.
        device: where it runs.

    Returns:
        The student, in evaluation mode.
    """
    norms = [m for m in student.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    student.to(device).eval()
    normalise = Normaliser(student.mean, student.std, device=device)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average
    whole = len(images) - len(images) % BATCH or len(images)  # a last batch of few would weigh most
    for start in range(0, whole if norms else 0, BATCH):
        student(normalise(images[start : start + BATCH]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return student.eval()


def stronger_untrained(
    student: Student,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    device: torch.device,
    pool: Literal["all", "last"],
    seed: int,
) -> tuple[Student, Statistics]:
    """Return an untrained student with the batch statistics that make it the stronger baseline.

    Measured statistics help on photographs and cost on digits, whose batch norms then blow up what
    hardly varies: training images decide, by linear probes on a few of their labels, or by nearest
    neighbours where there are many classes.

    Args:
        student: as it was initialised; left alone.
        images: uint8 (N, H, W, 3), training images to measure on.
        labels: int64 (N,); None, or unknown ones among them: measured statistics are taken.
        device: where it runs.
        pool: of its features.
        seed: of the images that decide.
    """
    measured = measure_statistics(copy.deepcopy(student), images, device=device)
    if labels is None or (labels < 0).any() or len(images) < 2:
        return measured, "measured"
    scores = []
    for network in (student, measured):
        extract = student_extractor(network, device=device, pool=pool)
        starts = range(0, len(images), BATCH)
        parts = [extract(images[start : start + BATCH], labels) for start in starts]
        scores.append(_worth(np.concatenate(parts), labels, seed=seed))
    return (measured, "measured") if scores[1] > scores[0] else (student, "initial")


def _worth(features: np.ndarray, labels: np.ndarray, *, seed: int) -> float:
    """Return how well training samples tell each other's classes, 0..1."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) > MANY or counts.min() < 2:
        ((_, accuracy),) = choose_scalings(features, labels, ks=[VOTERS], seed=seed)
        return accuracy
    forms: dict[Scaling, np.ndarray] = {
        scaling: scaled(scaling, features, features)[0] for scaling in SCALINGS
    }
    shots = min(VOTERS, int(counts.min()) - 1)
    return choose(forms, labels, shots=shots, strengths=[10.0, 100.0], draws=3, seed=seed).accuracy


def teacher_extractor(teacher: Teacher, *, card: StudentCard) -> Extractor:
    """Pool the teacher's maps of the levels a student was trained on, in the same order.

    Args:
        teacher: loaded, to be given whole micro-batches.
        card: the student's.

    Raises:
        ConfigError: a level of the student's that the teacher was not asked for, or another
            teacher than the one it was distilled from.
    """
    names = [level.name for level in teacher.levels]
    missing = [name for name in card.levels if name not in names]
    if missing:
        hint = "Give the teacher.levels, timesteps and draws of the encode recipe."
        got = f"a teacher that records {', '.join(names)}"
        allowed = f"one that records the student's levels {', '.join(card.levels)}"
        raise ConfigError(Problem("teacher.levels", got, allowed, hint))
    distilled = card.provenance.get("teacher")
    if distilled != teacher.fingerprint:
        hint = "Give the path of that teacher, or leave it out of --representations."
        got, allowed = str(teacher.fingerprint), f"the student's own: {distilled}"
        raise ConfigError(Problem("teacher.path", got, allowed, hint))

    def extract(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        levels = teacher.encode(images, indices).levels
        pooled = [levels[name].astype(np.float32).mean(axis=(2, 3)) for name in card.levels]
        return np.concatenate(pooled, axis=1)

    return extract


def embed(
    images: np.ndarray,
    *,
    extractors: Mapping[str, Extractor],
    micro_batch: int,
    first_index: int = 0,
) -> dict[str, np.ndarray]:
    """Run every extractor over images in memory; the last micro-batch is padded.

    Args:
        images: uint8 (N, H, W, 3), N at least 1.
        extractors: by name.
        micro_batch: images per call.
        first_index: number of the first image, which decides a teacher's noise.

    Returns:
        Features float32 (N, D) by name.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    for start in range(0, len(images), micro_batch):
        numbers = np.minimum(np.arange(start, start + micro_batch), len(images) - 1)
        for name, extract in extractors.items():
            features = extract(images[numbers], numbers + first_index)
            rows[name].append(features[: len(images) - start])
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def extract_all(
    source: ImageInput,
    *,
    key: str,
    extractors: Mapping[str, Extractor],
    micro_batch: int,
    first_index: int,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run every extractor over a source's images; unusable images are left out, and it is said.

    Args:
        source: prepared images with labels.
        key: dotted key of the source, for messages.
        extractors: by name.
        micro_batch: images per call; the last call is padded.
        first_index: number of the first image, which decides a teacher's noise.
        progress: counts images.

    Returns:
        Features float32 (N, D) by name, and labels int64 (N,).

    Raises:
        DataError: images without labels, or none that can be used.
    """
    errors: dict[str, str] = {}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    labels = []
    for work in source.works(0, source.num_samples or 0, micro_batch=micro_batch):
        assert work.images is not None and work.valid is not None
        found = None if work.labels is None else work.labels[work.valid]
        names = [work.keys[row] for row in np.flatnonzero(work.valid)]
        labels.append(require_labels(found, key=key, keys=names, total=source.num_samples or 0))
        errors |= {work.keys[row]: error for row, error in work.errors.items()}
        for name, extract in extractors.items():
            features = extract(work.images, work.indices + first_index)
            rows[name].append(features[: work.count][work.valid])
        progress.update(work.count)
    say_unusable(errors, total=source.num_samples or 0, key=key)
    return {name: np.concatenate(parts) for name, parts in rows.items()}, np.concatenate(labels)
