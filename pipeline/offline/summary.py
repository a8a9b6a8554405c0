"""What a run says: what is to be made; what was made, what was not, what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from dreamshard.errors import DataError
from dreamshard.progress import stage
from dreamshard.runfolder import RunFolder
from pipeline.offline.books import Books, check_invalid, counts
from pipeline.offline.driver import Outcome
from pipeline.request.lookup import Existing
from pipeline.request.plan import format_bytes
from pipeline.request.resolve import ResolvedRequest
from pipeline.teachers.base import say
from storage.dataset import Dataset

INTERRUPTED = 130


def announce(request: ResolvedRequest, dataset: Dataset, *, num_missing: int) -> None:
    """Say what is about to be made, and what was guessed about the teacher."""
    plan = request.plan
    stage(
        f"{request.input.mode}: {plan.num_samples:,} samples, {num_missing:,} of "
        f"{plan.num_units:,} units of {plan.samples_per_unit:,} to make, "
        f"{format_bytes(plan.total_bytes)} in {dataset.url}"
    )
    say(request.spec.notes)


def already_there(
    existing: Existing, request: ResolvedRequest, checked: Sequence[str], *, max_share: float
) -> tuple[int, Dataset]:
    """Say that there is nothing to make, and what was checked; return exit code and dataset.

    Raises:
        DataError: too many of its images are invalid.
    """
    dataset = existing.dataset
    if request.unwritable is None:
        dataset.tidy()
    committed, invalid = counts(dataset)
    check_invalid(invalid, num_samples=committed, max_share=max_share, examples=[], url=dataset.url)
    lines = [
        f"already there: {committed:,} samples ({request.wanted:,} asked for), nothing to make",
        *(f"  {line}" for line in (existing.reason, *checked)),
        f"next: {_begin(dataset)}",
        f"  or: dreamshard inspect {shlex.quote(dataset.url)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0, dataset


def _begin(dataset: Dataset) -> str:
    """Spell how to go on: a student's recipe that fits, or a look at what has no maps."""
    maps = any(level.kind == "feature" and len(level.shape) == 3 for level in dataset.levels)
    return f"dreamshard {'init' if maps else 'inspect'} {shlex.quote(dataset.url)}"


def summarise(
    outcome: Outcome, books: Books, *, folder: RunFolder, command: Sequence[str]
) -> tuple[int, Dataset]:
    """Say how a run ended; return the exit code, 0 or 130 where it was stopped, and the dataset.

    Raises:
        DataError: units were left out.
    """
    stats, url = books.stats(), books.dataset.url
    again = outcome.interrupted or outcome.quarantined
    following = shlex.join(command) if again else _begin(books.dataset)
    lines = [
        f"made {books.made:,} samples in {stats['seconds']:,.1f} s "
        f"({stats['img_per_s']:,.4g} img/s, {format_bytes(books.bytes)}); "
        f"{books.samples:,} of {books.plan.num_samples:,} are there, {books.invalid:,} unusable",
        f"  {url}",
    ]
    if outcome.interrupted:
        lines.append("stopped as asked; what is committed stays, and the same command goes on")
    folder.stats(**stats, quarantined=len(outcome.quarantined), retries=outcome.retries)
    folder.finish(following)
    sys.stdout.write("\n".join([*lines, f"run folder: {folder.path}", f"next: {following}\n"]))
    sys.stdout.flush()
    if outcome.interrupted:
        return INTERRUPTED, books.dataset
    if outcome.quarantined:
        listed = "".join(f"\n  {unit}: {why}" for unit, why in sorted(outcome.quarantined.items()))
        raise DataError(
            f"{url}: {len(outcome.quarantined)} units could not be made and are left out; the same "
            f"command tries them again, and training without them takes --data.allow_holes:{listed}"
        )
    return 0, books.dataset
