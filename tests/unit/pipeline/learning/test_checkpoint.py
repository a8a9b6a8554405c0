"""Checkpoints are whole or not there, hold no code, and give back every bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreamshard.errors import DataError
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
from tests.unit.pipeline.learning.made_checkpoints import save, step, trained


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


def test_weights_that_are_no_numbers_leave_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 2)
    learner = trained()
    next(learner.module.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"000004: got weights that are not .* checkpoint-000002"):
        save_checkpoint(tmp_path, parts_of(learner), state={"step": 4}, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002"]


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
