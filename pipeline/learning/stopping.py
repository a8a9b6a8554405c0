"""Ctrl-C and SIGTERM while a network trains: finish the step, save, say how to go on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from dreamshard.errors import Interrupted
from dreamshard.redact import redact_command
from pipeline.learning import launcher
from pipeline.learning.loop import Taken
from pipeline.learning.ranks import any_rank, rank_count, this_rank
from pipeline.learning.signals import StopSignal


class StopAfterStep(StopSignal):
    """Tell when a run that was asked to stop shall save and leave, as a context manager.

    One whose launcher has died is as good as asked.

    Args:
        verb: of the command, for messages.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        super().__init__("saving a checkpoint after this step")

    def __call__(self) -> bool:
        """Tell whether it was asked to stop, or its launcher is gone."""
        return super().__call__() or launcher.has_died()

    def now(self, taken: Taken, *, every: int) -> bool:
        """Tell whether to save and leave after this step, the same on every rank.

        Args:
            taken: the step; after the last one there is nothing left to stop.
            every: steps between agreements of several ranks, each of which waits for the device.
        """
        if taken.last or (rank_count() > 1 and not taken.due(every)):
            return False
        return any_rank(self())

    def leave(self, step: int, steps: int, *, unit: str = "step") -> NoReturn:
        """End the run, whose checkpoint is saved.

        Raises:
            Interrupted: with the command that goes on.
        """
        if this_rank():
            raise Interrupted(f"rank {this_rank()}, after {unit} {step:,}")
        raise Interrupted(
            f"{self._verb}: stopped after {unit} {step:,} of {steps:,}, a checkpoint is saved. "
            f"The same command goes on from there:\n  {same_command()}"
        )


def same_command() -> str:
    """Return the command this process was started by, for a shell, without its secrets."""
    script = Path(sys.argv[0])
    first = ["python", str(script)] if script.suffix == ".py" else [script.name]
    if script.name == "__main__.py":  # python -m PACKAGE
        first = ["python", "-m", script.parent.name]
    line = redact_command([*first, *sys.argv[1:]])
    return line if rank_count() == 1 else f"{line}   (by the launcher that started it)"
