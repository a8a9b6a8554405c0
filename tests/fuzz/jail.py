"""Do something with hostile files in a process of its own, and say what it must not have done."""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from dreamshard.errors import run_main

CPU_S, ASLEEP_S, WALL_S = 20.0, 20.0, 3600.0
"""Time one thing may take of the processor, all may sleep, and all may take (seconds).

A process that waits for a busy machine's processor does not sleep; one that reads a pipe does.
"""
MEMORY = 1 << 30
"""Memory one thing may take beyond what the process had (bytes)."""
CODES = (0, 1, 2, 3, 4)
NOISE = ("Traceback", "Exception ignored", "Warning:", "\x1b[", "Segmentation")
LOOK_S = 0.01

Doing = Callable[[], object]


def problems_of(things: Mapping[str, Doing]) -> tuple[list[str], dict[str, int]]:
    """Do things one after another in a forked process.

    Args:
        things: by name; each like a command's main.

    Returns:
        What went wrong, and the exit codes by name.
    """
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if not pid:
            try:
                _child(things, told.fileno())
            finally:
                os._exit(9)
        return _judge(pid, told.fileno())


def _child(things: Mapping[str, Doing], told: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    record: dict[str, object] = {"at": "", "done": {}}
    for name, do in things.items():
        record["at"] = name
        os.pwrite(told, json.dumps(record).encode(), 0)
        spent = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent + CPU_S) + 1, resource.RLIM_INFINITY))
        record["done"][name] = _do(do)  # type: ignore[index]
    record["at"] = ""
    os.pwrite(told, json.dumps(record).encode(), 0)
    os._exit(0)


def _do(do: Doing) -> list[object]:
    """Return the exit code (or None), what was written, and an unexpected error."""
    with tempfile.TemporaryFile() as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        # Where tests run, Python's own streams lead elsewhere.
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict")
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace")
        code, error = None, ""

        def main(_: object) -> int:
            found = do()
            return found if isinstance(found, int) and not isinstance(found, bool) else 0

        try:
            code = run_main(main, [])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as raised:
            frames = traceback.extract_tb(raised.__traceback__)[-5:]
            at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            error = f"{type(raised).__name__}: {str(raised)[:120]!a} at {at}"
        sys.stdout.flush()
        sys.stderr.flush()
        out.seek(0)
        return [code, out.read(50_000).decode("utf-8", "replace"), error]


def _judge(pid: int, told: int) -> tuple[list[str], dict[str, int]]:
    began, before, problems = time.monotonic(), None, []
    slept, looked = 0.0, began
    while True:
        ended, status, _ = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        used = _memory(pid)
        before = used if before is None else before
        now = time.monotonic()
        slept, looked = slept + min(now - looked, 1.0) * _sleeps(pid), now  # a look is no stretch
        late = slept > ASLEEP_S or now - began > WALL_S
        if late or used - before > MEMORY:
            problems.append("hangs" if late else f"takes more than {MEMORY >> 20} MB")
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            status = 0
            break
        time.sleep(LOOK_S)
    raw = os.pread(told, 1 << 26, 0)
    record = json.loads(raw) if raw else {"at": "start", "done": {}}
    if status:
        code = os.waitstatus_to_exitcode(status)
        problems.append("takes too long" if code == -24 else f"dies with {code}")
    problems = [f"{record['at']} {problem}" for problem in problems]
    codes = {}
    for name, (code, text, error) in record["done"].items():
        codes[name] = code
        if error:
            problems.append(f"{name}: {error}")
        elif code not in CODES:
            problems.append(f"{name}: exit code {code}: {text[-200:]!a}")
        elif code and not text.strip():
            problems.append(f"{name}: exit code {code} without a word")
        for word in NOISE:
            if word in text:
                line = next((li for li in text.splitlines() if word in li), "")
                problems.append(f"{name}: writes {line[:160]!a}")
    return problems, codes


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _sleeps(pid: int) -> bool:
    """Tell whether no thread of a process runs or would run."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False
    return all(text.rpartition(")")[2].split()[0] == "S" for text in stats)


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return size, time and kind of everything below a folder, by path; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            plain = stat.S_ISREG(status.st_mode)
            found[path] = (
                status.st_size if plain else 0,
                status.st_mtime_ns if plain else 0,
                stat.S_IFMT(status.st_mode),
            )
    return found
