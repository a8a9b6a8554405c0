"""Checkpoints are whole or not there, hold no code, and give back every bit."""

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
from pipeline.learning import checkpoint
from pipeline.learning.average import build_average
from pipeline.learning.checkpoint import (
    checkpoints,
    forget,
    load_checkpoint,
    parts_of,
    read_state,
    save_checkpoint,
)
from pipeline.learning.loop import Learner
from pipeline.learning.schedule import WarmupCosine


def trained(steps: int = 3, **parts: Any) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.8, 0.9), fused=True)
    schedule = WarmupCosine(peak=0.1, steps=9)
    ours = Learner(module=module, optimizer=optimizer, schedule=schedule, **parts)
    for _ in range(steps):
        step(ours)
    return ours


def step(ours: Learner) -> None:
    ours.module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    ours.optimizer.step()
    ours.optimizer.zero_grad()


def save(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    ours = trained()
    for number in steps:
        path = save_checkpoint(run_dir, parts_of(ours), state={"step": number}, keep=keep)
    return path


def test_weights_and_optimiser_come_back_exactly(tmp_path: Path) -> None:
    first, second = trained(), trained(steps=1)
    path = save_checkpoint(tmp_path, parts_of(first), state={"step": 3}, keep=1)
    load_checkpoint(path, parts_of(second))
    for each in (first, second):
        torch.manual_seed(1)
        step(each)
    ours, theirs = first.module.state_dict(), second.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    weight = next(second.module.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    moment = second.optimizer.state[weight]["exp_avg"]
    assert moment.stride() == weight.stride(), "a fused step reads both side by side"
    group = second.optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.9) and group["lr"] == 0.1 and group["fused"]


@pytest.mark.parametrize("name", ["sgd", "lamb", "lars"])
def test_every_optimiser_comes_back(name: str, tmp_path: Path) -> None:
    from timm.optim._optim_factory import create_optimizer_v2

    learners = [trained(0), trained(0)]
    for ours in learners:
        groups = [
            {"params": [weight], "weight_decay": decay, "lr_scale": 0.5, "fixed_rate": False}
            for weight, decay in zip(ours.module.parameters(), (0.1, 0.0, 0.0, 0.0), strict=True)
        ]
        more = {} if name == "lamb" else {"momentum": 0.9}
        ours.optimizer = create_optimizer_v2(groups, opt=name, lr=0.1, **more)  # type: ignore[arg-type]
    for _ in range(2):
        step(learners[0])
    path = save_checkpoint(tmp_path, parts_of(learners[0]), state={"step": 2}, keep=1)
    load_checkpoint(path, parts_of(learners[1]))
    for ours in learners:
        torch.manual_seed(2)
        step(ours)
    pairs = zip(learners[0].module.parameters(), learners[1].module.parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)
    assert learners[1].optimizer.param_groups[0]["lr_scale"] == 0.5


def test_an_optimiser_that_took_no_step_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, parts_of(trained(0)), state={"step": 0}, keep=1)
    ours = trained(0)
    load_checkpoint(path, parts_of(ours))
    assert not ours.optimizer.state_dict()["state"]


def test_the_average_and_the_scaler_come_back_too(tmp_path: Path) -> None:
    from torch.amp.grad_scaler import GradScaler

    def with_parts(scale: float) -> Learner:
        ours = trained(scaler=GradScaler("cpu", init_scale=scale))
        ours.average = build_average(ours.module, decay=0.5)
        return ours

    first, second = with_parts(8.0), with_parts(4.0)
    assert first.average is not None and second.average is not None
    assert first.scaler is not None and second.scaler is not None
    with torch.no_grad():
        next(first.average.module.parameters()).add_(1.0)
    path = save_checkpoint(tmp_path, parts_of(first), state={"step": 0}, keep=1)
    load_checkpoint(path, parts_of(second))
    ours, theirs = first.average.module.state_dict(), second.average.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert second.scaler.state_dict() == first.scaler.state_dict()
    (path / "average.safetensors").unlink()
    with pytest.raises(DataError, match="checkpoint-000000"):
        load_checkpoint(path, parts_of(second))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 10, 100, keep=2)
    for name in ("later", "-5", "\u0661\u0662", "9" * 30):
        (tmp_path / f"checkpoint-{name}").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000010",
        "checkpoint-000100",
    ]


def test_a_death_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_write_json", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002"]
    monkeypatch.undo()
    save(tmp_path, 4)
    assert not list(tmp_path.glob(".*")), "the half-written folder is gone"


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        checkpoint,
        "flush",
        lambda path: flushed.append((path.name, (tmp_path / "checkpoint-000002").exists())),
    )
    path = save(tmp_path, 2)
    files = {file.name for file in path.iterdir()}
    before = {name for name, final in flushed if not final}
    assert before == {*files, ".checkpoint-000002.partial"}
    assert [name for name, final in flushed if final] == [tmp_path.name]


def test_a_step_taken_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (path / "extra").write_text("of before")
    assert save(tmp_path, 2) == path and not (path / "extra").exists()


def test_forgetting_leaves_nothing_half_written(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / ".checkpoint-000006.partial").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"step": 7, "config": {"lr": 0.1}, "key": "a"}
    path = save_checkpoint(tmp_path, {}, state=state, keep=1)
    assert read_state(path) == state


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


def test_links_are_removed_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    elsewhere, run_dir = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("kept")
    run_dir.mkdir()
    for name in ("checkpoint-000001", "checkpoint-000002", ".checkpoint-000002.partial"):
        (run_dir / name).symlink_to(elsewhere)
    save(run_dir, 2, keep=1)
    assert [path.name for path in run_dir.iterdir()] == ["checkpoint-000002"]
    (run_dir / "checkpoint-000003").symlink_to(elsewhere)
    forget(run_dir)
    assert not list(run_dir.iterdir()) and (elsewhere / "mine").read_text() == "kept"


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    import os
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = save(tmp_path, 2)
    for name in ("model.safetensors", "optimizer.safetensors", "optimizer.json"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(pickle.dumps(Hostile(), protocol=2))
        with pytest.raises(DataError, match="checkpoint-000002"):
            load_checkpoint(path, parts_of(trained()))
        (path / name).write_bytes(whole)
    assert not (tmp_path / "executed").exists()


def test_an_older_versions_checkpoint_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (path / "state.json").write_text(json.dumps({"step": 2}))
    with pytest.raises(DataError, match="of an older version of dreamshard"):
        read_state(path)


def test_tied_weights_are_saved_under_every_name_and_stay_tied(tmp_path: Path) -> None:
    def tied(value: float) -> nn.ModuleList:
        first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        nn.init.constant_(first.weight, value)
        second.weight = first.weight
        return nn.ModuleList([first, second])

    path = save_checkpoint(tmp_path, {"model": tied(3.0)}, state={"step": 1}, keep=1)
    assert set(load_file(path / "model.safetensors")) == {"0.weight", "1.weight"}
    back = tied(0.0)
    load_checkpoint(path, {"model": back})
    assert back[0].weight is back[1].weight and float(back[1].weight.detach().sum()) == 12.0


@pytest.mark.parametrize("name", ["safetensors", "json"])
def test_a_full_disk_is_said_and_leaves_the_one_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    ours = trained()
    before = save_checkpoint(tmp_path, parts_of(ours), state={"step": 3}, keep=2)

    def full(*_: object, **__: object) -> None:
        if name == "json":
            raise OSError(28, "No space left on device")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file" if name == "safetensors" else "_write_json", full)
    with pytest.raises(DataError, match=r"No space left.*goes on from checkpoint-000003"):
        save_checkpoint(tmp_path, parts_of(ours), state={"step": 4}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == [before.name]


def test_its_files_follow_the_umask(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, parts_of(trained()), state={"step": 3}, keep=2)
    (tmp_path / "opened").write_text("x")
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert modes == {(tmp_path / "opened").stat().st_mode}
