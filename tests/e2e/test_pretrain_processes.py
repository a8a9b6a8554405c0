"""Pretraining under torchrun: two processes on one global batch."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.learning.pretraining.state import WEIGHTS
from pipeline.pretrain import main
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 240.0
CONFIG = """
source: {kind: digits}
image: {size: 16}
unet: {block_out_channels: [8, 8], norm_num_groups: 4}
steps: 3
batch_size: 4
warmup_steps: 1
num_samples: 1
sample_steps: 1
threads: 1
device: cpu
"""


def test_two_processes_train_the_teacher_of_one(tmp_path: Path) -> None:
    """Gradients are averaged over the same global batch: equal up to rounding."""
    config = tmp_path / "pretrain.yaml"
    config.write_text(CONFIG)
    main(["--config", str(config), "--out", str(tmp_path / "one")])
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += [str(ROOT / "pipeline" / "pretrain.py"), "--config", str(config)]
    done = Forked([*command, "--out", str(tmp_path / "two")], cwd=Path.cwd(), env=os.environ)
    said, _ = done.communicate(DEADLINE_S)
    assert done.returncode == 0, said
    one, two = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_a_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: the rerun ends with the weights of an undisturbed run."""
    config = tmp_path / "pretrain.yaml"
    config.write_text(CONFIG.replace("steps: 3", "steps: 40") + "checkpoint_every: 8\n")
    main(["--config", str(config), "--out", str(tmp_path / "whole")])
    command = [str(ROOT / "pipeline" / "pretrain.py"), "--config", str(config)]
    command += ["--out", str(tmp_path / "killed")]
    run = tmp_path / "killed" / "run"
    process = Forked(command, cwd=Path.cwd(), env=os.environ)
    try:
        while process.poll() is None and not list(run.glob("checkpoint-*")):
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert list(run.glob("checkpoint-*")) and not (tmp_path / "killed" / WEIGHTS).exists()
    main(["--config", str(config), "--out", str(tmp_path / "killed")])
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
