"""A kind of teacher costs one small file and one entry of a table; the base does the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dreamshard
from dreamshard.errors import ConfigError, DataError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import TEACHERS, describe_teacher, load_teacher
from tests.unit.pipeline.teachers import made_up
from tests.unit.pipeline.teachers.conftest import make_images, pins

ROWS = np.array([5, 1, 2, 9])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeacherConfig:
    monkeypatch.setitem(TEACHERS, "made_up", f"{made_up.__name__}:MadeUpTeacher")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3))
    save_file(module.state_dict(), tmp_path / "made_up.safetensors")
    (tmp_path / "teacher_card.json").write_text('{"licence": "CC0-1.0"}')
    path = str(tmp_path / "made_up.safetensors")
    return TeacherConfig(kind="made_up", path=path, levels=["s4", "first"])


def test_a_new_kind_is_one_file_of_less_than_forty_lines() -> None:
    lines = Path(made_up.__file__).read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line) for line in lines) < 40


def test_it_records_what_hooks_would(config: TeacherConfig) -> None:
    spec = describe_teacher(config, mode="encode")
    assert [(level.name, level.shape, level.stride) for level in spec.levels] == [
        ("last", (7, 4, 4), 4), ("first", (5, 8, 8), 2),
    ]  # fmt: skip
    assert spec.licence == "CC0-1.0" and spec.mode_settings == {"padding": "zeros"}
    teacher = load_teacher(config, mode="encode", seed=0, pins=pins())
    images = make_images()
    batch = teacher.encode(images, ROWS)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    first, last = teacher.network.module  # type: ignore[attr-defined]
    maps = first(x)
    for name, value in (("first", maps), ("last", last(maps))):
        expected = value.detach().half().numpy()
        np.testing.assert_allclose(batch.levels[name], expected, atol=2e-3, rtol=2e-3)
    assert list(batch.levels) == ["last", "first"] and batch.key[0] == "00000005"
    assert np.array_equal(batch.index, ROWS) and batch.image is None and batch.label is None
    tensors = teacher.features(torch.from_numpy(images), ROWS)  # type: ignore[attr-defined]
    assert all(np.array_equal(tensors[name], batch.levels[name]) for name in batch.levels)
    known = teacher.description  # type: ignore[attr-defined]
    assert teacher.network(*known.example("cpu")).shape == (1, 7, 4, 4)  # type: ignore[attr-defined]
    assert known.summary() == ["2 taps"] and not teacher.network.module.training  # type: ignore[attr-defined]
    assert not any(weight.requires_grad for weight in teacher.network.module.parameters())  # type: ignore[attr-defined]


def test_settings_decide_the_fingerprint_and_are_checked(config: TeacherConfig) -> None:
    before = describe_teacher(config, mode="encode").fingerprint
    config.settings = {"padding": "reflect"}
    assert describe_teacher(config, mode="encode").fingerprint != before
    config.settings, config.levels = {"padding": "wrap", "pad": 1}, ["s8"]
    with pytest.raises(ConfigError) as caught:
        describe_teacher(config, mode="encode")
    text = str(caught.value)
    assert "teacher.settings.padding: got wrap, allowed zeros | reflect" in text
    assert "teacher.settings.pad: got 1, allowed padding. Did you mean padding?" in text
    assert "teacher.levels: got s8, allowed first, last; aliases s2, s4" in text


def test_what_it_cannot_do_is_said(config: TeacherConfig) -> None:
    with pytest.raises(ConfigError, match="made_up for synthesize, allowed encode"):
        describe_teacher(config, mode="synthesize")
    teacher = load_teacher(config, mode="encode", seed=0, pins=pins())
    with pytest.raises(DataError, match=r"got \(8, 8, 3\) of torch.uint8, allowed \(16, 16, 3\)"):
        teacher.encode(make_images(size=8), ROWS)
    state = {"0.weight": torch.zeros(5, 3, 3, 3), "1.weight": torch.zeros(7, 5, 3, 3)}
    save_file(state, config.path)
    with pytest.raises(TeacherError, match=r"2 keys missing: 0\.bias, 1\.bias"):
        load_teacher(config, mode="encode", seed=0, pins=pins())


def test_it_opens_in_one_line(config: TeacherConfig) -> None:
    teacher = dreamshard.load_teacher(config.path, kind="made_up", micro_batch=4)
    assert [level.name for level in teacher.levels] == ["last"], "of strides 4, 8, 16 and 32"
    assert teacher.encode(make_images(), ROWS).levels["last"].shape == (4, 7, 4, 4)
