"""Fine-tuning: train the whole backbone with a classifier on it, on all or a few labels.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.bench.augment import crop_and_flip
from distill.bench.batches import (
    Images,
    class_labels,
    endless_rows,
    normalised,
    ordered_rows,
)
from distill.bench.bench import SUBJECT
from distill.bench.fitting import check_layers, fit
from distill.bench.layout import TextTable
from distill.probes.draws import fraction_draws
from dreamshard.errors import ConfigError, Problem
from pipeline.learning.device import on_device

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import FinetuneConfig
    from distill.students.student import Student


class Classifier(nn.Module):
    """A student and a linear classifier on its deepest map, averaged over space."""

    def __init__(self, student: Student, *, num_classes: int) -> None:
        super().__init__()
        self.student = student
        self.classify = nn.Linear(student.channels[-1], num_classes)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to float32 logits (B, K)."""
        return self.classify(self.student.pooled(images)).float()


class Finetune:
    """Train every network on the same labels, from the same seed, and judge it.

    Source: METHODS 4.4 (SparK's fine-tuning: layer decay, mixup, averaged weights).
    """

    def __init__(self, config: FinetuneConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        shares = ", ".join(f"{100 * share:g} %" for share in self.config.fractions)
        return f"fine-tuning on {shares} of the labels, {self.config.steps:,} steps"

    def count(self, bench: Bench) -> int:
        """Return how many steps `run` will report."""
        return len(bench.networks) * len(self.config.fractions) * self.config.steps

    def check(self, bench: Bench) -> None:
        """Build what the settings ask for once.

        Raises: ConfigError: drop_path or layer decay for a backbone that has none.
        """
        student = dropping(bench.networks[SUBJECT](), rate=self.config.drop_path, bench=bench)
        check_layers(self.config.optimizer, student, bench=bench)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {share: {"mean": accuracy in per cent, "images"}}}}.

        Raises:
            ConfigError: drop_path for a backbone that has none.
            DataError: images without labels, held-out classes that training has not.
            DreamshardError: training diverged.
        """
        train, heldout = bench.images("train"), bench.images("heldout")
        labels, truth, classes = class_labels(train, heldout)
        rows: dict[str, dict[str, Any]] = {}
        for name, build in bench.networks.items():
            rows[name] = {}
            for share in self.config.fractions:
                (chosen,) = (
                    [np.arange(len(labels))]
                    if share == 1.0
                    else fraction_draws(labels, fraction=share, draws=1, seed=self.seed)
                )
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    student = dropping(build(), rate=self.config.drop_path, bench=bench)
                    network = Classifier(student, num_classes=classes)
                    network = on_device(network, bench.device).train()
                    judged = self._train(
                        network, train, labels, rows=chosen, bench=bench, report=report
                    )
                accuracy = _judge(judged, heldout, truth, student=network.student)
                rows[name][f"{100 * share:g} %"] = {"mean": accuracy, "images": len(chosen)}
        return {"rows": rows}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        rows = result["rows"]
        columns = next(iter(rows.values()))
        lines = [
            [name, *(f"{cell['mean']:.1f}" for cell in row.values())] for name, row in rows.items()
        ]
        header = ["network", *(f"{column} of labels" for column in columns)]
        return [TextTable("% correct on held-out images, fine-tuned", header, lines)]

    def _train(
        self,
        network: Classifier,
        images: Images,
        labels: np.ndarray,
        *,
        rows: np.ndarray,
        bench: Bench,
        report: Callable[[], None],
    ) -> nn.Module:
        config, device = self.config, network.classify.weight.device
        order = endless_rows(rows, batch_size=config.batch_size, seed=self.seed)
        mix = self._mixup(network.classify.out_features)

        def next_loss() -> Tensor:
            chosen = next(order)
            pixels = normalised(images.rows(chosen).images, student=network.student, device=device)
            target = torch.from_numpy(labels[chosen]).to(device)
            pixels, _ = crop_and_flip(pixels, smallest=config.smallest_crop)
            if mix is not None:
                pixels, target = mix(pixels, target)
            return F.cross_entropy(network(pixels), target)

        return fit(
            network,
            config=config.optimizer,
            steps=config.steps,
            batch_size=config.batch_size,
            next_loss=next_loss,
            student=network.student,
            bench=bench,
            ema=config.ema,
            precision=config.precision,
            report=report,
            skip=lambda: next(order),
        )

    def _mixup(self, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Return timm's mixup; None where it is off."""
        if not self.config.mixup:
            return None
        from timm.data.mixup import Mixup

        np.random.seed(self.seed % 2**32)  # noqa: NPY002 - timm draws from numpy's global state
        return Mixup(mixup_alpha=self.config.mixup, label_smoothing=0.0, num_classes=num_classes)


def dropping(student: Student, *, rate: float, bench: Bench) -> Student:
    """Return a student whose residual branches are dropped while it trains; itself at rate 0.

    Args:
        student: trained, in training mode.
        rate: share of the branches of the deepest block, as timm's drop_path_rate.
        bench: knows how the student was built.

    Raises:
        ConfigError: a backbone that does not take the setting.
    """
    if not rate:
        return student
    from distill.students.student import build_student

    config = bench.student_config
    config = replace(config, settings={**config.settings, "drop_path_rate": rate})
    try:
        network = build_student(
            config, strides=student.strides, seed=0, image_size=bench.image_size
        )
    except ConfigError as error:
        allowed = f"0, as {config.name!r} does not take drop_path_rate"
        raise ConfigError(Problem("finetune.drop_path", str(rate), allowed)) from error
    network.load_state_dict(student.state_dict())
    return network.train()


def _judge(network: nn.Module, images: Images, truth: np.ndarray, *, student: Student) -> float:
    """Return the accuracy on images as they are, in per cent."""
    device = next(network.parameters()).device
    right = 0
    with torch.inference_mode():
        for rows in ordered_rows(len(truth), batch_size=256):
            pixels = normalised(images.rows(rows).images, student=student, device=device)
            guess = network(pixels).argmax(dim=1).cpu().numpy()
            right += int((guess == truth[rows]).sum())
    return 100.0 * right / len(truth)
