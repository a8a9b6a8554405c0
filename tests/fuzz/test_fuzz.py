"""Hostile files through the commands a user gives: nothing runs, nothing is written, nothing hangs.

A few cases here; `make fuzz CASES=10000 SEED=k` plays others, and every seed that ever found
something stays in FOUND.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.foreign.sealed import check_seal
from tests.fuzz import cases, jail, mutations, play

pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")

FEW = 100
FOUND = {
    (6055, "student"): "publish filled the disk with the hole of a sparse file",
}
"""(seed, kind) that found a failure once, and what it was."""


def test_nothing_runs_nothing_is_written_nothing_hangs(tmp_path: Path) -> None:
    told = list(play.run([*((seed, "") for seed in range(FEW)), *FOUND], tmp_path))
    assert not [str(case) for case in told if case.problems]
    refused = [case for case in told if any(case.codes.values())]
    assert len(refused) > FEW // 3, "most of what is changed is noticed"
    assert {case.kind for case in told} == set(cases.SHARES)


def test_the_jail_sees_what_must_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "CPU_S", 0.5)
    monkeypatch.setattr(jail, "MEMORY", 200 << 20)

    def raises() -> None:
        raise OverflowError("x")

    def refuses() -> None:
        raise DataError("a file")

    def warns() -> None:
        sys.stderr.write("RuntimeWarning: x\n")

    def spins() -> None:
        while True:
            pass

    def computes() -> None:
        ends = time.process_time() + 1.0
        while time.process_time() < ends:
            pass

    def takes() -> None:
        taken = [bytearray(os.urandom(1 << 20) * 16) for _ in range(40)]
        time.sleep(60 + len(taken))

    def found(do: jail.Doing) -> str:
        return "; ".join(jail.problems_of({"it": do})[0])

    assert "OverflowError" in found(raises)
    assert found(refuses) == "" and jail.problems_of({"it": refuses})[1] == {"it": 3}
    assert "RuntimeWarning" in found(warns)
    assert "takes too long" in found(spins)
    assert "takes more than" in found(takes)
    assert "dies with -9" in found(lambda: os.kill(os.getpid(), 9))
    assert "exit code 7" in found(lambda: sys.exit(7))
    monkeypatch.setattr(jail, "CPU_S", 20.0)
    monkeypatch.setattr(jail, "ASLEEP_S", 0.3)
    assert "hangs" in found(lambda: time.sleep(60))
    assert found(computes) == "", "however long it has to wait for the processor"


def test_the_deceivers_digest_is_right() -> None:
    data = b'{"a": 1, "b": [2]}'
    assert not check_seal(data) and check_seal(mutations.sign(data))
    assert check_seal(mutations.sign(b"{}"))


def test_a_seed_draws_what_it_drew(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        folder = tmp_path / name / "x"
        for part in ("dataset.json", "manifest.parquet", "a/b.npy"):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).write_bytes(b'{"a": [1, {"b": 2}]}')
        outside = tmp_path / name / "outside"
        outside.mkdir()
        rng = random.Random(7)
        told.append([cases.change(rng, "dataset", folder, outside, tmp_path) for _ in range(3)])
    assert told[0] == told[1]
