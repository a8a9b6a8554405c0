"""Whatever a checkpoint holds, nothing of it runs: an error names it, and memory stays small.

All files are read by one child process, which reports what each did.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pipeline.teachers.hostile_checkpoints import CASES, MARK

MEMORY = 200 << 20
CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from dreamshard.errors import DreamshardError
from pipeline.teachers import weights
from pipeline.teachers.gan.instances import read_instances
from pipeline.teachers.gan.stylegan2.snapshot import read_snapshot

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) << 10

def peak():
    return status("VmHWM") if sys.platform == "linux" else resource.getrusage(0).ru_maxrss

def reset():
    if sys.platform == "linux":
        open("/proc/self/clear_refs", "w").write("5")
        return status("VmRSS")
    return peak()

def read(path):
    if path.suffix == ".pkl":
        stored = read_snapshot(path, "G_ema")
        stored.state()
    elif path.suffix in (".npy", ".npz"):
        _, problems = read_instances(path, 4, 0)
        return "; ".join(map(str, problems))
    else:
        weights.shapes(path), weights.read([path])

for folder in sorted(Path(sys.argv[1]).iterdir(), key=lambda each: int(each.name)):
    path, = folder.iterdir()
    before, told = reset(), {"name": folder.name}
    try:
        told["error"] = read(path) or ""
    except DreamshardError as error:
        told["error"] = str(error)
    except BaseException as error:
        told["wrong"] = repr(error)[:300]
    print(json.dumps({**told, "grown": peak() - before}), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder, place = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("place")
    for number, (file, raw, _) in enumerate(CASES.values()):
        (folder / str(number)).mkdir()
        (folder / str(number) / file).write_bytes(raw)
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-c", CHILD, str(folder)]
    root = str(Path(__file__).resolve().parents[4])
    env = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(place)}
    run = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    assert sorted(folder.rglob("*")) == before and not list(place.rglob("*")), "something was made"
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return dict(zip(CASES, rows, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name_within_bounds(told: dict[str, dict[str, Any]], name: str) -> None:
    file, raw, needle = CASES[name]
    row = told[name]
    assert "wrong" not in row, row
    error = row["error"]
    assert error and file in error and needle in error, error
    assert MARK not in error.replace("Nothing was run", "").replace("would run code", "").split()
    assert "\n" not in error and len(error) < 1000
    assert row["grown"] < 2 * len(raw) + MEMORY, f"{row['grown'] >> 20} MB"


def test_there_are_many() -> None:
    assert len(CASES) >= 60
