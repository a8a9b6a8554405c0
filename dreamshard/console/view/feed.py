"""A run's figures as they come: every look reads what was appended since the last one."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

from dreamshard.console.report.runs import Run, is_number, read_run
from dreamshard.errors import DreamshardError
from dreamshard.foreign.text import parse_json
from storage.fs.beneath import LinkError, open_regular

MAX_CURVES, SHOWN_POINTS = 64, 400
MAX_KEPT = 200_000
"""Points of a curve that are kept; of longer ones every second goes."""
MAX_READ = 64 << 20
"""Bytes that are read at one look; the rest comes with the next one."""
STALE_S = 120.0
_ASIDE = frozenset(("time", "step", "unit", "count", "host", "ours"))


class Feed:
    """Follow one run's metrics.jsonl.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "metrics.jsonl"
        self._lock = threading.Lock()
        self._restart(None)

    def look(self) -> dict[str, Any]:
        """Read what is new; return the run's state, figures and curves.

        Members: name, verb, state ("running", "silent", "done", "not begun"), seconds_ago of the
        last line, step, steps, images, figures (latest by name), eta_s, curves (name -> points
        [x, y], at most SHOWN_POINTS), version (grows with every line).
        """
        with self._lock:
            self._append()
            run = read_run(self.folder)
            return self._told(run)

    def _told(self, run: Run | None) -> dict[str, Any]:
        settings = run.settings() if run else {}
        total = settings.get("steps")
        steps = total if is_number(total) else None
        ago = time.time() - self._time if self._time else None
        done = run is not None and is_number(run.stats.get("seconds"))
        if self._again(run):
            done = False
        state = "done" if done else "running" if ago is not None and ago < STALE_S else "silent"
        if ago is None and not done:
            state = "not begun"
        return {
            "name": self.folder.name,
            "verb": run.verb if run else "",
            "state": state,
            "seconds_ago": ago,
            "step": self._step if self._counts_steps else None,
            "images": None if self._counts_steps else self._step,
            "steps": steps if self._counts_steps else None,
            "figures": dict(self._last),
            "eta_s": self._eta(steps) if state == "running" else None,
            "curves": {name: _thin(points) for name, points in self._curves.items()},
            "version": self._version,
        }

    def _again(self, run: Run | None) -> bool:
        """Tell whether lines came after the figures of the run's end: it was started again."""
        stats = self.folder / "stats.json"
        try:
            return run is not None and self._time > stats.stat().st_mtime + 1
        except OSError:
            return False

    def _eta(self, steps: float | None) -> float | None:
        """Return the seconds that are left at the pace of the last lines; None if unknown."""
        if steps is None or len(self._marks) < 2:
            return None
        (first, began), (last, now) = self._marks[0], self._marks[-1]
        pace = (last - first) / (now - began) if now > began else 0.0
        return (steps - last) / pace if pace > 0 else None

    def _restart(self, identity: int | None) -> None:
        self._identity, self._offset, self._rest = identity, 0, b""
        self._curves: dict[str, list[tuple[float, float]]] = {}
        self._last: dict[str, float] = {}
        self._marks: list[tuple[float, float]] = []
        self._time, self._step, self._counts_steps = 0.0, 0.0, False
        self._version = getattr(self, "_version", 0)

    def _append(self) -> None:
        try:
            descriptor = open_regular(str(self._file))
        except (FileNotFoundError, LinkError, PermissionError):
            return
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._identity or status.st_size < self._offset:
                self._restart(status.st_ino)  # a resumed run has written the file again
            file.seek(self._offset)
            data = file.read(MAX_READ)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                values = parse_json(line, where=str(self._file), infinite=True)
            except (ValueError, DreamshardError):
                continue  # the half line of a killed process
            if isinstance(values, dict):
                self._note(values)

    def _note(self, line: dict[str, Any]) -> None:
        self._version += 1
        self._time = float(line["time"]) if is_number(line.get("time")) else self._time
        if is_number(line.get("step")):
            self._counts_steps, self._step = True, float(line["step"])
        elif is_number(line.get("count")):
            self._step += float(line["count"])
            line = line | self._rate(float(line["count"]))
        self._marks = [*self._marks[-9:], (self._step, self._time)]
        for name, value in line.items():
            if name in _ASIDE or not is_number(value):
                continue
            self._last[name] = float(value)
            if name in self._curves or len(self._curves) < MAX_CURVES:
                self._draw(self._curves.setdefault(name, []), float(value))

    def _rate(self, count: float) -> dict[str, float]:
        """Return images per second of a line that tells of a finished unit."""
        began = self._marks[0][1] if self._marks else 0.0
        before = self._marks[0][0] if self._marks else 0.0
        passed = self._time - began
        return {"img_per_s": (self._step - before) / passed} if began and passed > 0 else {}

    def _draw(self, points: list[tuple[float, float]], value: float) -> None:
        place = bisect_left(points, self._step, key=lambda point: point[0])
        del points[place:]  # of a step that is told twice, the later value stands
        points.append((self._step, value))
        if len(points) > MAX_KEPT:
            del points[1::2]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Choose points to draw, the last one among them."""
    step = -(-len(points) // SHOWN_POINTS)
    return points[::-1][:: max(1, step)][::-1]
