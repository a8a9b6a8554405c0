"""Choose where and when to read a diffusion teacher: criteria of every tap at every timestep.

A pass per timestep over some hundred images sees every candidate tap. With labels, linear probes of
all taps and timesteps are fitted together. Without, the images are looked at in four turns, and a
linear probe is asked which turn a tap's features are of: what knows up from down knows what is
there. The share of high spatial frequencies is shown beside it and decides nothing.

Shapes: N images, T timesteps, C channels, cells h x w, K classes, F folds, R turns.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.teachers.recording.teacher import NetworkDescription
from storage.schema import Level

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.teachers.diffusion.teacher import DiffusionTeacher

SHARES = (0.0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4)
"""Candidate timesteps, as shares of the schedule."""
DECODER = re.compile(r"mid|middle_block|up\.\d+\.\d+|output_blocks\.\d+|block\.\d+|blocks\.\d+")
HIGH = 0.25
"""Cycles per cell from which on a frequency is high: half of the highest."""
TURN_STRENGTH, TURN_STEPS = 0.01, 200
"""Of the probes of turns: inverse strength of regularisation, steps at most (count)."""
FOLDS, STEPS, RATE, DECAY = 3, 120, 0.05, 1e-3
"""Of the probes: every image is judged by one that was fitted to the other folds."""
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Curves:
    """Hold what was found of every tap at every timestep.

    Args:
        timesteps: T, ascending.
        high: tap -> T shares of the power at high spatial frequencies, 0..1.
        turns: tap -> T mean log-likelihoods of the right turn; empty with labels.
        accuracy: tap -> T percentages found by linear probes; empty without labels.
    """

    timesteps: Sequence[int]
    high: dict[str, list[float]] = field(default_factory=dict)
    turns: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)

    @property
    def criterion(self) -> dict[str, list[float]]:
        """What decides: accuracy where there are labels, else how well turns are told."""
        return self.accuracy or self.turns

    def best(self) -> tuple[str, int]:
        """Return the tap and the timestep to read; of equal ones the most noise."""
        by_name = self.criterion
        tap = max(by_name, key=lambda name: max(by_name[name]))
        values = by_name[tap]
        return tap, self.timesteps[max(n for n, value in enumerate(values) if value == max(values))]

    def memorised(self) -> bool:
        """Tell whether the chosen tap is the best without noise and gets worse with every level.

        Labels are needed to tell: turns are told the better the less noise there is, at some taps.
        """
        values = self.accuracy.get(self.best()[0], [])
        return len(values) > 2 and all(a > b for a, b in itertools.pairwise(values))


class _Means(dict[str, "Tensor"]):
    """Take the maps of a batch as they are recorded; keep their means and the high share."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled: dict[str, list[Tensor]] = {}
        self.high: dict[str, list[float]] = {}

    def __setitem__(self, name: str, value: Tensor) -> None:
        maps = value.float()
        pooled = maps.flatten(2).mean(2) if maps.dim() > 2 else maps
        self.pooled.setdefault(name, []).append(pooled)
        self.high.setdefault(name, []).append(high_share(maps) if maps.dim() == 4 else 0.0)


def high_share(maps: Tensor) -> float:
    """Return the share of maps' power, but for their means, at high spatial frequencies.

    Args:
        maps: float32 (N, C, h, w).

    Source: A-SelecT (arXiv 2603.25758), the high-frequency ratio.
    """
    import torch

    power = torch.fft.rfft2(maps).abs().square()
    power[..., 0, 0] = 0
    down = torch.fft.fftfreq(maps.shape[-2], device=maps.device)
    across = torch.fft.rfftfreq(maps.shape[-1], device=maps.device)
    high = (down[:, None].square() + across.square()).sqrt() >= HIGH
    # rfft2 leaves out the mirrored half of the spectrum: its columns count twice.
    twice = torch.where((across == 0) | (across == 0.5), 1.0, 2.0)
    total = (power * twice).sum((2, 3))
    share = (power * twice * high).sum((2, 3)) / total.clamp_min(1e-12)
    return float(share.mean())


def turn_likelihood(features: Tensor) -> float:
    """Return the mean log-likelihood of the right turn by probes that did not see the image.

    Multinomial logistic regression on standardised features, `FOLDS` folds by image; chance is
    -log R.

    Args:
        features: float32 (R, N, C), the same images in every turn.

    Source: the pretext task of RotNet (Gidaris et al. 2018), here as a criterion.
    """
    from sklearn.linear_model import LogisticRegression

    turns, count, width = features.shape
    x = _standardised(features.reshape(-1, width)).cpu().double().numpy()
    y, fold = np.repeat(np.arange(turns), count), np.tile(np.arange(count) % FOLDS, turns)
    total = 0.0
    for held in range(FOLDS):
        probe = LogisticRegression(C=TURN_STRENGTH, max_iter=TURN_STEPS)
        probe.fit(x[fold != held], y[fold != held])
        told = probe.predict_log_proba(x[fold == held])
        total += float(told[np.arange(len(told)), y[fold == held]].sum())
    return total / len(x)


def probe_together(features: Tensor, labels: Tensor, *, classes: int) -> list[float]:
    """Fit linear probes of one tap at all timesteps and folds at once.

    Args:
        features: float32 (T, N, C).
        labels: int64 (N,).
        classes: K.

    Returns:
        T percentages of images found by the probe that was fitted without them.
    """
    import torch
    from torch.nn import functional as F

    times, count, width = features.shape
    x = torch.stack([_standardised(each) for each in features])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    fold = torch.empty(count, dtype=torch.int64)
    fold[order] = torch.arange(count) % FOLDS
    kept = (fold.to(x.device) != torch.arange(FOLDS, device=x.device)[:, None]).float()  # (F, N)
    weight = torch.zeros(times, width, FOLDS * classes, device=x.device, requires_grad=True)
    bias = torch.zeros(times, 1, FOLDS * classes, device=x.device, requires_grad=True)
    solver = torch.optim.Adam([weight, bias], lr=RATE)

    def logits() -> Tensor:
        return (x @ weight + bias).view(times, count, FOLDS, classes)

    target = labels.view(1, count, 1).expand(times, count, FOLDS)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(STEPS):
            solver.zero_grad()
            losses = F.cross_entropy(logits().permute(0, 3, 1, 2), target, reduction="none")
            loss = (losses * kept.T).sum() / kept.sum() * FOLDS + DECAY * weight.square().sum()
            loss.backward()
            solver.step()
    with torch.no_grad():
        right = (logits().argmax(3) == target).float() * (1 - kept.T)
    return [100 * float(value) for value in right.sum((1, 2)) / count]


def candidate_taps(known: NetworkDescription) -> list[str]:
    """Return the taps worth trying: the middle and every decoder layer, or what aliases name."""
    names = [tap.name for tap in known.taps if tap.module and DECODER.fullmatch(tap.name)]
    return names or list(dict.fromkeys(known.aliases.values()))


def candidate_timesteps(count: int) -> list[int]:
    """Return the timesteps worth trying of a schedule of so many, ascending."""
    return sorted({int(share * count) for share in SHARES})


def read_curves(
    teacher: DiffusionTeacher,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    batch: int,
    progress: Callable[[int], object],
) -> Curves:
    """Look at images at every tap and timestep that a teacher was opened with.

    Args:
        teacher: whose levels are maps, one draw each.
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), or None.
        batch: images of a pass (count).
        progress: told how many images are done, of N times `number_of_turns`.
    """
    import torch

    pooled: list[dict[str, Tensor]] = []
    high: dict[str, float] = {}
    for turn in _turns(images, labels):
        means = _Means()
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                rows = np.rot90(images[start : start + batch], turn, (1, 2)).copy()
                on_device = torch.from_numpy(rows).to(teacher.device)
                teacher.record_images(means, on_device, np.arange(start, start + len(rows)))
                progress(len(rows))
        pooled.append({name: torch.cat(parts) for name, parts in means.pooled.items()})
        high = high or {name: float(np.mean(parts)) for name, parts in means.high.items()}
    return _curves(teacher.levels, pooled, high, labels)


def number_of_turns(images: np.ndarray, labels: np.ndarray | None) -> int:
    """Say in how many turns images are looked at."""
    return len(_turns(images, labels))


def _turns(images: np.ndarray, labels: np.ndarray | None) -> list[int]:
    """Return quarter turns: none where labels decide; half a turn keeps a rectangle's shape."""
    if labels is not None:
        return [0]
    return [0, 1, 2, 3] if images.shape[1] == images.shape[2] else [0, 2]


def _curves(
    levels: Sequence[Level],
    pooled: Sequence[Mapping[str, Tensor]],
    high: Mapping[str, float],
    labels: np.ndarray | None,
) -> Curves:
    import torch

    timesteps = sorted({level.timestep for level in levels})
    curves = Curves(timesteps)
    for tap in dict.fromkeys(level.tap for level in levels):
        own = sorted((lv for lv in levels if lv.tap == tap), key=lambda level: level.timestep)
        curves.high[tap] = [high[level.name] for level in own]
        if labels is None:
            seen = [torch.stack([each[level.name] for each in pooled]) for level in own]
            curves.turns[tap] = [turn_likelihood(features) for features in seen]
        else:
            features = torch.stack([pooled[0][level.name].clone() for level in own])
            truth = torch.from_numpy(labels).to(features.device)
            classes = int(labels.max()) + 1
            curves.accuracy[tap] = probe_together(features, truth, classes=classes)
    return curves


def format_curves(curves: Curves) -> str:
    """Draw the curves as text: a table and a line of bars per tap for each number."""
    titles = {
        "log-likelihood of an image's turn, by probes that did not see it": (
            curves.turns,
            "{:.3f}",
        ),
        "share of high spatial frequencies": (curves.high, "{:.3f}"),
        "linear probe, % of images it was not fitted to": (curves.accuracy, "{:.1f}"),
    }
    lines = []
    for title, (table, form) in titles.items():
        if not table:
            continue
        lines += [title, f"{'tap':<18}" + "".join(f"{f't {t}':>8}" for t in curves.timesteps)]
        low = min(min(row) for row in table.values())
        high = max(max(row) for row in table.values())
        for tap, row in table.items():
            shown = "".join(f"{form.format(value):>8}" for value in row)
            places = [(value - low) / ((high - low) or 1) * (len(BARS) - 1) for value in row]
            lines.append(f"{tap:<18}{shown}  {''.join(BARS[round(place)] for place in places)}")
        lines.append("")
    return "\n".join(lines)


def _standardised(features: Tensor) -> Tensor:
    return (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
