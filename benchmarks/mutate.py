"""Change the product a little, many times, and see whether its tests notice.

    make mutate                      all mutants with a name, and 12 of each file below
    python benchmarks/mutate.py --each 40 --files storage/ledger/leases.py
    python benchmarks/mutate.py --files        only those with a name

Works on a copy of the checkout, with cosmic-ray's operators; what is drawn is decided by the seed.
Mutants that change nothing but annotations are left out. The last line is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import ast
import contextlib
import difflib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dreamshard.progress import Progress
from tests.forked import Forked

OUTBOX, UPLOAD = "pipeline/teachers/recording/outbox.py", "distill/data/upload.py"


class Named(NamedTuple):
    """A mutant made by hand.

    Args:
        name: what it does wrong.
        file: that is changed.
        was: its text, which must stand there once.
        becomes: what stands there instead.
        tests: below tests/unit, that must notice.
    """

    name: str
    file: str
    was: str
    becomes: str
    tests: str


FILES = {
    "storage/ledger/commits.py": "storage/ledger",
    "storage/ledger/leases.py": "storage/ledger/test_leases.py",
    "storage/ledger/publish.py": "storage/ledger",
    "storage/batches/positions.py": "storage/batches",
    "pipeline/images/sources/tar_index.py": "pipeline/images/sources",
    "pipeline/learning/loop.py": "pipeline/learning",
    "pipeline/learning/checkpoint.py": "pipeline/learning",
    "pipeline/offline/driver.py": "pipeline/offline/test_driver.py",
    "pipeline/streaming/window.py": "pipeline/streaming/test_window.py",
    "distill/training/optim.py": "distill/training/test_optim.py",
    "distill/losses/feature.py": "distill/losses",
}
"""What is changed -> the tests below tests/unit that must notice; fast ones, without Ray."""
NAMED = (
    Named("EMA followed before the step", "pipeline/learning/loop.py",
          "stepper.step()\n        learner.follow(step)",
          "learner.follow(step)\n        stepper.step()",
          "pipeline/learning/test_loop.py"),
    Named("SyncBatchNorm removed", "distill/training/launch.py",
          "        share_batch_norm(method)", "        pass",
          "distill/training/test_launch.py"),
    Named("norm of an overflowed step noted", "distill/training/runlog.py",
          "torch.zeros_like(taken.norm) if taken.skipped else taken.norm", "taken.norm",
          "distill/training/test_runlog.py"),
    Named("a claim that is always fresh to its holder", "storage/ledger/publish.py",
          "if evidence.elapsed() - self.since < CLAIM_TTL_S / 2:", "if True:",
          "storage/ledger/test_publish.py"),
    Named("a claim that is always fresh to others", "storage/ledger/evidence.py",
          "if now - before[1] >= ttl_s:", "if False:",
          "storage/ledger/test_publish.py"),
    Named("gc that lists what live runs hold", "storage/verbs/collect.py",
          '*["a run is at work on it"] * has_live_run(files)', "",
          "storage/verbs/test_collect.py"),
    Named("gc that takes temporary files of live runs", "storage/verbs/collect.py",
          "bool(readers(files)) or has_live_run(files)", "bool(readers(files))",
          "storage/verbs/test_collect.py"),
    Named("the outbox without record_stream", OUTBOX,
          "            value.record_stream(self._stream)", "            pass",
          "pipeline/teachers/recording/test_outbox.py"),
    Named("the outbox not waiting for the computing stream", OUTBOX,
          "            self._stream.wait_stream(torch.cuda.current_stream(value.device))\n", "",
          "pipeline/teachers/recording/test_outbox.py"),
    Named("the outbox not waiting for its own stream", OUTBOX,
          "            self._stream.synchronize()", "            pass",
          "pipeline/teachers/recording/test_outbox.py"),
    Named("the uploader without record_stream", UPLOAD,
          "copied.record_stream(current)", "pass",
          "distill/data/test_upload.py"),
    Named("the uploader not waited for by the computing stream", UPLOAD,
          "        current.wait_stream(self._stream)\n", "",
          "distill/data/test_upload.py"),
    Named("the uploader not waiting for its own stream", UPLOAD,
          "            self._stream.synchronize()", "            pass",
          "distill/data/test_upload.py"),
)  # fmt: skip
"""What an earlier trial left alive, and its kin: each is tried every time."""
EXTRA_TESTS = {"pipeline/learning/loop.py": "distill/training/test_scaled_steps.py"}
HANGS = -1
SLOWER = 4.0
"""A mutant whose tests take so many times the usual time hangs: it is noticed, too."""
SKIPPED_OPERATORS = ("core/NumberReplacer",)
"""Other numbers of texts' widths, thread counts, retries: mostly matters of taste."""


def main() -> None:
    """Try the mutants asked for, and print the score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--each", type=int, default=12, help="mutants per file (count)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--files", nargs="*", default=list(FILES), metavar="FILE")
    asked = parser.parse_args()
    if unknown := set(asked.files) - set(FILES):
        parser.error(f"--files: got {', '.join(sorted(unknown))}, allowed {', '.join(FILES)}")
    began = time.perf_counter()
    scores: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="dreamshard-mutate-") as folder:
        copy_checkout(Path(folder))
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": folder, "HF_HUB_OFFLINE": "1"}
        total = len(NAMED) + len(asked.files) * asked.each
        with Progress("mutate", total=total, unit="mutant") as progress:
            names = {"tried": 0, "killed": 0}
            for named in NAMED:
                killed = try_named(named)
                names = {"tried": names["tried"] + 1, "killed": names["killed"] + killed}
                if not killed:
                    print(f"survived: {named.name}", flush=True)
                progress.update(1)
            for name in asked.files:
                scores[name] = judge(name, count=asked.each, seed=asked.seed, progress=progress)
    killed = sum(score["killed"] for score in [names, *scores.values()])
    tried = sum(score["tried"] for score in [names, *scores.values()])
    result = {
        "benchmark": "mutate", "killed": killed, "tried": tried,
        "score": round(killed / tried, 3), "named": names, "files": scores,
        "seed": asked.seed, "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    print(json.dumps(result))


def copy_checkout(folder: Path) -> None:
    """Copy what git knows of this checkout, as it stands in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


class Trial:
    """Run the tests of one file, unchanged first: they must pass.

    Args:
        name: of the file, in the folder that this process stands in.
        tests: below tests/unit.
    """

    def __init__(self, name: str, tests: Sequence[str]) -> None:
        self.file = Path(name)
        self.text = self.file.read_text(encoding="utf-8")
        self._words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        self._words += [f"tests/unit/{test}" for test in tests]
        self._limit = 600.0
        began = time.perf_counter()
        code, said = self._run()
        if code:
            raise SystemExit(f"{name}: its tests fail before anything is changed\n{said[-2000:]}")
        self._limit = 10 + SLOWER * (time.perf_counter() - began)

    def notices(self, text: str) -> bool:
        """Tell whether the tests fail, or hang, when the file has another text."""
        self._write(text)
        code, _ = self._run()
        self._write(self.text)
        return code != 0

    def _write(self, text: str) -> None:
        """Write the file; what was compiled of it may look as if it were of the same second."""
        self.file.write_text(text, encoding="utf-8")
        for compiled in (self.file.parent / "__pycache__").glob(f"{self.file.stem}.*.pyc"):
            compiled.unlink()

    def _run(self) -> tuple[int, str]:
        run = Forked(self._words, cwd=Path.cwd(), env=os.environ, new_session=True)
        try:
            said, _ = run.communicate(self._limit)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            return HANGS, ""
        return run.wait(), said


def try_named(named: Named) -> bool:
    """Tell whether the tests of a mutant made by hand notice it."""
    trial = Trial(named.file, [named.tests])
    if trial.text.count(named.was) != 1:
        raise SystemExit(f"{named.name}: {named.file} has not once: {named.was}")
    return trial.notices(trial.text.replace(named.was, named.becomes))


def judge(name: str, *, count: int, seed: int, progress: Progress) -> dict[str, int]:
    """Try some mutants of one file; print the survivors as differences, return the counts."""
    trial = Trial(name, [FILES[name], *([EXTRA_TESTS[name]] if name in EXTRA_TESTS else [])])
    score = {"tried": 0, "killed": 0}
    for text in itertools.islice(draw(name, seed=seed), count):
        killed = trial.notices(text)
        score = {"tried": score["tried"] + 1, "killed": score["killed"] + killed}
        if not killed:
            lines = trial.text.splitlines(), text.splitlines()
            print("\n".join(difflib.unified_diff(*lines, name, name, n=2, lineterm="")), flush=True)
        progress.update(1, survived=score["tried"] - score["killed"])
    print(f"{name}: {score['killed']} of {score['tried']} noticed", flush=True)
    return score


def draw(name: str, *, seed: int) -> Iterator[str]:
    """Draw mutants of one file, as texts: no numbers, no annotations, nothing that is no Python."""
    from cosmic_ray import commands
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(":memory:", WorkDB.Mode.create) as book:
        commands.init([Path(name)], book, {})
        mutations = sorted((item.mutations[0] for item in book.work_items), key=_order)
    text = Path(name).read_text(encoding="utf-8")
    spans = annotation_spans(text)
    kept = [mutation for mutation in mutations if _matters(mutation, spans)]
    random.Random(f"{seed}/{name}").shuffle(kept)
    for mutation in kept:
        operator = get_operator(mutation.operator_name)(**mutation.operator_args)
        mutant = mutate_code(text, operator, mutation.occurrence)
        if mutant is not None and _compiles(mutant):
            yield mutant


def _compiles(text: str) -> bool:
    """Tell whether a text is Python: operators are put in the place of `*` and `**` anywhere."""
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(SyntaxError):
        compile(text, "mutant", "exec")
        return True
    return False


def _order(mutation: Any) -> tuple[object, ...]:
    return (
        mutation.start_pos,
        mutation.operator_name,
        str(mutation.operator_args),
        mutation.occurrence,
    )


def _matters(mutation: Any, spans: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    inside = any(start <= mutation.start_pos < end for start, end in spans)
    return not inside and mutation.operator_name not in SKIPPED_OPERATORS


def annotation_spans(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations and aliases of types stand: (line, column) from and to."""
    spans = []
    for node in ast.walk(ast.parse(text)):
        notes: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            notes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            notes.append(node.returns)
        for note in notes:
            if note is not None and note.end_lineno is not None and note.end_col_offset is not None:
                end = (note.end_lineno, note.end_col_offset)
                spans.append(((note.lineno, note.col_offset), end))
    return spans


if __name__ == "__main__":
    main()
