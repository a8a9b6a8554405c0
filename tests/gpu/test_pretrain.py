"""Pretraining on the device: batches drawn there, going on, two processes on one GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import pretrain as script
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining.config import ObjectiveConfig, PretrainConfig, UNetConfig
from pipeline.learning.pretraining.state import WEIGHTS

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
import torch
torch.distributed.init_process_group("gloo")  # NCCL refuses two processes on one GPU
from pipeline.pretrain import main
main(sys.argv[1:])
"""


def tiny(out: Path, device: str, **changes: object) -> PretrainConfig:
    values: dict = {
        "out": str(out), "image": ImageConfig(size=16, flip="random"), "steps": 6, "batch_size": 8,
        "unet": UNetConfig(block_out_channels=[16, 16], norm_num_groups=8, dropout=0.1),
        "objective": ObjectiveConfig(kind="edm"), "warmup_steps": 2, "num_samples": 4,
        "sample_steps": 2, "checkpoint_every": 2, "device": device,
        "source": SourceConfig(kind="digits"),
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.pretrain(tiny(tmp_path / "whole", device, precision=precision))
    original = script._Run._forward

    def stopped(self: object, model: object, number: int, batch: object) -> object:
        if number == 5:
            raise Interrupted
        return original(self, model, number, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(script._Run, "_forward", stopped)
        with pytest.raises(Interrupted):
            script.pretrain(tiny(tmp_path / "broken", device, precision=precision))
    script.pretrain(tiny(tmp_path / "broken", device, precision=precision))
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_loss_falls(tmp_path: Path, device: str) -> None:
    import json

    script.pretrain(tiny(tmp_path / "a", device, steps=60, lr=3e-3, checkpoint_every=60))
    text = (tmp_path / "a" / "run" / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in text.splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_two_processes_on_one_gpu_train_the_teacher_of_one(tmp_path: Path, device: str) -> None:
    changes = {"precision": "float32", "steps": 3}
    unet = UNetConfig(block_out_channels=[16, 16], norm_num_groups=8)  # dropout is drawn by rank
    script.pretrain(tiny(tmp_path / "one", device, unet=unet, **changes))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = (
        f"--out {tmp_path / 'two'} --device {device} --image.size 16 --image.flip random --steps 3 "
        "--batch_size 8 --unet.block_out_channels [16,16] --objective.kind edm --warmup_steps 2 "
        "--num_samples 4 --sample_steps 2 --source.kind digits --precision float32"
    )
    processes = []
    for rank in range(2):
        told = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in told.items()}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment |= {"MASTER_ADDR": "localhost", "PYTHONPATH": path}
        environment |= {"ACCELERATE_USE_CPU": str(device == "cpu").lower()}
        command = [sys.executable, "-c", CHILD, *arguments.split()]
        told_all = {**os.environ, **environment}
        processes.append(
            subprocess.Popen(command, env=told_all, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3)
