"""What a training run tells: metrics.jsonl, the progress display, and where it went wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.checkpoint import trim_metrics
from distill.guard import explain
from dreamshard.progress import Progress, stage
from dreamshard.runfolder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.config import TrainConfig
    from distill.data import TrainingSet
    from distill.students import Student


class RunLog:
    """Collect the steps' figures without waiting for the device; write a line when asked.

    As a context manager it runs the progress display. Only the main process writes.

    Args:
        config: of the run.
        accelerator: whose ranks are averaged over.
        training_set: what is trained on.
        start: steps done before; later lines of an interrupted run are dropped.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        accelerator: Accelerator,
        training_set: TrainingSet,
        start: int,
    ) -> None:
        self.record: RunFolder | None = None
        if accelerator.is_main_process:
            trim_metrics(Path(config.run_dir) / "metrics.jsonl", step=start)
            self.record = RunFolder(config.run_dir, config=config)
        self.figures: dict[str, float] = {}
        """The last line's loss terms; with the run's time and speed once it has ended."""
        self._config, self._accelerator = config, accelerator
        self._training_set, self._start = training_set, start
        self._progress = Progress(
            "train",
            total=config.steps * config.batch_size,
            initial=start * config.batch_size,
            quiet=self.record is None,
        )
        self._steps: list[tuple[int, np.ndarray, dict[str, Tensor]]] = []

    def __enter__(self) -> RunLog:
        self._began = self._line_time = time.perf_counter()
        self._waited_s = 0.0
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._began
        done = (self._progress.done - self._progress.initial) / seconds
        waited = 100 * self._waited_s / seconds
        self.figures |= {"seconds": seconds, "img_per_s": done, "wait_percent": waited}
        self._progress.__exit__(kind, error, trace)

    def headline(self, student: Student) -> None:
        """Say in one line what is about to be trained on what."""
        training_set, config, ranks = (
            self._training_set,
            self._config,
            self._accelerator.num_processes,
        )
        weights = sum(weight.numel() for weight in student.parameters())
        levels = ", ".join(
            f"{lv.name} {'x'.join(map(str, lv.shape))}" for lv in training_set.levels
        )
        samples = f"{training_set.snapshot.num_valid:,} samples of {training_set.snapshot.url}"
        share = f" = {ranks} x {config.batch_size // ranks}" if ranks > 1 else ""
        start = f", going on at step {self._start}" if self._start else ""
        if self.record is not None:
            stage(
                f"train: {config.student.name} ({weights:,} weights) on {levels}; {samples}; "
                f"{config.steps:,} steps of {config.batch_size}{share}{start}"
            )

    def note(
        self, step: int, *, terms: Mapping[str, Tensor], norm: Tensor | None, index: np.ndarray
    ) -> None:
        """Note one step.

        Args:
            step: its number.
            terms: scalar loss terms on the device, "loss" among them.
            norm: norm of the whole gradient before clipping.
            index: sample numbers of this rank's batch.
        """
        values = {name: value.detach() for name, value in terms.items()}
        if norm is not None:  # some launchers clip by themselves and do not tell
            values["grad_norm"] = norm.detach()
        self._steps.append((step, index, values))
        self._progress.update(self._config.batch_size)

    def line(self, *, rate: float, waited_s: float) -> None:
        """Write the means over the steps noted since the last line, and over the ranks.

        Args:
            rate: learning rate of the last step.
            waited_s: seconds this rank has waited for data since the run began.

        Raises:
            DataError, DreamshardError: on every rank, if a step's loss or gradient was not finite
                on any of them; see `distill.guard`.
        """
        figures = self._means()
        now = time.perf_counter()
        seconds = now - self._line_time
        count = len(self._steps)
        figures["img_per_s"] = count * self._config.batch_size / seconds
        figures["wait_percent"] = 100 * (waited_s - self._waited_s) / seconds
        self.figures = figures
        if self.record is not None:
            self.record.log(step=self._steps[-1][0], lr=rate, **figures)
        shown = {
            name: figures[name] for name in figures if name not in ("img_per_s", "wait_percent")
        }
        self._progress.update(0, **shown, wait=f"{figures['wait_percent']:.1f} %")
        self._steps.clear()
        self._line_time, self._waited_s = now, waited_s

    def _means(self) -> dict[str, float]:
        names = list(self._steps[0][2])
        rows = [torch.stack([values[name].float() for name in names]) for *_, values in self._steps]
        every_rank = self._accelerator.gather(torch.stack(rows)[None])
        assert isinstance(every_rank, Tensor)  # (ranks, steps, figures)
        broken = (~torch.isfinite(every_rank)).any(dim=2).any(dim=0).nonzero()
        if len(broken):
            step, index, values = self._steps[int(broken[0])]
            terms = {name: float(value) for name, value in values.items()}
            raise explain(
                step, index, terms=terms, training_set=self._training_set, config=self._config
            )
        means = every_rank.double().mean(dim=(0, 1))
        return dict(zip(names, means.tolist(), strict=True))
