"""SS-GAN and SNGAN: read from both official formats, equal to the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import describe_teacher, load_teacher
from storage.schema import Pins
from tests.unit.pipeline.teachers.gan.ssgan.ssgan_reference import CompareGan, Mimicry

ROWS = 3
PAIRS: dict[str, tuple[int, dict[str, Any]]] = {
    "ss-gan 32": (
        32,
        {"widths": (8,) * 4, "seen": (8,) * 4, "halved": (True, True, False, False)},
    ),
    "sngan 48": (
        48,
        {
            "widths": (32, 16, 8, 8),
            "bottom": 6,
            "seen": (4, 8, 16, 32, 64),
            "halved": (True, True, True, True, False),
            "linear": 5,
            "rotations": 0,
        },
    ),
    "ss-gan 64": (
        64,
        {"widths": (32, 16, 8, 8, 8), "seen": (4, 8, 16, 32, 64), "halved": (True,) * 5},
    ),
    "sngan 128": (
        128,
        {
            "widths": (16, 16, 8, 8, 8, 4),
            "seen": (4, 8, 8, 16, 16, 16),
            "halved": (*(True,) * 5, False),
            "rotations": 0,
        },
    ),
}


def config_of(path: Path, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {"kind": "ssgan", "path": str(path), "levels": ["s1"]}
    return TeacherConfig(**{**values, **changes})


def load(config: TeacherConfig, mode: Any, size: tuple[int, int] | None = None) -> Any:
    pins = Pins(ROWS, config.compute_dtype, "cpu", 1)
    return load_teacher(config, mode=mode, seed=0, pins=pins, image_size=size)


def write(folder: Path, pair: Mimicry) -> Path:
    for name, state in (("netG", pair.g), ("netD", pair.d)):
        record = {"model_state_dict": state, "optimizer_state_dict": None, "global_step": 9}
        torch.save(record, folder / f"{name}_9_steps.pth")
    return folder


def check_generator(teacher: Any, expected: dict[str, torch.Tensor], z: np.ndarray) -> None:
    maps, images = teacher.generate(z, None, None)
    for name, value in maps.items():
        exact = torch.from_numpy(z) if name == "z" else expected[name].view(value.shape)
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images, expected["image"], rtol=1e-5, atol=1e-5)


def check_discriminator(teacher: Any, expected: dict[str, torch.Tensor], images: Any) -> None:
    maps = teacher.activations(images)
    assert set(maps) == set(expected)
    for name, value in maps.items():
        exact = expected[name]
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5 * (1 + float(exact.std())))


@pytest.mark.parametrize("kind", PAIRS)
def test_it_is_torch_mimicrys_pair(tmp_path: Path, kind: str) -> None:
    size, values = PAIRS[kind]
    pair = Mimicry(**values)
    path = write(tmp_path, pair)
    names = [f"block{number}" for number in range(2, len(pair.widths) + 1)]
    teacher = load(config_of(path, levels=["z", "l1", *names]), "synthesize")
    assert teacher.image_size == (size, size)
    z = teacher.inputs(np.arange(ROWS))[0]
    check_generator(teacher, pair.generate(torch.from_numpy(z)), z)
    images = torch.rand(ROWS, 3, size, size) * 2 - 1
    expected = pair.look(images)
    teacher = load(config_of(path, levels=[*expected]), "encode")
    assert teacher.image_size == (size, size)
    check_discriminator(teacher, expected, images)


@pytest.mark.parametrize("norms", ["hook", "parametrisation", "own", "none"])
def test_spectral_norms_are_read_as_they_are_stored(tmp_path: Path, norms: str) -> None:
    pair = Mimicry(norms=norms)
    images = torch.rand(ROWS, 3, 16, 16) * 2 - 1
    expected = pair.look(images, pool="mean" if norms == "none" else "sum")
    config = config_of(write(tmp_path, pair), levels=[*expected])
    assert ("pool mean (WGAN-GP's" in str(describe_teacher(config, mode="encode").notes)) == (
        norms == "none"
    )
    check_discriminator(load(config, "encode"), expected, images)


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "zero_insertion"])
def test_upsampling_and_pooling_are_chosen_by_name(tmp_path: Path, upsample: str) -> None:
    pair = Mimicry()
    path = write(tmp_path, pair)
    config = config_of(path, levels=["block2", "block3"], settings={"upsample": upsample})
    teacher = load(config, "synthesize")
    z = teacher.inputs(np.arange(ROWS))[0]
    check_generator(teacher, pair.generate(torch.from_numpy(z), upsample=upsample), z)
    for pool in ("sum", "mean"):
        images = torch.rand(ROWS, 3, 16, 16) * 2 - 1
        config = config_of(path, levels=["d.pool", "d.logit"], settings={"pool": pool})
        maps = load(config, "encode").activations(images)
        expected = pair.look(images, pool=pool)
        torch.testing.assert_close(maps["d.logit"], expected["d.logit"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "values"),
    [
        (16, {}),
        (16, {"modulation": None, "accumulated": True, "right": True, "rotations": 0}),
        (16, {"modulation": 0, "doubled": (True, False, True), "widths": (16, 8, 8, 4)}),
        (32, {"widths": (8,) * 4, "doubled": (True,) * 3, "seen": (8,) * 4, "first": 1}),
    ],
)
def test_it_is_compare_gans_pair(tmp_path: Path, size: int, values: dict[str, Any]) -> None:
    halved = {"halved": (True, True, False, False)} if size == 32 else {}
    pair = CompareGan(**values, **halved)
    path = tmp_path / "variables.npz"
    np.savez(path, **{f"module/{name}:0": value for name, value in pair.v.items()})  # type: ignore[arg-type]
    names = [f"B{number}" for number in range(1, len(pair.widths))]
    teacher = load(config_of(path, levels=["fc_noise", *names]), "synthesize")
    z = teacher.inputs(np.arange(ROWS))[0]
    assert z.min() >= -1 and z.max() <= 1 and z.std() > 0.4
    check_generator(teacher, pair.generate(torch.from_numpy(z)), z)
    images = torch.rand(ROWS, 3, size, size)
    expected = pair.look(images)
    teacher = load(config_of(tmp_path, levels=[*expected]), "encode")
    assert teacher.image_size == (size, size)
    check_discriminator(teacher, expected, images * 2 - 1)


def test_averages_of_weights_are_taken_and_what_training_kept_is_not(tmp_path: Path) -> None:
    pair = CompareGan()
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32))
    expected = pair.generate(z)
    average = "ExponentialMovingAverage"
    kept = dict(pair.v)
    for name in pair.v:
        if name.startswith("generator/") and name.endswith("kernel"):
            kept[f"{name}/{average}"], kept[name] = kept[name], kept[name] + 1
            kept[f"{name}/Adam_1"] = kept[name]
    np.savez(tmp_path / "v.npz", **kept, global_step=np.array(3))  # type: ignore[arg-type]
    settings = {"z_distribution": "normal", "BN_eps": 1e-5}
    teacher = load(config_of(tmp_path, levels=["B1"], settings=settings), "synthesize")
    check_generator(teacher, expected, z.numpy())
    assert not describe_teacher(teacher.request.config, mode="synthesize").notes


def test_what_is_guessed_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", **CompareGan().v)  # type: ignore[arg-type]
    notes = describe_teacher(config_of(tmp_path), mode="synthesize").notes
    assert "BN_eps 1e-05, z_distribution uniform (compare_gan's)" in str(notes)
    (tmp_path / "v.npz").unlink()
    assert not describe_teacher(config_of(write(tmp_path, Mimicry())), mode="synthesize").notes


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, Mimicry())
    for changes, mode, message in (
        (
            {"settings": {"upsample": "cubic"}},
            "synthesize",
            "got cubic, allowed bilinear",
        ),
        ({"settings": {"pool": "max"}}, "encode", r"pool: got max, allowed sum \| mean"),
        ({"settings": {"z_distribution": "uniform", "truncation": 0.5}}, "synthesize", "z is unif"),
        ({"settings": {"class_label": 1}}, "synthesize", "none: it has no classes"),
        ({"part": "encoder"}, "encode", r"part: got encoder, allowed generator \| discriminator"),
        ({"path": str(path / "netD_9_steps.pth")}, "synthesize", "a discriminator, allowed a gene"),
        (
            {"path": str(path / "netG_9_steps.pth")},
            "encode",
            "a generator, allowed a disc",
        ),
        ({"levels": ["block2"]}, "encode", r"got block2, allowed d\.block1, d\.block2"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe_teacher(config_of(**{"path": path, **changes}), mode=mode)
    with pytest.raises(ConfigError, match=r"image_size: got 18x18, allowed multiples of 4"):
        describe_teacher(config_of(path), mode="encode", image_size=(18, 18))
    assert load(config_of(path, levels=["s4"]), "encode", (32, 16)).levels[0].shape == (16, 8, 4)
    (path / "netD").mkdir()
    (path / "netD_9_steps.pth").rename(path / "netD" / "netD_9_steps.pth")
    assert describe_teacher(config_of(path, levels=["d.block1"]), mode="encode").levels
    torch.save(Mimicry().g, tmp_path / "netG_10_steps.pth")
    with pytest.raises(ConfigError, match=r"netG_10_steps.pth, netG_9_steps.pth, allowed one"):
        describe_teacher(config_of(path), mode="synthesize")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    pair = Mimicry()
    del pair.d["block2.c1.weight_u"]
    pair.g["block2.extra"] = torch.ones(3)
    path = write(tmp_path, pair)
    with pytest.raises(TeacherError, match=r"block2\.c1\.weight_orig without .*weight_u"):
        load(config_of(path, levels=["d.block1"]), "encode")
    with pytest.raises(TeacherError, match=r"surplus: block2\.extra"):
        load(config_of(path), "synthesize")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(TeacherError, match=r"not a generator of SS-GAN .*neither l1 and block2"):
        load(config_of(tmp_path / "other.pth"), "synthesize")
    variables = CompareGan().v
    embedded = {**variables, "generator/embed_y/kernel": np.ones((2, 2), np.float32)}
    np.savez(tmp_path / "embedded.npz", **embedded)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="embed_y/kernel: classes or attention"):
        load(config_of(tmp_path / "embedded.npz"), "synthesize")
    packed = {**variables, "generator/zeros": np.zeros(110 << 20, np.int8)}
    np.savez_compressed(tmp_path / "packed.npz", **packed)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="more than .* bytes unpacked"):
        load(config_of(tmp_path / "packed.npz"), "synthesize")
    hostile = {**variables, "generator/fc_noise/kernel": np.array([{}], dtype=object)}
    np.savez(tmp_path / "hostile.npz", **hostile, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="an array of object"):
        load(config_of(tmp_path / "hostile.npz"), "synthesize")
