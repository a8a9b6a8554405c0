"""What a training run tells: metrics.jsonl, the progress display, and where it went wrong."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill.training.checkpoint import trim_metrics
from distill.training.guard import explain
from dreamshard.config import to_dict
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import Progress, stage
from dreamshard.redact import redact
from dreamshard.runfolder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.configs.train import TrainConfig
    from distill.data.sets import TrainingSet
    from distill.students.student import Student

SHOWN_OTHERWISE = ("img_per_s", "wait_percent", "memory_gb")


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
        _open_trackers(accelerator, config)
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
        self._last_step = 0
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
        source = training_set.source
        url = source.url if source.stored is None else source.stored.url
        samples = f"{source.num_valid:,} samples of {url}"
        factors = [count for count in (ranks, config.accumulate) if count > 1]
        each = config.batch_size // (ranks * config.accumulate)
        share = f" = {' x '.join(map(str, [*factors, each]))}" if factors else ""
        start = f", going on at step {self._start}" if self._start else ""
        if self.record is not None:
            stage(
                f"train: {config.student.name} ({weights:,} weights) on {levels}; {samples}; "
                f"{config.steps:,} steps of {config.batch_size}{share}{start}"
            )

    def note(
        self,
        step: int,
        *,
        terms: Mapping[str, Tensor],
        norm: Tensor | None,
        index: np.ndarray,
        skipped: bool = False,
    ) -> None:
        """Note one step.

        Args:
            step: its number.
            terms: scalar loss terms on the device, "loss" among them.
            norm: norm of the whole gradient before clipping.
            index: sample numbers of this rank's batch.
            skipped: float16 overflowed: the scaler left this step out and lowers its scale.
        """
        values = {name: value.detach() for name, value in terms.items()}
        if norm is not None:  # some launchers clip by themselves and do not tell
            values["grad_norm"] = torch.zeros_like(norm) if skipped else norm.detach()
        if self._config.precision == "fp16":
            values["skipped"] = torch.full_like(values["loss"], float(skipped))
        self._steps.append((step, index, values))
        self._progress.update(self._config.batch_size)

    def line(self, *, rate: float, waited_s: float) -> None:
        """Write the means over the steps noted since the last line, and over the ranks.

        Args:
            rate: learning rate of the last step.
            waited_s: seconds this rank has waited for data since the run began.

        Raises:
            DataError, DreamshardError: on every rank, if a step's loss or gradient was not finite
                on any of them; see `distill.training.guard`.
        """
        figures = self._means()
        now = time.perf_counter()
        seconds = now - self._line_time
        count = len(self._steps)
        figures["img_per_s"] = count * self._config.batch_size / seconds
        figures["wait_percent"] = 100 * (waited_s - self._waited_s) / seconds
        self.figures = figures
        figures["memory_gb"] = _memory_gb(self._accelerator.device)
        step = self._steps[-1][0]
        if self.record is not None:
            self.record.log(step=step, lr=rate, **figures)
        if self._config.trackers:
            self._accelerator.log({"lr": rate, **figures}, step=step)
        shown = {name: figures[name] for name in figures if name not in SHOWN_OTHERWISE}
        self._progress.update(
            0,
            **shown,
            wait=f"{figures['wait_percent']:.1f} %",
            memory=f"{figures['memory_gb']:.1f} GB",
        )
        self._last_step = step
        self._steps.clear()
        self._line_time, self._waited_s = now, waited_s

    def look(self, figures: Mapping[str, float]) -> None:
        """Write what the monitor saw after the step of the last line.

        Args:
            figures: by name, such as {"monitor_knn": 41.5} (per cent).
        """
        self.figures = self.figures | dict(figures)
        assert self.record is not None and self._last_step
        self.record.log(step=self._last_step, **figures)
        if self._config.trackers:
            self._accelerator.log(dict(figures), step=self._last_step)
        self._progress.update(0, **figures)
        self._line_time = time.perf_counter()  # the look is not part of the next line's steps

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


def _memory_gb(device: torch.device) -> float:
    """Return the most memory used so far, in 10^9 bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _open_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Start the trackers asked for, with the configuration as their hyperparameters.

    Raises:
        ConfigError: a tracker that does not start, for want of a login or a server.
    """
    if not config.trackers:
        return
    try:
        settings: Any = redact(to_dict(config))
        accelerator.init_trackers("dreamshard", config=flat_values(settings))
    except Exception as error:  # every tracker has exceptions of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        got = f"{', '.join(config.trackers)} ({reason})"
        hint = "Log in to it, or leave it out: metrics.jsonl is written in any case."
        raise ConfigError(Problem("trackers", got, "trackers that start", hint)) from error


def flat_values(config: Mapping[str, object], prefix: str = "") -> dict[str, str | int | float]:
    """Flatten a configuration to dotted keys and plain values; others become text."""
    flat: dict[str, str | int | float] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_values(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float)) else str(value)
    return flat
