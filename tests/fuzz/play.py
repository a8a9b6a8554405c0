"""Play hostile cases: `python -m tests.fuzz.play [--cases N] [--seed K] [--kind KIND]`.

`make fuzz CASES=10000 SEED=k` calls it. Prints every case that went wrong and, at the end, how many
there were of each kind; the exit code is 1 if any went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dreamshard.errors import DreamshardError
from tests.fuzz import bases, cases, jail

TOGETHER = (("config", "dataset", "shards"), ("student", "teacher", "run"))
"""Kinds that are played in one process, which is forked for each case: the second need torch."""


def warm(kind: str, base: Path, work: Path) -> None:
    """Load what the cases of a kind need before any of them is forked: sound things, read once."""
    for folder in sorted(path for path in (base / kind).iterdir() if path.is_dir()):
        if kind == "config" and "digits" not in folder.name:
            continue
        for seed in range(2):  # some things are drawn
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(folder, work / "x", symlinks=True)
            for do in cases.THINGS[kind](work / "x", base, random.Random(seed)).values():
                _quietly(do)
    (base / "EXECUTED").unlink(missing_ok=True)


def _quietly(do: jail.Doing) -> None:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(DreamshardError),
    ):
        do()


def apart(work: Callable[[int], None]) -> Iterator[str]:
    """Do something in a forked process; yield the lines that it writes to the descriptor it gets.

    So that the process which forks the cases of one kind is no larger than these need.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reads)
            work(writes)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads, encoding="utf-8") as lines:
        yield from lines
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the process that plays has died")


def run(drawn: Iterable[tuple[int, str]], folder: Path) -> Iterator[cases.Case]:
    """Play cases below an empty folder, one kind after another.

    Args:
        drawn: seeds, and kinds ("": as the seed draws it).
        folder: empty.
    """
    base, work = folder / "base", folder / "work"
    seeds: dict[str, list[int]] = {kind: [] for kind in cases.SHARES}
    for seed, kind in drawn:
        seeds[kind or cases.kind_of(seed)].append(seed)
    for kinds in TOGETHER:

        def play(writes: int, kinds: Sequence[str] = kinds) -> None:
            for kind in filter(seeds.get, kinds):
                _quietly(lambda kind=kind: bases.make(kind, base))
                warm(kind, base, work)
                for seed in seeds[kind]:
                    case = cases.play(seed, base, work, kind=kind)
                    os.write(writes, (json.dumps(asdict(case)) + "\n").encode())

        for line in apart(play):
            yield cases.Case(**json.loads(line))


def main() -> int:
    """Play as many as asked for; tell every minute how far it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", choices=["", *cases.SHARES])
    options = parser.parse_args()
    count, refused, wrong, told = Counter(), Counter(), 0, time.monotonic()
    drawn = [(seed, options.kind) for seed in range(options.seed, options.seed + options.cases)]
    with tempfile.TemporaryDirectory(prefix="dreamshard-fuzz-") as place:
        for case in run(drawn, Path(place)):
            count[case.kind] += 1
            refused[case.kind] += any(case.codes.values())
            wrong += bool(case.problems)
            if case.problems:
                sys.stdout.write(f"{case}\n")
            elif time.monotonic() - told > 60:
                told = time.monotonic()
                sys.stdout.write(f"... {count.total()} cases, {wrong} went wrong\n")
            sys.stdout.flush()
    for kind, number in sorted(count.items()):
        sys.stdout.write(f"{kind}: {number} cases, {refused[kind]} refused\n")
    sys.stdout.write(f"{count.total()} cases, {wrong} went wrong\n")
    return bool(wrong)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
