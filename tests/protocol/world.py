"""A world of processes that share files: they take turns, die, sleep and go on as a plan says.

The processes run the storage code itself, each in a thread, one at a time. Every operation on files
is a step; at the steps that a plan names the process that is about to do it

* `s`: lets another one go on,
* `c`: dies, with its heart beats,
* `f`: is stopped for PAUSE_S, with its heart beats (SIGSTOP, a suspended laptop),
* `d`: waits for a slow disk for PAUSE_S; its heart beats go on,
* `w`: sees the wall clock set back by a day (`m`: ahead).

Without a plan's word a process goes on until it sleeps or ends; time passes when all sleep.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage.fs.local import LocalFiles
from storage.ledger.evidence import Watch

PAUSE_S = 95.0  # more than three times what makes a claim or lease stale
BEAT_S = 5.0
POLL_S = 8.0
MAX_STEPS = 20_000
KINDS = "scfdwm"


class Died(BaseException):
    """What a process that is killed does not survive."""


class Stuck(BaseException):
    """More steps than anything can need: processes wait for one another for ever."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file: what it is and holds, and when it was touched (seconds by the wall clock)."""

    number: int
    data: bytes
    touched: float
    changes: int = 0


@dataclass(eq=False)
class Process:
    """One process of the world.

    Args:
        number: tells it from the others.
        host: processes of one host can see whether the others live.
    """

    number: int
    host: int
    action: Callable[[], object]
    state: str = "ready"  # ready, asleep, ended, dead
    wakes: float = 0.0
    stopped: bool = False
    was_stopped: bool = False
    beats: list[Callable[[], object]] = field(default_factory=list)
    watches: dict[str, Watch] = field(default_factory=dict)
    result: object = None
    error: BaseException | None = None

    @property
    def owner(self) -> str:
        return f"h{self.host}-{self.number}-0"


class Baton:
    """Hand the turn from thread to thread; the threads are kept, for making them costs time."""

    def __init__(self) -> None:
        self.locks: list[threading.Lock] = []
        self.jobs: list[Callable[[], None]] = []

    def reserve(self, count: int) -> None:
        while len(self.locks) < count:
            lock, number = threading.Lock(), len(self.locks)
            lock.acquire()
            self.locks.append(lock)
            self.jobs.append(lambda: None)
            if number:  # the first one is the test's own thread
                threading.Thread(target=self._work, args=(number,), daemon=True).start()

    def _work(self, number: int) -> None:
        while True:
            self.locks[number].acquire()
            self.jobs[number]()


_baton = Baton()


class World:
    """See the module.

    Args:
        disk: the files by path; not changed.
        plan: what happens at which step.
        hosts: the host of each process.
    """

    def __init__(self, disk: dict[str, Node], plan: dict[int, str], *, hosts: list[int]) -> None:
        self.disk, self.plan, self.hosts = dict(disk), plan, hosts
        self.clock, self.wall, self.steps = 1000.0, 0.0, 0
        self.processes: list[Process] = []
        self.current: Process | None = None
        self._watches: dict[str, Watch] = {}
        self.quiet = False  # a heart beat, or a look of the test's own: no step
        self.violations: list[str] = []
        self.log: list[str] | None = None
        self._numbers = itertools.count(1 + max((n.number for n in disk.values()), default=0))
        self._names = itertools.count()
        self._next_beat = self.clock + BEAT_S

    # -- what the patched parts of the product ask ------------------------------------------------

    def owner(self) -> str:
        return self.current.owner if self.current else "h99-99-0"

    def own_name(self, unit: int) -> str:
        return f"{unit:09d}~{self.owner()}~{next(self._names)}"

    def is_dead(self, text: str) -> bool | None:
        host, _, rest = text.partition("-")
        number = rest.partition("-")[0]
        here = self.current.host if self.current else -1
        if host != f"h{here}" or not number.isdecimal() or int(number) >= len(self.processes):
            return None
        return self.processes[int(number)].state in ("ended", "dead")

    def watch_of(self, files: LocalFiles) -> Watch:
        watches = self.current.watches if self.current else self._watches
        return watches.setdefault(files.url, Watch())

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        process = self.current
        if process is None:
            self._pass_time(self.clock + seconds)
            return
        if process.state == "dead":
            raise Died
        if not self.quiet:
            process.state, process.wakes = "asleep", self.clock + seconds
            self._yield(process)

    @contextmanager
    def beating(self, beat: Callable[[], object], *, every_s: float, name: str) -> Iterator[None]:
        beats = self.current.beats if self.current else []
        beats.append(beat)
        try:
            yield
        finally:
            beats.remove(beat)

    def start_beating(
        self, beat: Callable[[], object], *, every_s: float, name: str
    ) -> Callable[[], None]:
        beats = self.current.beats if self.current else []
        beats.append(beat)
        return lambda: beats.remove(beat)

    # -- steps ------------------------------------------------------------------------------------

    def step(self, kind: str, key: str) -> None:
        """Announce an operation on files."""
        process = self.current
        if process is None or self.quiet:
            return
        if process.state == "dead":
            raise Died
        self.steps += 1
        if self.log is not None:
            self.log.append(f"{self.steps} p{process.number} {self.clock:.0f} {kind} {key}")
        what = self.plan.get(self.steps)
        if what is None:
            if self.steps > MAX_STEPS:
                raise Stuck
            return
        self._meddle(process, what)

    def _meddle(self, process: Process, what: str) -> None:
        if what == "s":
            self._yield(process)
        elif what == "c":
            process.state = "dead"
            raise Died
        elif what in "fd":
            process.state, process.wakes = "asleep", self.clock + PAUSE_S
            process.stopped = what == "f"
            process.was_stopped |= process.stopped
            self._yield(process)
        else:
            self.wall += 86400.0 if what == "m" else -86400.0

    def new_node(self, data: bytes) -> Node:
        return Node(next(self._numbers), data, self.clock + self.wall)

    def touched(self, node: Node) -> Node:
        return Node(node.number, node.data, self.clock + self.wall, node.changes + 1)

    # -- turns ------------------------------------------------------------------------------------

    def run(self, actions: list[Callable[[], object]]) -> list[Process]:
        """Let processes run until each has ended or died."""
        before = len(self.processes)
        new = [
            Process(before + i, self.hosts[(before + i) % len(self.hosts)], action)
            for i, action in enumerate(actions)
        ]
        self.processes += new
        _baton.reserve(1 + len(self.processes))
        for process in new:
            _baton.jobs[1 + process.number] = lambda process=process: self._live(process)
        self.current = new[0]
        _baton.locks[1 + new[0].number].release()
        _baton.locks[0].acquire()
        self.current = None
        return new

    def _live(self, process: Process) -> None:
        try:
            process.result = process.action()
        except BaseException as error:
            process.error = error
        process.state = "dead" if isinstance(process.error, Died) else "ended"
        process.beats.clear()
        follower = self._choose(process)
        self.current = follower
        _baton.locks[0 if follower is None else 1 + follower.number].release()

    def _yield(self, process: Process) -> None:
        follower = self._choose(process)
        assert follower is not None
        if follower is not process:
            self.current = follower
            _baton.locks[1 + follower.number].release()
            _baton.locks[1 + process.number].acquire()

    def _choose(self, process: Process) -> Process | None:
        """Say whose turn it is: the next one that is ready, else the first that wakes."""
        count = len(self.processes)
        for i in range(1, count + 1):
            other = self.processes[(process.number + i) % count]
            if other.state == "ready":
                return other
        sleepers = [p for p in self.processes if p.state == "asleep"]
        if not sleepers:
            return None
        first = min(sleepers, key=lambda p: p.wakes)
        self._pass_time(first.wakes)
        first.state, first.stopped = "ready", False
        return first

    def _pass_time(self, until: float) -> None:
        while self._next_beat <= until:
            self.clock = max(self.clock, self._next_beat)
            self._next_beat += BEAT_S
            for process in self.processes:
                if process.state in ("ready", "asleep") and not process.stopped:
                    self._beat(process)
        self.clock = max(self.clock, until)

    def _beat(self, process: Process) -> None:
        before, self.current, quiet, self.quiet = self.current, process, self.quiet, True
        try:
            for beat in list(process.beats):
                beat()
        finally:
            self.current, self.quiet = before, quiet
