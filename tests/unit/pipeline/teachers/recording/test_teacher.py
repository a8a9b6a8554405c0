"""A kind of teacher costs one small file and one entry of a table; the base does the rest."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dreamshard
from dreamshard.errors import ConfigError, DataError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import (
    PARTS,
    TEACHERS,
    describe_teacher,
    load_teacher,
    parts_of,
    teacher_class,
)
from pipeline.teachers.recording.looking import LookingTeacher
from pipeline.teachers.recording.taps import Tap, vector
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork
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


def test_a_family_of_several_networks(config: TeacherConfig, monkeypatch) -> None:
    """The usual part is the first that can do what is asked; one can be named."""
    monkeypatch.setitem(TEACHERS, "family", TEACHERS["biggan"])
    monkeypatch.setitem(PARTS, "family", {"encoder": TEACHERS["made_up"]})
    generator, encoder = parts_of("family").values()
    assert teacher_class("family") is teacher_class("family", mode="synthesize") is generator
    assert teacher_class("family", mode="encode") is encoder
    assert teacher_class("family", part="encoder") is encoder
    spec = describe_teacher(
        TeacherConfig(kind="family", path=config.path, levels=["s4"]), mode="encode"
    )
    assert [level.name for level in spec.levels] == ["last"]
    allowed = "generator | encoder for family"
    for part, mode, text in (
        ("encoder", "synthesize", "part: got family .encoder. for synthesize, allowed encode"),
        ("discriminator", "encode", f"part: got discriminator, allowed {re.escape(allowed)}"),
    ):
        asked = TeacherConfig(kind="family", part=part, path=config.path)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=rf"teacher\.{text}"):
            describe_teacher(asked, mode=mode)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"teacher\.part: got encoder.*made_up is one network"):
        describe_teacher(dataclasses.replace(config, part="encoder"), mode="encode")


class Pooling(LookingTeacher):
    """Records a vector and a latent of an image beside a map."""

    @classmethod
    def find(cls, path):
        def describe(_settings, image_size):
            return NetworkDescription(
                family="pooling", image_size=image_size, weights=(path,), aliases={},
                taps=(Tap("map", "0", 3, 1), vector("mean", "1", 3),
                      vector("exact", "1", 3, kind="latent")),
                architecture={}, load=lambda _: PlainNetwork(module),
            )  # fmt: skip

        module = nn.Sequential(nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        return {}, describe


def test_levels_that_are_no_maps(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    config = TeacherConfig(
        kind=f"{__name__}:Pooling", path=str(tmp_path / "w"), levels=["map", "mean", "exact"],
        pool="gap",
    )  # fmt: skip
    spec = describe_teacher(config, mode="encode", image_size=(16, 16))
    assert not spec.seeded
    told = [(each.name, each.kind, each.shape, each.stride, each.dtype) for each in spec.levels]
    assert told == [
        ("map.gap", "feature", (3,), 1, "float16"), ("mean", "embedding", (3,), 0, "float16"),
        ("exact", "latent", (3,), 0, "float32"),
    ]  # fmt: skip
    images = make_images()
    teacher = load_teacher(config, mode="encode", seed=0, pins=pins(), image_size=(16, 16))
    levels = teacher.encode(images, ROWS).levels
    expected = images.mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(levels["exact"], expected, atol=1e-6)
    assert np.array_equal(levels["mean"], levels["exact"].astype(np.float16))
    with pytest.raises(ConfigError, match=r"teacher\.draws: got 2"):
        describe_teacher(dataclasses.replace(config, draws=2), mode="encode", image_size=(16, 16))
