"""Keep the books of a run: samples, invalid images, bytes; progress, log lines, manifest parts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import cast

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.progress import Progress
from dreamshard.runfolder import RunFolder
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.outcomes import Done
from pipeline.offline.driver import Record, Task
from pipeline.request.plan import Plan
from storage.dataset import Dataset

log = logging.getLogger(__name__)

MAX_EXAMPLES = 5
"""Invalid images named in messages; the manifest names all."""


@dataclass
class Books:
    """Count what is committed; the driver hands every commit over here."""

    dataset: Dataset
    plan: Plan
    max_invalid_share: float
    folder: RunFolder
    progress: Progress
    samples: int = 0
    """Committed in all, those before this run included."""
    invalid: int = 0
    made: int = 0
    """Samples made by this run."""
    bytes: int = 0
    """Stored by this run."""
    teacher_s: float = 0.0
    write_wait_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._metrics = Metrics("offline", self.dataset.recipe.name)
        self.samples, self.invalid = counts(self.dataset)

    def take(self, event: Done[Task, Record]) -> None:
        """Count a commit.

        Raises:
            DataError: as soon as it is certain that too many images are invalid.
        """
        record = event.value
        count, invalid = cast(int, record["count"]), cast(int, record["invalid"])
        self.samples = min(self.samples + count, self.plan.num_samples)
        self.invalid += invalid
        if record["ours"]:  # of two runs at once, one commits a unit
            self.made += count
            self.bytes += cast(int, record["bytes"])
        self.teacher_s += cast(float, record["teacher_s"])
        self.write_wait_s += cast(float, record["write_wait_s"])
        self.examples = (self.examples + cast("list[str]", record["errors"]))[:MAX_EXAMPLES]
        self.folder.log(
            **{key: value for key, value in record.items() if isinstance(value, int | float | str)}
        )
        self.progress.update(count, **({"invalid": str(self.invalid)} if self.invalid else {}))
        try:
            self.dataset.roll_up()
        except CannotReadError as error:  # commits stay; the run's end rolls them up
            log.warning("the manifest waits: %s", error)
        self.check()

    def give_up(self, task: Task, why: str, attempts: int) -> None:
        """Write into the manifest why a unit is left out."""
        self.dataset.quarantine(task.unit, error=why, attempts=attempts)

    def retry(self) -> None:
        """Count a unit that is given out again."""
        self._metrics.count(retries=1)

    def check(self) -> None:
        """Raise DataError if too many images are invalid."""
        check_invalid(
            self.invalid,
            num_samples=self.plan.num_samples,
            max_share=self.max_invalid_share,
            examples=self.examples,
            url=self.dataset.url,
        )

    def stats(self) -> dict[str, float | int | str]:
        """Return this run's figures."""
        seconds = time.monotonic() - self.started
        self.samples, self.invalid = counts(self.dataset)  # another run may have made some, too
        return {
            "dataset": self.dataset.url,
            "samples": self.samples,
            "samples_made": self.made,
            "invalid": self.invalid,
            "bytes_made": self.bytes,
            "seconds": round(seconds, 3),
            "img_per_s": round(self.made / seconds, 3) if seconds > 0 else 0.0,
            "teacher_s": round(self.teacher_s, 3),
            "write_wait_s": round(self.write_wait_s, 3),
        }


def counts(dataset: Dataset) -> tuple[int, int]:
    """Count the committed samples of a dataset, and the invalid ones among them."""
    snapshot = dataset.snapshot()
    committed = int(snapshot.counts.sum())
    return committed, committed - snapshot.num_valid


def check_invalid(
    invalid: int, *, num_samples: int, max_share: float, examples: list[str], url: str
) -> None:
    """Raise DataError if the share of invalid images is above the one allowed."""
    if invalid > max_share * num_samples:
        named = "".join(f"\n  {example}" for example in examples)
        raise DataError(
            f"max_invalid_share: got {invalid} unusable images of {num_samples:,} "
            f"({invalid / num_samples:.2%}), allowed {max_share:.2%}. The manifest of {url} names "
            f"them with their errors. Repair the source, or allow more.{named}"
        )
