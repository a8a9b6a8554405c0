"""Checkpoints that are damaged, of other settings or of another network are refused by name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import SEAL
from pipeline.learning.checkpoint import (
    load_checkpoint,
    parts_of,
    read_state,
    save_checkpoint,
)
from pipeline.learning.loop import Learner
from pipeline.learning.schedule import WarmupCosine
from tests.unit.pipeline.learning.made_checkpoints import save, step, trained


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = save(tmp_path, 2)
    if damage == "cut":
        (path / name).write_bytes((path / name).read_bytes()[:20])
    else:
        (path / name).unlink()
    with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
        read_state(path)
        load_checkpoint(path, parts_of(trained()))


@pytest.mark.parametrize(
    "text", ["[]", '{"step": 2}', '{"format": 2}', '{"format": 2, "step": "a"}']
)
def test_a_state_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 2)
    (path / "state.json").write_text(text)
    with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
        read_state(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    other = nn.Conv2d(3, 5, 3)
    ours = Learner(other, torch.optim.AdamW(other.parameters()), WarmupCosine(1.0, steps=1))
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_checkpoint(path, parts_of(ours))


def unprotected(path: Path, **changed: object) -> Path:
    """Make a checkpoint one of an earlier version, without digests; change its state."""
    state = json.loads((path / "state.json").read_text())
    del state["files"], state[SEAL]
    (path / "state.json").write_text(json.dumps({**state, **changed}))
    return path


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path, ours = save(tmp_path, 2), trained()
    rng = np.random.default_rng(0)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for bit in rng.integers(0, 8 * len(good), 60).tolist():
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
                load_checkpoint(path, parts_of(ours))
        file.write_bytes(good)
    load_checkpoint(path, parts_of(ours))


def test_one_of_an_earlier_version_is_read_and_said_to_be_unprotected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = unprotected(save(tmp_path, 2))
    assert read_state(path) == {"step": 2}
    assert "not protected by digests" in caplog.text
    load_checkpoint(path, parts_of(trained()))


@pytest.mark.parametrize("step", [-5, 10**9, True, None, "2", 2.0, 3])
def test_a_step_is_that_of_the_folders_name(tmp_path: Path, step: object) -> None:
    path = unprotected(save(tmp_path, 2), step=step)
    with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
        read_state(path)


def optimizer_of(path: Path, **tensors: torch.Tensor) -> None:
    from safetensors.torch import save_file

    file = path / "optimizer.safetensors"
    names = {name.replace("_0_", ".0."): value for name, value in tensors.items()}
    save_file(load_file(file) | names, file)


@pytest.mark.parametrize(
    "moment",
    [
        torch.zeros(7),
        torch.zeros(1),
        torch.zeros(4, 27),
        torch.zeros(5, 3, 3, 3),
        torch.zeros(4, 3, 3, 3, dtype=torch.int64),
    ],
)
def test_moments_of_another_shape_or_kind_are_refused(tmp_path: Path, moment: torch.Tensor) -> None:
    path = unprotected(save(tmp_path, 2))
    optimizer_of(path, state_0_exp_avg=moment)
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_checkpoint(path, parts_of(trained()))


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        *(("adamw", moment) for moment in ("step", "exp_avg", "exp_avg_sq")),
        ("sgd", "momentum_buffer"),
        ("lamb", "exp_avg_sq"),
        ("lars", "momentum_buffer"),
    ],
)
def test_a_missing_moment_is_refused_before_the_step(
    tmp_path: Path, name: str, moment: str
) -> None:
    from safetensors.torch import save_file
    from timm.optim._optim_factory import create_optimizer_v2

    ours = trained(0)
    more = {"momentum": 0.9} if moment == "momentum_buffer" else {}
    ours.optimizer = create_optimizer_v2(ours.module, opt=name, lr=0.1, **more)  # type: ignore[arg-type]
    step(ours)
    path = unprotected(save_checkpoint(tmp_path, parts_of(ours), state={"step": 2}, keep=9))
    load_checkpoint(path, parts_of(ours))
    file = path / "optimizer.safetensors"
    kept = load_file(file)
    del kept[f"state.1.{moment}"]
    save_file(kept, file)
    with pytest.raises(DataError, match=rf"checkpoint-000002.*state\.1 has no {moment}"):
        load_checkpoint(path, parts_of(ours))


def without_state(path: Path, number: int) -> None:
    """Take away all that an optimiser kept of a parameter."""
    from safetensors.torch import save_file

    file, about = path / "optimizer.safetensors", path / "optimizer.json"
    kept = {k: v for k, v in load_file(file).items() if not k.startswith(f"state.{number}.")}
    save_file(kept, file)
    values = json.loads(about.read_text())
    values["state"].pop(str(number))
    about.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion"])
def test_a_parameter_of_which_nothing_is_there_is_refused(tmp_path: Path, name: str) -> None:
    from timm.optim._optim_factory import create_optimizer_v2

    ours = trained(0)
    ours.optimizer = create_optimizer_v2(ours.module, opt=name, lr=0.1, momentum=0.9)
    step(ours)
    path = unprotected(save_checkpoint(tmp_path, parts_of(ours), state={"step": 2}, keep=9))
    without_state(path, 1)
    with pytest.raises(DataError, match=r"checkpoint-000002.*state\.1 is not there"):
        load_checkpoint(path, parts_of(ours))


def test_one_that_never_took_a_step_is_none_of_them(tmp_path: Path) -> None:
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        ours = trained(0)
        ours.optimizer = optimizer(ours.module.parameters(), lr=0.1)
        step(ours)
        ours.module[0].bias.requires_grad_(False)  # frozen, and another without a gradient
        ours.optimizer.state.pop(ours.module[0].bias, None)
        ours.optimizer.state.pop(ours.module[1].weight, None)
        path = save_checkpoint(tmp_path, parts_of(ours), state={"step": 2}, keep=9)
        other = trained(0)
        other.optimizer = optimizer(other.module.parameters(), lr=0.1)
        load_checkpoint(path, parts_of(other))
        assert len(other.optimizer.state) == len(ours.optimizer.state)
        step(other)


def test_one_of_before_that_does_not_say_is_read_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = unprotected(save(tmp_path, 2))
    without_state(path, 1)
    about = json.loads((path / "optimizer.json").read_text())
    del about["without"]
    (path / "optimizer.json").write_text(json.dumps(about))
    load_checkpoint(path, parts_of(trained()))
    assert "nothing of 1 of 4 parameters, which begin anew" in caplog.text


@pytest.mark.parametrize("number", ["-1", "4", "x"])
def test_state_of_no_parameter_is_refused(tmp_path: Path, number: str) -> None:
    path = unprotected(save(tmp_path, 2))
    about = json.loads((path / "optimizer.json").read_text())
    about["state"][number] = {"step": 3}
    (path / "optimizer.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_checkpoint(path, parts_of(trained()))


@pytest.mark.parametrize(
    "values",
    [
        {"lr": "x"},
        {"lr": None},
        {"lr": True},
        {"betas": 5},
        {"betas": [0.9]},
        {"fused": 7},
        {"eps": []},
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    path = unprotected(save(tmp_path, 2))
    about = json.loads((path / "optimizer.json").read_text())
    about["param_groups"]["0"] |= values
    (path / "optimizer.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_checkpoint(path, parts_of(trained()))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("name", ["state.json", "optimizer.json", "model.safetensors"])
def test_what_cannot_be_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    path = save(tmp_path, 2)
    real = os.stat if name == "model.safetensors" else os.open

    def refuse(given: Any, *args: Any, **more: Any) -> Any:
        if not isinstance(given, int) and Path(os.fsdecode(given)) == path / name:
            raise OSError(number, os.strerror(number), str(given))
        return real(given, *args, **more)

    monkeypatch.setattr(os, real.__name__, refuse)
    with pytest.raises(CannotReadError, match="checkpoint-000002.*no damage"):
        load_checkpoint(path, parts_of(trained()))
    monkeypatch.undo()
    load_checkpoint(path, parts_of(trained()))
