"""`dreamshard serve` in one process, trainers in others: found by address, stopped when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.stream_runs import TIMES, results

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 240.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STREAM = """
name: served
teacher: {kind: noise, levels: [s2, s4], settings: {channels: 4}}
image: {size: 16}
source: {kind: digits}
samples: 64
samples_per_unit: 32
micro_batch: 8
"""
TRAIN = """
steps: 10
batch_size: 8
log_every: 5
save_every: 5
device: cpu
student: {name: cifar_resnet, settings: {depths: [1, 1, 1], widths: [8, 8, 8]}}
dreamteacher: {width: 8}
data: {kind: stream, stream: {name: served, micro_batch: 8, samples: 64, samples_per_unit: 32,
  image: {size: 16}, source: {kind: digits},
  teacher: {kind: noise, levels: [s2, s4], settings: {channels: 4}}}}
"""


@dataclass
class Served:
    """A running service, and what it said that a trainer needs."""

    process: subprocess.Popen[str] | Forked
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "serve.yaml").write_text(STREAM)
    (folder / "train.yaml").write_text(TRAIN)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
    process = start(
        folder, plain, "pipeline/serve.py", "--config", "serve.yaml", "--actors", "2", fork=False
    )
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        name, _, value = line.strip().removeprefix("export ").partition("=")
        if line.strip().startswith("export "):
            said[name] = value
        if "dreamshard train" in line:
            break
    assert said.keys() >= {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}
    yield Served(process, folder, plain | said)
    if process.poll() is None:
        process.kill()


def start(
    folder: Path,
    environment: dict[str, str],
    script: str,
    *words: str,
    launcher: Sequence[str] = (),
    fork: bool = True,
) -> subprocess.Popen[str] | Forked:
    command, environment = [*launcher, str(ROOT / script), *words], {**environment, **ONE_THREAD}
    if fork:
        return Forked(command, cwd=folder, env=environment)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str] | Forked, code: int = 0) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, output
    return output


def test_a_trainer_finds_the_service_and_learns_what_live_learns(served: Served) -> None:
    train = ("distill/train.py", "--config", "train.yaml", "--run_dir")
    streamed = start(served.folder, served.environment, *train, "streamed")
    output = finish(streamed)
    assert "starting" not in output, "it found the actors there are"
    finish(start(served.folder, served.environment, *train, "live", "--data.kind", "live"))
    but = (*TIMES, "memory_gb")
    found, expected = (results(served.folder / name, but=but) for name in ("streamed", "live"))
    assert found == expected


def test_a_trainer_of_another_recipe_is_refused(served: Served) -> None:
    words = ("--config", "train.yaml", "--run_dir", "other", "--data.stream.seed", "4")
    output = finish(start(served.folder, served.environment, "distill/train.py", *words), 2)
    assert "the service 'served' on this cluster serves something else" in output
    assert "content.seed: 0 served, 4 asked for" in output and "Traceback" not in output


def test_the_token_is_for_its_owner_alone(served: Served) -> None:
    token = Path(served.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == 0 and len(token.read_text()) >= 32


def test_status_and_a_graceful_stop(served: Served) -> None:
    words = ("--config", "serve.yaml", "--action", "status")
    output = finish(start(served.folder, served.environment, "pipeline/serve.py", *words))
    assert "service 'served': 2 actors answer" in output
    started = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    output = finish(served.process, 130)
    assert "stopping; units being committed are finished first" in output
    assert time.monotonic() - started < 60


def test_two_ranks_without_a_service_start_one_and_learn_what_live_learns(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(TRAIN)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for kind in ("live", "stream"):
        words = ("--config", "train.yaml", "--run_dir", kind, "--data.kind", kind)
        more = ("--data.stream.actors", "2") if kind == "stream" else ()
        finish(start(tmp_path, plain, "distill/train.py", *words, *more, launcher=launcher))
    but = (*TIMES, "memory_gb")
    assert results(tmp_path / "stream", but=but) == results(tmp_path / "live", but=but)


def test_a_window_of_nothing_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(STREAM + "window: 0\n")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
    output = finish(start(tmp_path, plain, "pipeline/serve.py", "--config", "serve.yaml"), 2)
    assert "window: got 0, allowed 1 or more micro-batches. Try --window" in output
