"""What becomes of work given to an actor: a unit or a micro-batch is done, failed, lost, returned.

Retries count by the same rule for both: what failed, and what was lost while its actor had nothing
else to do, may be the reason itself. What came back unmade is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from dreamshard.errors import DreamshardError

W = TypeVar("W")
V = TypeVar("V")


@dataclass(frozen=True)
class Done(Generic[W, V]):
    """It was made.

    Args:
        work: what was asked for: a unit's task, a micro-batch's ticket.
        value: what the actor answered.
        seconds: since it was its actor's turn, where that is known.
    """

    work: W
    value: V
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed(Generic[W]):
    """Making it raised; the actor lives."""

    work: W
    error: Exception


@dataclass(frozen=True)
class Lost(Generic[W]):
    """The actor died with it, or its answer was lost with a node.

    Args:
        alone: whether nothing else was in flight there: only then it may be what killed the actor.
    """

    work: W
    error: Exception
    alone: bool = True


@dataclass(frozen=True)
class Returned(Generic[W]):
    """It came back unmade: the actor is being stopped, or was replaced before it began with it."""

    work: W
    error: Exception


Event = Done[W, V] | Failed[W] | Lost[W] | Returned[W]


@dataclass
class Tries:
    """Count what was tried in vain over one piece of work."""

    failures: int = 0
    deaths: int = 0

    def note(self, event: Failed[W] | Lost[W] | Returned[W]) -> None:
        """Count an event, if it may be due to the work."""
        self.failures += isinstance(event, Failed)
        self.deaths += isinstance(event, Lost) and event.alone


def unwrap(error: Exception) -> Exception:
    """Return what our own code raised on an actor, also while the actor was being made.

    Ray hands it over as the `cause` of an error of its own, at times one level further down.
    """
    for outer in (error, getattr(error, "cause", None), error.__cause__):
        cause = getattr(outer, "cause", outer)
        if isinstance(cause, DreamshardError):
            return cause
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def one_line(error: Exception) -> str:
    """Say an error in a line: its type and its last words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
