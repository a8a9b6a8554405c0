"""The same checks for every teacher: shapes, types, determinism; no dependence on order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import ConfigError
from pipeline.teachers.base import Mode, Teacher, TeacherConfig
from pipeline.teachers.load import TEACHERS, describe_teacher, load_teacher, parts_of, teacher_class
from storage.schema import Pins, canonical_json

MICRO_BATCH = 4
INDICES = np.array([7, 2, 1000, 3])
IMAGES = np.random.default_rng(0).integers(0, 256, (MICRO_BATCH, 16, 16, 3), dtype=np.uint8)


def noise(folder: Path) -> TeacherConfig:
    return TeacherConfig(kind="noise", levels=["s2", "w"], timesteps=[5, 10], draws=2)


def diffusers(folder: Path) -> TeacherConfig:
    pytest.importorskip("diffusers")
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return TeacherConfig(
        kind="diffusers",
        path=str(folder),
        levels=["s1", "s2"],
        timesteps=[5, 10],
        draws=2,
        settings={"steps": 2},
    )


def biggan(folder: Path) -> TeacherConfig:
    torch = pytest.importorskip("torch")
    from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference

    torch.save(Reference(attention=(0,)).state, folder / "G_ema.pth")
    return TeacherConfig(kind="biggan", part="generator", path=str(folder), levels=["s1", "s2"])


def biggan_discriminator(folder: Path) -> TeacherConfig:
    torch = pytest.importorskip("torch")
    from tests.unit.pipeline.teachers.gan.biggan.discriminator_reference import Discriminator

    torch.save(Discriminator(attention=(0,)).state, folder / "D.pth")
    levels = ["s2", "s4", "d.pool", "d.logits"]
    return TeacherConfig(kind="biggan", part="discriminator", path=str(folder), levels=levels)


def bigbigan(folder: Path) -> TeacherConfig:
    pytest.importorskip("torch")
    from tests.unit.pipeline.teachers.gan.bigbigan.test_bigbigan import save_generator

    save_generator(folder)
    levels = ["s1", "s2"]
    return TeacherConfig(kind="bigbigan", part="generator", path=str(folder), levels=levels)


def bigbigan_encoder(folder: Path) -> TeacherConfig:
    generator = bigbigan(folder)
    from tests.unit.pipeline.teachers.gan.bigbigan import test_bigbigan as made

    made.convert_to(folder, made.Encoder())
    levels = ["s4", "e.avepool", "e.bn_crelu", "e.z_mean", "rec.blocks.0", "rec.image"]
    return dataclasses.replace(generator, part="encoder", levels=levels)


def ssgan(folder: Path) -> TeacherConfig:
    torch = pytest.importorskip("torch")
    from tests.unit.pipeline.teachers.gan.ssgan.ssgan_reference import Mimicry

    torch.save({"model_state_dict": Mimicry().g}, folder / "netG_1_steps.pth")
    torch.save({"model_state_dict": Mimicry().d}, folder / "netD_1_steps.pth")
    levels = ["s1", "s2", "z"]
    return TeacherConfig(kind="ssgan", part="generator", path=str(folder), levels=levels)


def ssgan_discriminator(folder: Path) -> TeacherConfig:
    levels = ["s2", "s4", "d.pool", "d.rotation"]
    return dataclasses.replace(ssgan(folder), part="discriminator", levels=levels)


def stylegan2(folder: Path) -> TeacherConfig:
    pytest.importorskip("torch")
    from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import Reference

    path = Reference(classes=3).write(folder / "network-snapshot.pkl")
    settings = {"noise_mode": "random", "truncation_psi": 0.7}
    return TeacherConfig(
        kind="stylegan2", part="generator", path=str(path), levels=["s1", "b8", "w", "z"],
        settings=settings,
    )  # fmt: skip


def stylegan2_discriminator(folder: Path) -> TeacherConfig:
    config = stylegan2(folder)
    levels = ["s2", "d.b4", "d.fc", "d.logits"]
    return dataclasses.replace(config, part="discriminator", levels=levels, settings={})


def encoder(folder: Path) -> TeacherConfig:
    pytest.importorskip("timm")
    from tests.unit.pipeline.teachers.posthoc import made

    levels = ["s2", "s4", "e.avepool", "e.w", "rec.b8", "rec.s1", "rec.image"]
    return TeacherConfig(kind="encoder", path=str(made.encoder(folder)), levels=levels)


def timm(folder: Path) -> TeacherConfig:
    pytest.importorskip("timm")
    from tests.unit.pipeline.teachers.timm.networks import save

    save(folder, "test_resnet")
    return TeacherConfig(kind="timm", path=str(folder), levels=["s2", "s4", "pooled"])


def student(folder: Path) -> TeacherConfig:
    pytest.importorskip("timm")
    from tests.unit.pipeline.teachers.timm.networks import save_student

    settings = {"depths": [1, 1], "widths": [4, 6]}
    save_student(folder / "student", "cifar_resnet", settings, strides=(1, 2), size=16)
    return TeacherConfig(kind="student", path=str(folder), levels=["s1", "s2", "pooled"])


# A new entry of TEACHERS or PARTS joins with one small example of itself: "kind" or "kind.part".
EXAMPLES: dict[str, Callable[[Path], TeacherConfig]] = {
    "noise": noise,
    "diffusers": diffusers,
    "biggan.generator": biggan,
    "biggan.discriminator": biggan_discriminator,
    "bigbigan.generator": bigbigan,
    "bigbigan.encoder": bigbigan_encoder,
    "ssgan.generator": ssgan,
    "ssgan.discriminator": ssgan_discriminator,
    "stylegan2.generator": stylegan2,
    "stylegan2.discriminator": stylegan2_discriminator,
    "encoder": encoder,
    "timm": timm,
    "student": student,
}
Load = Callable[..., Teacher]


def test_every_teacher_has_an_example() -> None:
    parts = [(kind, part) for kind in TEACHERS for part in parts_of(kind)]
    assert set(EXAMPLES) == {f"{kind}.{part}".removesuffix(".") for kind, part in parts}


@pytest.fixture(scope="module", params=EXAMPLES)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config = EXAMPLES[request.param](tmp_path_factory.mktemp(request.param))
    assert f"{config.kind}.{config.part}".removesuffix(".") == request.param
    return config


def load(config: TeacherConfig, mode: Mode, *, seed: int = 0, micro_batch: int = 4) -> Teacher:
    pins = Pins(micro_batch, config.compute_dtype, "cpu", 1)
    config = told(config, mode)
    return load_teacher(config, mode=mode, seed=seed, pins=pins, image_size=(16, 16))


def told(config: TeacherConfig, mode: Mode) -> TeacherConfig:
    """Leave out what a mode does not read, and refuses: encoding takes no steps."""
    if mode == "synthesize":
        return config
    settings = {name: value for name, value in config.settings.items() if name != "steps"}
    return dataclasses.replace(config, settings=settings)


def first_mode(config: TeacherConfig) -> Mode:
    return teacher_class(config.kind, part=config.part).modes[0]


@pytest.fixture(scope="module")
def teacher(config: TeacherConfig) -> Teacher:
    return load(config, first_mode(config))


@pytest.fixture(scope="module", params=["encode", "synthesize"])
def mode(request: pytest.FixtureRequest, config: TeacherConfig) -> Mode:
    if request.param not in teacher_class(config.kind, part=config.part).modes:
        pytest.skip(f"{config.kind} does not {request.param}")
    return request.param


def act(teacher: Teacher, mode: Mode, rows: np.ndarray, images: np.ndarray = IMAGES):
    if mode == "encode":
        return teacher.encode(images[rows], INDICES[rows])
    return teacher.synthesize(INDICES[rows])


ALL = np.arange(MICRO_BATCH)


def test_it_is_what_it_said(config: TeacherConfig, teacher: Teacher) -> None:
    mode = first_mode(config)
    spec = describe_teacher(told(config, mode), mode=mode, image_size=(16, 16))
    assert teacher.levels == spec.levels and teacher.image_size == spec.image_size == (16, 16)
    assert teacher.fingerprint == spec.fingerprint and "kind" in spec.fingerprint
    canonical_json([spec.fingerprint, spec.mode_settings])
    names = [level.name for level in spec.levels]
    assert len(set(names)) == len(names)
    assert {level.timestep for level in spec.levels} == (set(config.timesteps) or {-1})
    assert {level.draw for level in spec.levels} == set(range(config.draws))


def test_shapes_and_types(config: TeacherConfig, mode: Mode) -> None:
    teacher = load(config, mode)
    batch = act(teacher, mode, ALL)
    assert np.array_equal(batch.index, INDICES)
    assert set(batch.levels) == {level.name for level in teacher.levels}
    for level in teacher.levels:
        values = batch.levels[level.name]
        assert values.shape == (MICRO_BATCH, *level.shape)
        assert values.dtype == np.dtype(level.dtype)
        assert np.isfinite(values).all() and values.std() > 0
        if level.stride:
            assert level.shape[1:] == (16 // level.stride, 16 // level.stride)
    if mode == "synthesize":
        assert batch.image is not None and batch.image.dtype == np.uint8
        assert batch.image.shape == (MICRO_BATCH, 16, 16, 3)


def test_the_seed_and_the_index_decide_and_nothing_else(config: TeacherConfig, mode: Mode) -> None:
    first, second = load(config, mode), load(config, mode)
    act(second, mode, np.array([1, 1, 2, 2]))  # what came before does not matter
    before = act(first, mode, ALL)
    after = act(second, mode, ALL)
    for name, values in before.levels.items():
        assert np.array_equal(values, after.levels[name])
    other = act(load(config, mode, seed=1), mode, ALL)
    seeded = describe_teacher(told(config, mode), mode=mode, image_size=(16, 16)).seeded
    for name, values in before.levels.items():
        assert np.array_equal(values, other.levels[name]) is not seeded


def test_the_order_of_rows_does_not_matter(config: TeacherConfig, mode: Mode) -> None:
    teacher = load(config, mode)
    straight, turned = act(teacher, mode, ALL), act(teacher, mode, ALL[::-1])
    for name, values in straight.levels.items():
        np.testing.assert_allclose(values, turned.levels[name][::-1], atol=2e-3, rtol=2e-3)


def test_samples_draws_and_timesteps_differ(config: TeacherConfig, teacher: Teacher) -> None:
    batch = act(teacher, first_mode(config), ALL)
    for values in batch.levels.values():
        assert not np.array_equal(values[0], values[1])
    tap = teacher.levels[0].tap
    same = [level.name for level in teacher.levels if level.tap == tap]
    maps = [batch.levels[name] for name in same]
    assert len(maps) == max(1, len(config.timesteps)) * config.draws
    assert all(not np.array_equal(maps[0], each) for each in maps[1:])


def test_the_input_is_left_alone(config: TeacherConfig, teacher: Teacher) -> None:
    images, indices = IMAGES.copy(), INDICES.copy()
    if first_mode(config) == "encode":
        teacher.encode(images, indices)
    else:
        teacher.synthesize(indices)
    assert np.array_equal(images, IMAGES) and np.array_equal(indices, INDICES)


def test_its_mistakes_are_told_before_it_loads(config: TeacherConfig) -> None:
    changed = dataclasses.replace(
        config,
        levels=["s2", "nowhere"],
        timesteps=[5, 1200],
        draws=1,
        settings={**config.settings, "no_such_setting": 1},
    )
    with pytest.raises(ConfigError) as error:
        describe_teacher(changed, mode=first_mode(config), image_size=(16, 16))
    text = str(error.value)
    steps = "got 1200, allowed 0..999" if config.timesteps else "got [5, 1200], allowed none"
    assert f"teacher.timesteps: {steps}" in text
    assert "teacher.levels: got nowhere, allowed" in text
    assert "teacher.settings.no_such_setting" in text


def test_unknown_kinds() -> None:
    with pytest.raises(ConfigError, match="Did you mean noise"):
        describe_teacher(TeacherConfig(kind="nois"), mode="encode")
    with pytest.raises(ConfigError, match="teacher.kind: got no_such_module:Thing"):
        describe_teacher(TeacherConfig(kind="no_such_module:Thing"), mode="encode")


def test_a_class_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "pipeline.teachers.noise:NoiseTeacher"
    own = load(TeacherConfig(kind=kind, levels=["s4"]), "encode")
    short = load(TeacherConfig(kind="noise", levels=["s4"]), "encode")
    name = own.levels[0].name
    left, right = own.encode(IMAGES, INDICES), short.encode(IMAGES, INDICES)
    assert np.array_equal(left.levels[name], right.levels[name])
