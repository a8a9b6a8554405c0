"""Training as users start it: every launcher, killed and resumed, on several ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.forked import Forked
from tests.unit.distill.small_data import make_dataset

DEADLINE_S = 240.0
SETTINGS = """
batch_size: 8
log_every: 5
save_every: 10
device: cpu
student: {name: cifar_resnet, settings: {depths: [1, 1, 1], widths: [8, 8, 8]}}
dreamteacher: {width: 8}
"""
TIMES = ("time", "img_per_s", "wait_percent", "memory_gb")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a recipe beside the dataset it names."""
    root = tmp_path_factory.mktemp("train")
    make_dataset(root / "data")
    path = root / "train.yaml"
    path.write_text(f"data: {{dataset: {root}/data/boxes}}\n{SETTINGS}", encoding="utf-8")
    return path


Started = subprocess.Popen[str] | Forked


def start(repo_root: Path, *command: str, fork: bool = True) -> Started:
    """Start a command outside the repository, as on an uninstalled checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"OMP_NUM_THREADS": "1"}
    if fork:
        return Forked(command, cwd=repo_root.parent, env=environment, new_session=True)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=repo_root.parent,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: Started) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def kill_after(path: Path, process: Started) -> None:
    """Kill a run's whole session as soon as a checkpoint is there, in the middle of later steps."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def results(run_dir: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Return a run's metrics without times, and the student's weights."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    figures = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    weights = load_file(run_dir / "student" / "model.safetensors")
    return figures, {name: value.tobytes() for name, value in weights.items()}


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, repo_root: Path) -> Path:
    """Train with `accelerate launch` from beginning to end."""
    run_dir = recipe.parent / "undisturbed"
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    script = str(repo_root / "distill" / "train.py")
    finish(
        start(
            repo_root,
            *launcher,
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *(script, "--config", str(recipe), "--steps", "200", "--run_dir", str(run_dir)),
            fork=False,
        )
    )
    return run_dir


def test_killed_and_resumed_ends_as_if_undisturbed(
    recipe: Path, repo_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    script = str(repo_root / "distill" / "train.py")
    arguments = ("--config", str(recipe), "--steps", "200", "--run_dir", str(tmp_path))
    kill_after(tmp_path / "checkpoint-000060", start(repo_root, script, *arguments))
    assert not (tmp_path / "student").exists(), "killed in the middle"
    output = finish(start(repo_root, script, *arguments))
    assert "going on at step" in output
    assert results(tmp_path) == results(undisturbed)


def test_asked_to_stop_it_saves_first_and_goes_on_by_the_same_command(
    recipe: Path, repo_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    script = str(repo_root / "distill" / "train.py")
    arguments = ("--config", str(recipe), "--steps", "200", "--run_dir", str(tmp_path))
    process = start(repo_root, script, *arguments)
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "checkpoint-000020").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, output
    assert "interrupted: train: stopped after step" in output and "a checkpoint is saved" in output
    assert f"train.py {' '.join(arguments)}" in output, "the command that goes on"
    finish(start(repo_root, script, *arguments))
    assert results(tmp_path)[1] == results(undisturbed)[1]


def test_two_ranks_stop_together_and_have_one_folder(
    recipe: Path, repo_root: Path, tmp_path: Path
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    script = str(repo_root / "distill" / "train.py")
    arguments = (script, "--config", str(recipe), "--steps", "2000", "--run_dir", str(tmp_path))
    process = start(repo_root, *torchrun, *arguments)
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "checkpoint-000020").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)  # to torchrun, which asks its processes
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert "interrupted: train: stopped after step" in output, output
    last = max(path.name for path in tmp_path.glob("checkpoint-*"))
    step = int(last.removeprefix("checkpoint-"))
    assert f"after step {step:,} of 2,000" in output and step % 5 == 0, "where ranks meet"


def test_two_ranks_train_and_resume_exactly(recipe: Path, repo_root: Path, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    script = str(repo_root / "distill" / "train.py")
    arguments = (script, "--config", str(recipe), "--steps", "20", "--run_dir", str(tmp_path))
    output = finish(start(repo_root, *torchrun, *arguments))
    assert "steps of 8 = 2 x 4" in output
    figures, weights = results(tmp_path)
    assert [line["step"] for line in figures] == [5, 10, 15, 20], "only one rank writes"
    state = json.loads((tmp_path / "checkpoint-000020" / "state.json").read_text(encoding="utf-8"))
    assert (state["position"], state["processes"]) == (160, 2)
    shutil.rmtree(tmp_path / "checkpoint-000020")
    shutil.rmtree(tmp_path / "student")
    finish(start(repo_root, *torchrun, *arguments))
    assert results(tmp_path) == (figures, weights)
