"""Offline runs that are killed, stopped, starved and cut off end with the bytes of quiet ones.

A few schedules here; `make chaos` plays DREAMSHARD_CHAOS of them (see `tests/chaos/play.py`), and
every seed that ever found something stays in FOUND.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.schedules import draw
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
FEW = (2, 4, 5, 7, 8)
FOUND = {
    12: "a driver paused while it wrote a record had its temporary file swept, and died of it; "
    "that mended, it waited for ever, because another run had left it nothing to make",
}
"""Seeds that found a failure once, and what it was."""
FULL = int(os.environ.get("DREAMSHARD_CHAOS", "0"))
SEEDS = list(dict.fromkeys([*FOUND, *(range(FULL) if FULL else FEW)]))


def play(folder: Path, seeds: list[int]) -> list[dict[str, object]]:
    words = ["-m", "tests.chaos.play", str(folder), *map(str, seeds)]
    player = Forked(words, cwd=ROOT, env=os.environ)
    said, _ = player.communicate(timeout=120 + 60 * len(seeds))
    assert player.returncode == 0, said
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_seeds_draw_what_they_drew() -> None:
    drawn = [draw(seed) for seed in range(300)]
    assert [draw(seed) for seed in range(300)] == drawn
    assert {plan.kind for plan in drawn} == {"kill", "stop", "disk", "store"}
    assert {plan.victim for plan in drawn} == {"actor", "driver", "all"}
    assert {"forward", "write", "rename", "link", "any"} <= {plan.step for plan in drawn}
    assert {plan.drivers for plan in drawn} == {1, 2}
    assert {plan.remote for plan in drawn} == {plan.cut_off for plan in drawn} == {False, True}


def test_whatever_happens_the_bytes_are_the_same(tmp_path: Path) -> None:
    told = play(tmp_path, SEEDS)
    assert [line["seed"] for line in told] == SEEDS
    struck = sum(bool(line["struck"]) for line in told)
    sys.stderr.write(f"{len(told)} schedules, {struck} of them struck\n")
    assert struck >= len(told) // 3
    assert not [line for line in told if line["problems"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        words = ["--source.kind", "digits", "--teacher.kind", "noise", "--teacher.levels", "[s1]"]
        words += ["--image.size", "16"]
        words += ["--root", str(small / "data"), "--run_dir", str(tmp_path / "run")]
        words += ["--samples_per_unit", "16", "--samples", "256", "--actors", "1"]
        code = f"""
import sys
from pathlib import Path
from dreamshard.console.cli import main
from dreamshard.errors import run_main
from pipeline import run
from pipeline.cluster.join import Cluster
from tests.chaos import play
from tests.chaos.fake_ray import FakeRay, fork_spare
FakeRay([fork_spare(lambda: None, outlives=False) for _ in range(3)]).install()
play.hurry()
run.cluster = play.no_cluster
run.describe = lambda where: Cluster(where, ({{"CPU": 4.0}},))
sys.exit(run_main(main, ["encode", *{words!r}]))
"""
        full = Forked(["-c", code], cwd=ROOT, env=os.environ)
        said, _ = full.communicate(timeout=120)
        assert full.returncode == 3, said
        assert "No space left on device" in said and "same command again" in said
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        again = Forked(["-c", code], cwd=ROOT, env=os.environ)
        said, _ = again.communicate(timeout=120)
        assert again.returncode == 0, said
        assert "256 of 256 are there" in said
        (dataset,) = (small / "data").iterdir()
        assert not [path for path in dataset.rglob("staging/**/*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(small)], check=True)
