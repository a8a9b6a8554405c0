"""What a training run tells: metrics.jsonl, trackers, the progress display, where it went wrong."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from distill.training.guard import explain
from dreamshard.config import flatten
from dreamshard.errors import ConfigError, DreamshardError, Problem
from dreamshard.foreign.text import parse_json
from dreamshard.progress import Progress, stage
from dreamshard.redact import redact
from pipeline.learning.figures import Figures
from pipeline.learning.ranks import gathered_rows

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.data.sets import TrainingSet
    from distill.students.student import Student
    from dreamshard.runfolder import RunFolder
    from pipeline.learning.loop import Taken

BESIDE = ("gradient.", "weight.")
"""Beginnings of figures that are written, and neither shown nor kept."""
SHOWN_OTHERWISE = ("img_per_s", "wait_percent", "memory_gb")


class RunLog:
    """Collect the steps' figures without waiting for the device; write a line when asked.

    As a context manager it runs the progress display. Only the main process writes.

    Args:
        record: of the run; None on ranks that do not write.
        accelerator: whose ranks are averaged over, and whose trackers are told.
        training_set: what is trained on.
        steps: of the whole run.
        batch_size: samples per step, over all ranks.
        start: steps done before.
    """

    def __init__(
        self,
        record: RunFolder | None,
        *,
        accelerator: Accelerator,
        training_set: TrainingSet,
        steps: int,
        batch_size: int,
        start: int,
    ) -> None:
        self.record = record
        self.figures = _last_figures(record, step=start) if record and start >= steps else {}
        """The last line's loss terms; with the run's time and speed once it has ended."""
        self._accelerator, self._training_set = accelerator, training_set
        self._batch_size, self._total, self._start = batch_size, steps, start
        self._last_step = self._noted = 0
        self._scaled = accelerator.scaler is not None
        self._steps = Figures(self._explain, gather=gathered_rows)
        self._progress = Progress(
            "train", total=steps * batch_size, initial=start * batch_size, quiet=record is None
        )

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
        if self._progress.done > self._progress.initial or not self.figures:
            self.figures |= {"seconds": seconds, "img_per_s": done, "wait_percent": waited}
        self._progress.__exit__(kind, error, trace)

    def headline(self, name: str, student: Student, *, parts: int) -> None:
        """Say in one line what is about to be trained on what.

        Args:
            name: of the student.
            student: itself.
            parts: that a step's batch is worked on in.
        """
        training_set, ranks = self._training_set, self._accelerator.num_processes
        weights = sum(weight.numel() for weight in student.parameters())
        levels = ", ".join(
            f"{lv.name} {'x'.join(map(str, lv.shape))}" for lv in training_set.levels
        )
        source = training_set.source
        url = source.url if source.stored is None else source.stored.url
        samples = f"{source.num_valid:,} samples of {url}"
        factors = [count for count in (ranks, parts) if count > 1]
        each = self._batch_size // (ranks * parts)
        share = f" = {' x '.join(map(str, [*factors, each]))}" if factors else ""
        begun = f", going on at step {self._start}" if self._start else ""
        if self.record is not None:
            stage(
                f"train: {name} ({weights:,} weights) on {levels}; {samples}; "
                f"{self._total:,} steps of {self._batch_size}{share}{begun}"
            )

    def note(self, taken: Taken, *, index: np.ndarray) -> None:
        """Note one step, and the sample numbers of this rank's batch."""
        figures = dict(taken.terms)
        if taken.norm is not None:  # some launchers clip by themselves and do not tell
            figures["grad_norm"] = torch.zeros_like(taken.norm) if taken.skipped else taken.norm
        if self._scaled:
            figures["skipped"] = torch.full_like(figures["loss"], float(taken.skipped))
        self._steps.note(taken.step, figures, (index, taken.rate))
        self._last_step, self._noted = taken.step, self._noted + 1
        self._progress.update(self._batch_size)

    def line(self, *, rate: float, waited_s: float, every: int) -> None:
        """Write the means over the steps noted since the last line, and over the ranks.

        Args:
            rate: learning rate of the last step.
            every: steps from line to line.
            waited_s: seconds this rank has waited for data since the run began.

        Raises:
            DataError, DreamshardError: on every rank, if a step's loss or gradient was not finite
                on any of them; see `distill.training.guard`.
        """
        fewer, means = self._steps.fewer(every), self._steps.means()
        beside = {name: value for name, value in means.items() if name.startswith(BESIDE)}
        figures = {name: value for name, value in means.items() if name not in beside}
        now = time.perf_counter()
        seconds = now - self._line_time
        figures["img_per_s"] = self._noted * self._batch_size / seconds
        figures["wait_percent"] = 100 * (waited_s - self._waited_s) / seconds
        self.figures = figures
        figures["memory_gb"] = _memory_gb(self._accelerator.device)
        if self.record is not None:
            self.record.log(step=self._last_step, lr=rate, **fewer, **figures, **beside)
        self._accelerator.log({"lr": rate, **figures, **beside}, step=self._last_step)
        shown = {name: figures[name] for name in figures if name not in SHOWN_OTHERWISE}
        self._progress.update(
            0,
            **shown,
            wait=f"{figures['wait_percent']:.1f} %",
            memory=f"{figures['memory_gb']:.1f} GB",
        )
        self._line_time, self._waited_s, self._noted = now, waited_s, 0

    def look(self, figures: Mapping[str, float]) -> None:
        """Write what the monitor saw after the step of the last line.

        Args:
            figures: by name, such as {"monitor_knn": 41.5} (per cent).
        """
        self.figures = self.figures | dict(figures)
        assert self.record is not None
        self.record.log(step=self._last_step, **figures)
        self._accelerator.log(dict(figures), step=self._last_step)
        self._progress.update(0, **figures)
        self._line_time = time.perf_counter()  # the look is not part of the next line's steps

    def _explain(
        self, step: int, figures: Mapping[str, float], beside: tuple[np.ndarray, float]
    ) -> DreamshardError:
        index, rate = beside
        return explain(step, index, terms=figures, training_set=self._training_set, rate=rate)


def _last_figures(record: RunFolder, *, step: int) -> dict[str, float]:
    """Return what metrics.jsonl has of a step: of a run that has none left to take."""
    figures: dict[str, float] = {}
    file = record.path / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        values = parse_json(line, where=str(file), infinite=True)
        if values.get("step") == step:
            figures |= {name: v for name, v in values.items() if name not in ("step", "time", "lr")}
    return figures


def _memory_gb(device: torch.device) -> float:
    """Return the most memory used so far, in 10^9 bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def open_trackers(
    accelerator: Accelerator, trackers: Sequence[str], settings: dict[str, object]
) -> None:
    """Start the trackers asked for, with the configuration as their hyperparameters.

    Raises:
        ConfigError: a tracker that does not start, for want of a login or a server.
    """
    if not trackers:
        return
    try:
        flat = flatten(redact(settings))
        plain = {k: v if isinstance(v, (str, int, float)) else str(v) for k, v in flat.items()}
        accelerator.init_trackers("dreamshard", config=plain)
    except Exception as error:  # every tracker has exceptions of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        got = f"{', '.join(trackers)} ({reason})"
        hint = "Log in to it, or leave it out: metrics.jsonl is written in any case."
        raise ConfigError(Problem("trackers", got, "trackers that start", hint)) from error
