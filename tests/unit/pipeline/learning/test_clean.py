"""A clean teacher: trained beside heads that are dropped, read once, without noise or timestep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamshard.errors import ConfigError
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining import state
from pipeline.learning.pretraining.cleaning import command as script
from pipeline.learning.pretraining.cleaning.config import CleanConfig
from pipeline.learning.pretraining.cleaning.heads import Head, draw_timesteps, unlikeness
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.door import open_teacher
from pipeline.teachers.load import describe_teacher
from tests.unit.pipeline.test_pretrain import tiny, weights_of


def config_of(teacher: Path, out: Path, **changes: object) -> CleanConfig:
    values: dict[str, object] = {
        "teacher": str(teacher), "out": str(out), "source": SourceConfig(kind="digits"),
        "image": ImageConfig(flip="random"), "steps": 4, "batch_size": 3, "warmup_steps": 1,
        "width": 16, "depth": 1, "threads": 1, "checkpoint_every": 2, "device": "cpu", "lr": 1e-3,
    }  # fmt: skip
    return CleanConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.pretrain import pretrain

    return pretrain(tiny(tmp_path_factory.mktemp("noisy") / "t", licence="CC0-1.0"))


@pytest.fixture(scope="module")
def cleaned(noisy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script.clean(config_of(noisy, tmp_path_factory.mktemp("clean") / "t"))


def test_a_head_begins_as_the_identity_and_is_told_the_timestep() -> None:
    torch.manual_seed(0)
    head, x = Head(6, width=8, depth=2), torch.randn(3, 6, 2, 2)
    assert torch.equal(head(x, torch.tensor([0.0, 0.5, 1.0])), x)
    for layer in head.last:
        torch.nn.init.normal_(layer.weight)
    early, late = (head(x, torch.full((3,), share)) for share in (0.1, 0.9))
    assert not torch.allclose(early, late)
    assert float(unlikeness(x, 3 * x)) == pytest.approx(0, abs=1e-6)
    assert float(unlikeness(x, -x)) == pytest.approx(2)


def test_timesteps_take_the_strata_in_turns() -> None:
    drawn = draw_timesteps(900, highest=1.0, seed=0, positions=range(600))
    assert all(row % 3 * 300 <= t < (row % 3 + 1) * 300 for row, t in enumerate(drawn))
    assert drawn.dtype == np.int64 and np.unique(drawn).size > 300
    assert draw_timesteps(900, highest=0.1, seed=0, positions=range(600)).max() < 90
    assert draw_timesteps(2, highest=0.1, seed=0, positions=range(9)).max() == 0


def test_a_clean_teacher_is_a_teacher_without_timesteps(noisy: Path, cleaned: Path) -> None:
    before, after = load_file(noisy / state.WEIGHTS), load_file(cleaned / state.WEIGHTS)
    assert before.keys() == after.keys(), "the heads are dropped"
    assert any(not torch.equal(before[name], after[name]) for name in before)
    spec = describe_teacher(TeacherConfig(path=str(cleaned), levels=["mid"]), mode="encode")
    assert [level.name for level in spec.levels] == ["mid"] and spec.licence == "CC0-1.0"
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    teachers = [open_teacher(cleaned, levels=["mid"], micro_batch=4, seed=seed) for seed in (0, 1)]
    one, other = (each.encode(images, np.arange(4)).levels["mid"] for each in teachers)
    assert np.array_equal(one, other), "nothing is drawn"


@pytest.mark.parametrize(
    ("changes", "mode", "told"),
    [
        ({"timesteps": [50]}, "encode", "timesteps: got .50., allowed none for this teacher"),
        ({"draws": 2}, "encode", "draws: got 2, allowed 1"),
        ({"settings": {"mean_draws": 2}}, "encode", "settings.mean_draws: got 2"),
        ({"settings": {"encoding": "inversion"}}, "encode", "settings.encoding: got inversion"),
        ({}, "synthesize", "clean teacher for synthesize, allowed encode alone"),
    ],
)
def test_what_a_clean_teacher_cannot_do_is_refused(
    cleaned: Path, changes: dict, mode: str, told: str
) -> None:
    config = TeacherConfig(path=str(cleaned), levels=["mid"], **changes)
    with pytest.raises(ConfigError, match=told):
        describe_teacher(config, mode=mode)  # type: ignore[arg-type]


def test_it_is_found_again_and_another_is_not_overwritten(
    noisy: Path, cleaned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.clean(config_of(noisy, cleaned, checkpoint_every=1))
    assert "already trained: reused" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="another teacher"):
        script.clean(config_of(noisy, cleaned, seed=1))
    with pytest.raises(ConfigError, match="a clean teacher, allowed a folder of a pixel-space"):
        script.clean(config_of(cleaned, cleaned.parent / "twice"))
    with pytest.raises(ConfigError, match="teacher: got nothing"):
        script.main(["--out", "x"])


def test_a_run_that_was_cut_ends_as_an_undisturbed_one(
    noisy: Path, cleaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = script._Step.__call__, []

    def cut(self: object, batch: object) -> object:
        steps.append(batch)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(script._Step, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            script.clean(config_of(noisy, tmp_path / "t"))
    assert (tmp_path / "t" / "run" / "checkpoint-000002").exists()
    folder = script.clean(config_of(noisy, tmp_path / "t"))
    whole = weights_of(cleaned)
    assert all(torch.equal(value, whole[name]) for name, value in weights_of(folder).items())
    card = json.loads((folder / "teacher_card.json").read_text())
    assert card["steps"] == 4 and card["images_seen"] == 12


def test_the_copy_and_its_heads_have_rates_of_their_own(noisy: Path, tmp_path: Path) -> None:
    config = config_of(noisy, tmp_path, lr=1e-5, head_lr=2e-3, levels=["mid"])
    teacher: Any = open_teacher(noisy, levels=["mid"], timesteps=[1], micro_batch=1)
    learner = script._learner(config, teacher)
    learner.schedule.set(learner.optimizer, 2)  # warm by then
    copy, heads = learner.optimizer.param_groups
    assert heads["lr"] == pytest.approx(200 * copy["lr"])
