"""What happens to a run, drawn from a seed: who is hit, by what, and at which step."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["kill", "stop", "disk", "store"]
Victim = Literal["actor", "driver", "all"]
LAST_STEP = {"actor": 90, "driver": 70, "all": 60}
STEPS = ("any", "any", "forward", "create", "write", "fsync", "rename", "link", "remove")


@dataclass(frozen=True)
class Schedule:
    """One disturbed run.

    Args:
        seed: what it was drawn from.
        kind: SIGKILL; SIGSTOP for `stop_s`; a full disk for `length` steps; a store that times out,
            truncates and fails in `share` of its requests.
        victim: the first actor, the driver, or all actors.
        step: name of the steps that are counted (`any`, `forward`, or one of the store's).
        at: the fault comes with the step of that number, from 1.
        actors: how many.
        drivers: 2 = another driver starts on the same recipe `pause_s` later.
        remote: the root is an object store.
        mode: encode or synthesize.
        outlives: actors whose driver died finish what they are at.
        cut_off: a kill sent to an actor does not arrive, so that it may wake up later.
    """

    seed: int
    kind: Kind
    victim: Victim
    step: str
    at: int
    actors: int = 2
    drivers: int = 1
    remote: bool = False
    mode: str = "encode"
    outlives: bool = False
    cut_off: bool = False
    stop_s: float = 0.0
    length: int = 1
    share: float = 0.0
    pause_s: float = 0.0

    def __str__(self) -> str:
        default = {"seed": self.seed, **asdict(DEFAULT)}
        told = {k: v for k, v in asdict(self).items() if v != default.get(k) or k == "seed"}
        return ", ".join(f"{name} {value}" for name, value in told.items())


DEFAULT = Schedule(0, "kill", "actor", "any", 0)


def draw(seed: int) -> Schedule:
    """Draw a schedule; equal seeds give equal ones."""
    rng = random.Random(seed)
    kind: Kind = rng.choices(("kill", "stop", "disk", "store"), (9, 4, 3, 3))[0]
    remote = kind == "store" or rng.random() < 0.2
    victim: Victim = "all" if kind == "disk" else rng.choice(("actor", "actor", "driver"))
    step = rng.choice(STEPS)
    if victim == "driver" and step == "forward":
        step = "any"
    if remote and step in ("rename", "link", "fsync"):
        step = "put"
    last = LAST_STEP[victim] if step == "any" else 14
    made = Schedule(
        seed,
        kind,
        victim,
        step,
        rng.randint(1, last),
        actors=rng.randint(1, 3),
        drivers=2 if rng.random() < 0.25 else 1,
        remote=remote,
        mode=rng.choice(("encode", "synthesize")),
        outlives=rng.random() < 0.5,
        pause_s=rng.choice((0.0, 0.02, 0.1, 0.3)),
    )
    if kind == "stop":
        return replace(made, stop_s=rng.choice((0.3, 1.0, 2.0)), cut_off=rng.random() < 0.5)
    if kind == "disk":
        return replace(made, length=rng.choice((1, 3, 30, 10_000)))
    if kind == "store":
        return replace(made, share=rng.choice((0.05, 0.15, 0.3)))
    return made


class Injector:
    """Bring a schedule's fault about in one process; called before every step.

    Args:
        schedule: which fault, at which step.
        marker: file to write when it strikes.
    """

    def __init__(self, schedule: Schedule, marker: Path) -> None:
        self._plan, self._marker, self._count = schedule, marker, 0

    def __call__(self, step: str, key: str) -> None:
        if self._plan.step not in ("any", step):
            return
        self._count += 1
        if not self._plan.at <= self._count < self._plan.at + self._plan.length:
            return
        self._marker.write_text(f"{step} {key}")
        if self._plan.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._plan.kind == "stop":
            self._stop()
        elif step not in ("remove", "forward"):  # a full disk lets things be removed
            raise OSError(errno.ENOSPC, "No space left on device")

    def _stop(self) -> None:
        """Stop this process; a shell wakes it up again (a fork beside threads might hang)."""
        mine = os.getpid()
        subprocess.Popen(["sh", "-c", f"sleep {self._plan.stop_s}; kill -CONT {mine}"])
        os.kill(mine, signal.SIGSTOP)


def forward_steps(injector: Injector) -> Any:
    """Return a stand-in for a teacher's forward that counts as a step."""
    from pipeline.teachers.noise import NoiseTeacher

    before = NoiseTeacher._finish

    def finish(self: NoiseTeacher, *args: Any) -> Any:
        injector("forward", "")
        return before(self, *args)

    return finish
