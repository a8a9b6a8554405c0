"""As much of Ray as `pipeline/offline/workers.py` uses, on forked processes: starts in no time.

So the real driver, workers, actors and store meet hundreds of kills in a minute. Actor processes
are forked beforehand, while there are no threads yet, and wait for their class.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

TICK_S = 0.01
PR_SET_PDEATHSIG = 1


class RayError(Exception):
    """Base of Ray's errors."""


class RayTaskError(RayError):
    """A method raised; `cause` is what."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class RayActorError(RayError):
    """The actor is dead."""


@dataclass
class Spare:
    """A forked process that waits for its class."""

    pid: int
    pipe: Connection


@dataclass(eq=False)
class Reference:
    """The answer of a call, once it is there."""

    actor: Handle
    done: bool = False
    value: Any = None
    error: RayError | None = None


class Handle:
    """An actor: a process and the calls it was given."""

    def __init__(self, spare: Spare) -> None:
        self.spare, self.open, self.dead = spare, dict[int, Reference](), False

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=lambda *args: self._call(name, args))

    def _call(self, name: str, args: tuple[object, ...]) -> Reference:
        reference = Reference(self)
        self.open[id(reference)] = reference
        if self.dead:
            self.bury()
        else:
            try:
                self.spare.pipe.send((id(reference), name, args))
            except OSError:
                self.bury()
        return reference

    def poll(self) -> None:
        """Take in what the process answered, and whether it lives."""
        if self.dead:
            return
        gone = os.waitpid(self.spare.pid, os.WNOHANG)[0] != 0
        try:
            while self.spare.pipe.poll():
                number, value, error = pickle.loads(self.spare.pipe.recv_bytes())
                reference = self.open.pop(number)
                reference.done, reference.value = True, value
                reference.error = None if error is None else RayTaskError(error)
        except (EOFError, OSError):
            gone = True
        if gone:
            self.bury()

    def bury(self) -> None:
        """Answer what is open with the actor's death."""
        self.dead = True
        for reference in self.open.values():
            reference.done, reference.error = True, RayActorError("the actor died")
        self.open.clear()


@dataclass
class FakeRay:
    """What stands for the module `ray` in a driver process.

    Args:
        spares: processes to become actors.
        kill_reaches: False plays a network that is cut: a kill does not arrive, and the actor goes
            on alone.
    """

    spares: list[Spare]
    kill_reaches: bool = True
    handles: list[Handle] = field(default_factory=list)

    def put(self, value: object) -> object:
        return value

    def remote(self, cls: type) -> Any:
        def start(*args: object) -> Handle:
            handle = Handle(self.spares.pop(0))
            handle.spare.pipe.send((cls, args))
            self.handles.append(handle)
            return handle

        made = types.SimpleNamespace(remote=start)
        return types.SimpleNamespace(options=lambda **_: made)

    def kill(self, handle: Handle) -> None:
        if not handle.dead and self.kill_reaches:
            os.kill(handle.spare.pid, signal.SIGKILL)
            os.waitpid(handle.spare.pid, 0)
        handle.bury()

    def wait(
        self, references: list[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        ends = time.monotonic() + timeout
        while True:
            for handle in {reference.actor for reference in references}:
                handle.poll()
            ready = [reference for reference in references if reference.done]
            if len(ready) >= num_returns or time.monotonic() >= ends:
                return ready, [reference for reference in references if not reference.done]
            time.sleep(TICK_S)

    def get(self, reference: Reference) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def is_initialized(self) -> bool:
        return False

    def install(self) -> None:
        """Take the module's place in this process."""
        exceptions = types.ModuleType("ray.exceptions")
        for cls in (RayError, RayTaskError, RayActorError):
            setattr(exceptions, cls.__name__, cls)
        module = types.ModuleType("ray")
        for name in ("put", "remote", "kill", "wait", "get", "is_initialized"):
            setattr(module, name, getattr(self, name))
        module.exceptions = exceptions  # type: ignore[attr-defined]
        sys.modules["ray"], sys.modules["ray.exceptions"] = module, exceptions


def fork_spare(prepare: Callable[[], None], *, outlives: bool) -> Spare:
    """Fork a process that becomes an actor when it is told of what class.

    Args:
        prepare: called in it first.
        outlives: whether it may finish what it is at when its driver dies, instead of dying, too.
    """
    ours, theirs = Pipe()
    driver, pid = os.getpid(), os.fork()
    if pid:
        theirs.close()
        return Spare(pid, ours)
    try:
        ours.close()
        if not outlives:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prepare()
        _serve(theirs, driver)
    finally:
        os._exit(0)


def _serve(pipe: Connection, driver: int) -> None:
    """Make an object and call its methods, several at once, until the driver is gone."""
    actor: Any = None
    lock = threading.Lock()

    def call(number: int, name: str, args: tuple[object, ...]) -> None:
        value, error = None, None
        try:
            value = getattr(actor, name)(*args)
        except Exception as raised:
            error = raised
        with lock:
            pipe.send_bytes(pickle.dumps((number, value, error)))

    with ThreadPoolExecutor(4) as pool:
        while True:
            while not pipe.poll(0.02):
                if os.getppid() != driver:
                    return
            message = pipe.recv()
            if actor is None:
                cls, args = message
                actor = cls(*args)
            else:
                pool.submit(call, *message)
