"""Trainings that are killed at any change of a file end with the folders of quiet ones.

A few schedules here; `make chaos` plays DREAMSHARD_CHAOS of them (see `tests/chaos/learning.py`),
and every seed that ever found something stays in FOUND.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
from tests.chaos.learning import LAUNCHER, draw, draw_launched
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
FEW = ("0", "3", "t5")
FOUND: dict[str, str] = {}
"""Seeds that found a failure once, and what it was."""
FULL = int(os.environ.get("DREAMSHARD_CHAOS", "0"))
PLAYED = [*map(str, range(FULL)), *(f"t{seed}" for seed in range(FULL // 4))] if FULL else FEW
SEEDS = list(dict.fromkeys([*FOUND, *PLAYED]))
"""Those with a t: torchrun starts the ranks, and may be killed itself."""


def test_seeds_draw_what_they_drew() -> None:
    drawn = [draw(seed) for seed in range(100)]
    assert [draw(seed) for seed in range(100)] == drawn
    assert {(plan.command, plan.ranks) for plan in drawn} == {
        (command, ranks) for command in ("pretrain", "train") for ranks in (1, 2)
    }
    few = [drawn[int(seed)] for seed in FEW if seed.isdecimal()]
    assert {plan.command for plan in few} == {"pretrain", "train"}
    launched = [draw_launched(seed) for seed in range(100)]
    assert {hit for plan in launched for hit, _, _ in plan.blows} == {LAUNCHER, 0, 1}


def test_whenever_it_is_killed_its_folder_is_the_same(tmp_path: Path) -> None:
    player = ["-m", "tests.chaos.learning", str(tmp_path), *map(str, SEEDS)]
    done = Forked(player, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said, _ = done.communicate(timeout=300 + 90 * len(SEEDS))
    assert done.returncode == 0, said
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["seed"] for line in told] == [int(seed.lstrip("t")) for seed in SEEDS]
    struck = sum(bool(line["struck"]) for line in told)
    sys.stderr.write(f"{len(told)} schedules, {struck} of them struck\n")
    assert struck >= len(told) // 2
    assert not [line for line in told if line["problems"]]
