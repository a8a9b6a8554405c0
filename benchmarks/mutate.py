"""Change the product a little, many times, and see whether its tests notice.

    make mutate                                     all files below, 12 mutants each
    python benchmarks/mutate.py --each 40 --files storage/ledger/leases.py

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
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from typing import Any

from dreamshard.progress import Progress

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
KEPT = {
    "EMA followed before the step": "pipeline/learning/test_loop.py",
    "SyncBatchNorm removed": "distill/training/test_launch.py",
    "norm of an overflowed step noted": "distill/training/test_runlog.py",
    "a claim that is always fresh": "storage/ledger/test_publish.py",
    "gc that ignores live runs": "storage/verbs/test_collect.py",
    "the outbox without record_stream": "pipeline/teachers/recording/test_outbox.py",
    "the outbox not waiting for the computing stream": "pipeline/teachers/recording/test_outbox.py",
    "the outbox not waiting for its own stream": "pipeline/teachers/recording/test_outbox.py",
}
"""Mutants that an earlier trial left alive -> the tests below tests/unit that kill them now; each
was made by hand on 2026-11-26, and its tests failed."""
EXTRA_TESTS = {"pipeline/learning/loop.py": "distill/training/test_scaled_steps.py"}
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
    parser.add_argument("--files", nargs="*", default=list(FILES), choices=list(FILES))
    asked = parser.parse_args()
    began = time.perf_counter()
    scores: dict[str, dict[str, int]] = {}
    survivors: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dreamshard-mutate-") as folder:
        copy_checkout(Path(folder))
        os.chdir(folder)
        with Progress("mutate", total=len(asked.files) * asked.each, unit="mutant") as progress:
            for name in asked.files:
                scores[name], alive = judge(
                    name, count=asked.each, seed=asked.seed, progress=progress
                )
                survivors += alive
    print("\n\n".join(survivors))
    killed = sum(score["killed"] for score in scores.values())
    tried = sum(score["tried"] for score in scores.values())
    result = {
        "benchmark": "mutate", "killed": killed, "tried": tried,
        "score": round(killed / max(tried, 1), 3), "files": scores,
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


def judge(
    name: str, *, count: int, seed: int, progress: Progress
) -> tuple[dict[str, int], list[str]]:
    """Try some mutants of one file; return its counts, and the survivors as differences."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import TestOutcome

    tests = [f"tests/unit/{FILES[name]}"]
    tests += [f"tests/unit/{EXTRA_TESTS[name]}"] if name in EXTRA_TESTS else []
    words = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    os.environ["PYTHONPATH"] = os.getcwd()
    began = time.perf_counter()
    plain = subprocess.run(words, capture_output=True, text=True, check=False)
    if plain.returncode:
        raise SystemExit(
            f"{name}: its tests fail before anything is changed\n{plain.stdout[-2000:]}"
        )
    limit = 10 + SLOWER * (time.perf_counter() - began)
    score, alive = {"tried": 0, "killed": 0}, []
    for item in draw(name, count=count, seed=seed):
        result = mutate_and_test(item.mutations, " ".join(words), limit)
        survived = result.test_outcome == TestOutcome.SURVIVED
        score["tried"] += 1
        score["killed"] += not survived
        if survived:
            alive.append(result.diff or f"{name}: {item.mutations}")
        progress.update(1, survived=len(alive))
    return score, alive


def draw(name: str, *, count: int, seed: int) -> list[Any]:
    """Draw mutants of one file: no numbers, no annotations."""
    from cosmic_ray import commands
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(":memory:", WorkDB.Mode.create) as book:
        commands.init([Path(name)], book, {})
        items = sorted(book.work_items, key=lambda item: _order(item.mutations[0]))
    spans = annotation_spans(Path(name).read_text(encoding="utf-8"))
    kept = [item for item in items if _matters(item.mutations[0], spans)]
    return random.Random(f"{seed}/{name}").sample(kept, min(count, len(kept)))


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
