"""`dreamshard serve` killed under a trainer that reads from it: nothing lost, nothing twice.

The service has a cluster of its own, which goes with it; it is started again, and so is the trainer
with the address of the new one. One schedule here; `make chaos` plays a twentieth of
DREAMSHARD_CHAOS of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.cluster.orphans import VARIABLE
from storage.dataset import Dataset
from storage.verbs.verify import verify_dataset
from tests.processes import when
from tests.stream_runs import TIMES, results

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
FULL = int(os.environ.get("DREAMSHARD_CHAOS", "0"))
SEEDS = range(max(1, FULL // 20))
DEADLINE_S, GONE_S = 240.0, 20.0
SAMPLES, STEPS = 64, 12
TEACHER = "{kind: noise, levels: [s2], settings: {channels: 4, delay_s: 0.2}}"
ASKED = f"""
  name: shaken
  root: data
  keep: true
  teacher: {TEACHER}
  image: {{size: 16}}
  source: {{kind: digits}}
  samples: {SAMPLES}
  samples_per_unit: 16
  micro_batch: 8
"""
TRAIN = f"""
steps: {STEPS}
batch_size: 8
log_every: 1
save_every: 2
device: cpu
student: {{name: cifar_resnet, settings: {{depths: [1, 1, 1], widths: [8, 8, 8]}}}}
dreamteacher: {{width: 8}}
data:
 kind: stream
 shuffle: block
 stream:{ASKED}
"""


@dataclass(frozen=True)
class Blow:
    """Who is killed after so many steps of the trainer: the service, or both of them."""

    step: int
    trainer_too: bool


def draw(seed: int) -> list[Blow]:
    """Draw a schedule; equal seeds give equal ones."""
    rng = random.Random(f"served/{seed}")
    steps = sorted(rng.sample(range(1, STEPS - 2), rng.choice((1, 1, 2))))
    return [Blow(step, rng.random() < 0.3) for step in steps]


@dataclass
class Stage:
    """A folder in which a service and a trainer are started over and over."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, script: str, *words: str, told: dict[str, str], log: str) -> subprocess.Popen:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / script), *words],
                cwd=self.folder,
                env={**plain, **told, "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
            )
        self.running.append(process)
        return process

    def serve(self) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
        """Start the service; return it and what a trainer has to be told."""
        words = ("--config", "serve.yaml", "--actors", "2")
        process, log = self.start("pipeline/serve.py", *words, told={}, log="serve.txt"), None

        def ready() -> bool:
            nonlocal log
            log = (self.folder / "serve.txt").read_text()
            assert process.poll() is None, log
            return "dreamshard train" in log

        when(ready, timeout_s=DEADLINE_S)
        assert log is not None
        exports = [line.split("export ")[1] for line in log.splitlines() if "  export " in line]
        return process, dict(line.split("=", 1) for line in exports)

    def train(self, told: dict[str, str]) -> subprocess.Popen[bytes]:
        words = ("--config", "train.yaml", "--run_dir", "run")
        return self.start("distill/train.py", *words, told=told, log="train.txt")

    def steps(self) -> int:
        path = self.folder / "run" / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


def of_cluster(driver: int) -> list[int]:
    """Return the processes of a driver's embedded cluster."""
    mark, found = f"{VARIABLE}={driver}-".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(word.startswith(mark) for word in (entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def test_seeds_draw_what_they_drew() -> None:
    drawn = [draw(seed) for seed in range(50)]
    assert [draw(seed) for seed in range(50)] == drawn
    assert {blow.trainer_too for blows in drawn for blow in blows} == {False, True}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_student_is_that_of_a_quiet_run(seed: int, tmp_path: Path) -> None:
    from distill.train import main

    stage = Stage(tmp_path)
    (tmp_path / "serve.yaml").write_text(ASKED.replace("\n  ", "\n"))
    (tmp_path / "train.yaml").write_text(TRAIN)
    try:
        trainer = None
        for blow in draw(seed):
            service, told = stage.serve()
            trainer = stage.train(told)
            when(
                lambda at=blow.step, it=trainer: stage.steps() >= at or it.poll() is not None,
                timeout_s=DEADLINE_S,
            )
            assert stage.steps() >= blow.step, (tmp_path / "train.txt").read_text()
            assert of_cluster(service.pid)
            service.send_signal(signal.SIGKILL)
            if blow.trainer_too:
                trainer.send_signal(signal.SIGKILL)
            service.wait()
            struck = time.monotonic()
            when(lambda pid=service.pid: not of_cluster(pid), timeout_s=GONE_S)
            trainer.wait(DEADLINE_S)
            sys.stderr.write(f"the trainer ended after {time.monotonic() - struck:.0f} s\n")
            text = (tmp_path / "train.txt").read_text()
            # Ray itself ends whoever cannot reach its cluster for a minute, in its own words.
            assert blow.trainer_too or ("Traceback" not in text and trainer.returncode == 1), text
        service, told = stage.serve()
        assert stage.train(told).wait(DEADLINE_S) == 0, (tmp_path / "train.txt").read_text()
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    finally:
        for process in stage.running:
            if process.poll() is None:
                process.kill()
    live = tmp_path / "live"
    words = ["--config", str(tmp_path / "train.yaml"), "--run_dir", str(live)]
    main([*words, "--data.kind", "live", "--data.stream.keep", "false"])
    but = (*TIMES, "memory_gb")
    assert results(tmp_path / "run", but=but) == results(live, but=but)
    (folder,) = (path.parent for path in tmp_path.glob("data/*/dataset.json"))
    dataset = Dataset.open(str(folder))
    commits = dataset.committed()
    keys = [key for unit in commits for key in commits[unit].keys]
    assert len(keys) == len(set(keys)), "none is there twice"
    report = verify_dataset(dataset)
    assert not [*report.findings, *report.missing]
    assert not [path for path in (folder / "staging").rglob("*") if path.is_file()]
