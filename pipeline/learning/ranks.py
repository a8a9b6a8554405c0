"""What ranks agree on: rank zero decides, all are told, and where one fails none goes on.

Without a process group there is one rank, and nothing here talks to anybody.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from dreamshard.errors import ConfigError, DreamshardError, Problem
from dreamshard.owner.alone import only_one

T = TypeVar("T")
LAST_STEP_S = 30.0
"""How long a run that was killed may take to leave its folder (seconds)."""
GONE = ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport")
"""What gloo says of a rank that is lost."""
PATIENCE_S = 5.0
"""How long a shared folder may take to show on one machine what another has written (seconds)."""


def rank_count() -> int:
    """Return how many ranks there are."""
    several = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if several else 1


def this_rank() -> int:
    """Return this process's number among them, 0 for the chief."""
    return distributed.get_rank() if rank_count() > 1 else 0


def together(work: Callable[[], T]) -> T:
    """Do something on every rank; where it fails on one, it fails on all.

    Otherwise the others would wait in their next exchange for one that is gone.

    Raises:
        DreamshardError: on the ranks that did not fail, naming the first one that did.
    """
    result, error = _try(work)
    for rank, told in enumerate(_everyone(_word(error))):
        if told is not None and error is None:
            raise _elsewhere(rank, told)
    return _settle(result, error)


def decided_by_chief(work: Callable[[], T]) -> T:
    """Do something on rank zero and tell all ranks what came of it, a value or an error.

    Args:
        work: returns what can be pickled.
    """
    result, error = (None, None) if this_rank() else _try(work)
    if rank_count() > 1:
        facts: list[Any] = [result, _word(error)]
        distributed.broadcast_object_list(facts, src=0)
        if this_rank() and facts[1] is not None:
            raise _elsewhere(0, facts[1])
        result = facts[0] if this_rank() else result
    return _settle(result, error)


def any_rank(flag: bool) -> bool:
    """Tell whether something holds on any rank."""
    return any(_everyone(flag))


def check_same(facts: Mapping[str, object]) -> None:
    """Refuse ranks that were not told the same.

    Args:
        facts: by dotted key; rank zero's are right.

    Raises:
        ConfigError: on every rank, with every key of which another rank has another value.
    """
    first, *others = _everyone(dict(facts))
    problems = []
    for rank, theirs in enumerate(others, 1):
        for key in sorted(first.keys() | theirs.keys()):
            if first.get(key) != theirs.get(key):
                got = f"{theirs.get(key)!r} on rank {rank}"
                allowed = f"what rank 0 has: {first.get(key)!r}"
                hint = "Start all ranks with the same settings, on storage that all of them share."
                problems.append(Problem(key, got, allowed, hint))
    if problems:
        raise ConfigError(problems)


@contextmanager
def alone(folder: Path, *, key: str) -> Iterator[None]:
    """Keep other processes out of a run's folder while it is at work; rank zero holds it for all.

    Args:
        folder: the run's.
        key: dotted key of the setting that names it.

    Raises:
        ConfigError: on every rank: another process is at work in it.
        DreamshardError: another rank is gone.
    """
    # A rank outlives its launcher by a step or so: several wait for those before them.
    wait_s = LAST_STEP_S if rank_count() > 1 else 0.0
    with ExitStack() as held:
        decided_by_chief(lambda: held.enter_context(only_one(folder, key=key, wait_s=wait_s)))
        try:
            yield
        except RuntimeError as error:
            if not _is_of_the_group(error):
                raise
            first = str(error).partition("\n")[0]
            raise DreamshardError(
                f"rank {this_rank()}: another process of this run is gone, or out of reach "
                f"({first:.200}). What ended it, it says itself, or the system's log where it was "
                "killed. The same command goes on from the last checkpoint."
            ) from error


def _is_of_the_group(error: RuntimeError) -> bool:
    """Tell whether an exchange between ranks failed, which waits for nobody to repair it."""
    told = isinstance(error, distributed.DistError) or any(each in str(error) for each in GONE)
    return told and rank_count() > 1


def check_shared(folder: Path, *, key: str) -> None:
    """Refuse a folder that is not one and the same for all ranks.

    Checkpoints lie there, which rank zero writes and all ranks read.

    Args:
        folder: made if it is not there.
        key: dotted key of the setting that names it.

    Raises:
        ConfigError: on every rank, naming those that do not see what rank zero wrote.
    """
    if rank_count() == 1:
        return
    token = decided_by_chief(lambda: _leave_token(folder))
    sees = _is_there(folder / token)
    seen = _everyone((f"{folder.absolute()} on {socket.gethostname()}", sees))
    (folder / token).unlink(missing_ok=True)
    blind = [f"{where} for rank {rank}" for rank, (where, sees) in enumerate(seen) if not sees]
    if blind:
        got = f"{seen[0][0]} for rank 0, but another folder, {', '.join(blind)}"
        hint = f"Give a path on storage that all machines share: --{key} /SHARED/RUN."
        allowed = "one folder for all ranks, as each goes on from the checkpoints in it"
        raise ConfigError(Problem(key, got, allowed, hint))


def _leave_token(folder: Path) -> str:
    name = f".ranks-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        hint = "Choose another folder, or change its permissions."
        problem = Problem(str(folder), error.strerror or str(error), "a folder to write to", hint)
        raise ConfigError(problem) from error
    return name


def _is_there(path: Path) -> bool:
    ends = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > ends:
            return False
        if path.parent.is_dir():
            os.listdir(path.parent)  # a network file system looks again
        time.sleep(0.1)
    return True


def _try(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except Exception as error:
        if rank_count() == 1:
            raise
        return None, error


def _settle(result: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return result


def _word(error: BaseException | None) -> tuple[str, int] | None:
    """Say an error so that it can be sent: its text and exit code."""
    if error is None:
        return None
    if isinstance(error, DreamshardError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error}", 1


def _elsewhere(rank: int, told: tuple[str, int]) -> DreamshardError:
    error = DreamshardError(f"rank {rank} could not go on: {told[0]}")
    error.exit_code = told[1]
    return error


def _everyone(value: T) -> list[T]:
    """Return every rank's value, by rank."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    distributed.all_gather_object(values, value)
    return values


def gathered_rows(values: torch.Tensor) -> torch.Tensor:
    """Stack a batch (B, ...) of every rank to (ranks x B, ...), with gradients; see `_Rows`."""
    if rank_count() == 1 or values.device.type == "meta":
        return values
    return _Rows.apply(values)  # pyright: ignore[reportReturnType]


class _Rows(torch.autograd.Function):
    """Gather rows; the gradient of a rank's rows is the sum of what all ranks have for them.

    Every rank computes the same loss of all rows. The gradients of the weights, which the trainer
    averages over ranks, are then those of one process with the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(rank_count())]
        distributed.all_gather(parts, values.contiguous())
        ctx.rows = len(values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        whole = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may share it
        distributed.all_reduce(whole)
        start = this_rank() * ctx.rows
        return whole[start : start + ctx.rows]
