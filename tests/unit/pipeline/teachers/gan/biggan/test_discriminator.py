"""BigGAN's discriminator: read from the official format, equal to the long way."""

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
from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference
from tests.unit.pipeline.teachers.gan.biggan.discriminator_reference import Discriminator

OFFICIAL = Path(__file__).resolve().parents[7] / "shared" / "parity" / "biggan-64"
ROWS = 2
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "of 16 pixels, with attention": (16, {"attention": (0,)}),
    "not wide": (16, {"wide": False}),
    "cifar's": (32, {"widths": (3, 8, 8, 8, 8), "halved": (True, True, False, False)}),
    "as for 128 pixels": (
        128,
        {"widths": (3, 4, 8, 8, 16, 16, 16), "halved": (*(True,) * 5, False)},
    ),
    "deep": (16, {"deep": True, "widths": (8, 16, 32), "halved": (True, True), "attention": (1,)}),
    "deep cifar's": (
        32,
        {"deep": True, "widths": (8, 8, 8, 8), "halved": (True, True, False)},
    ),
}


def config_of(path: Path, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {"kind": "biggan", "part": "discriminator", "path": str(path)}
    return TeacherConfig(**{**values, "levels": ["s2"], **changes})


def load(config: TeacherConfig, size: tuple[int, int] | None = None) -> Any:
    pins = Pins(ROWS, config.compute_dtype, "cpu", 1)
    return load_teacher(config, mode="encode", seed=0, pins=pins, image_size=size)


@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_the_official_discriminator(tmp_path: Path, kind: str) -> None:
    size, values = SHAPES[kind]
    reference = Discriminator(**values)
    torch.save(reference.state, tmp_path / "D.pth")
    images = torch.rand(ROWS, 3, size, size) * 2 - 1
    expected = reference.look(images)
    teacher = load(config_of(tmp_path, levels=[*expected]))
    assert teacher.image_size == (size, size)
    for name, value in teacher.activations(images).items():
        exact = expected[name]
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5 * (1 + float(exact.std())))


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no official checkpoint beside the checkout")
def test_it_equals_the_official_code() -> None:
    expected = np.load(OFFICIAL / "expected.npz")
    names = {"d.blocks.0.0": "blocks.0.0", "d.blocks.0": "blocks.0.1"}
    names |= {f"d.blocks.{number}": f"blocks.{number}.0" for number in range(1, 5)}
    teacher = load(config_of(OFFICIAL, levels=[*names, "d.logits"]))
    maps = teacher.activations(torch.from_numpy(expected["G/image"]))
    for name, official in names.items():
        np.testing.assert_allclose(maps[name].numpy(), expected[f"D/{official}"], atol=1e-5)
    own = maps["d.logits"].numpy()[np.arange(len(expected["y"])), expected["y"]]
    np.testing.assert_allclose(own[:, None], expected["D/out"], atol=1e-5)
    assert teacher.request.spec.flags[0].source == "file"


def test_its_epsilon_is_found_or_guessed(tmp_path: Path) -> None:
    torch.save(Discriminator().state, tmp_path / "D_copy0.pth")
    torch.save(Discriminator().state, tmp_path / "D_optim_copy0.pth")
    notes = describe_teacher(config_of(tmp_path), mode="encode").notes
    assert "SN_eps 1e-06 (the official ImageNet scripts')" in str(notes)
    torch.save({"config": {"SN_eps": 1e-8, "BN_eps": 1e-5}}, tmp_path / "state_dict_copy0.pth")
    spec = describe_teacher(config_of(tmp_path), mode="encode")
    assert not spec.notes and spec.fingerprint["flags"] == {"SN_eps": 1e-8}
    told = describe_teacher(config_of(tmp_path, settings={"SN_eps": 1e-4}), mode="encode")
    assert told.fingerprint["flags"] == {"SN_eps": 1e-4} and not told.seeded


def test_a_discriminator_told_of_instances_has_blocks_and_one_logit(tmp_path: Path) -> None:
    reference = Discriminator()
    reference.state["linear_feat.weight"] = torch.ones(32, 7)
    torch.save(reference.state, tmp_path / "D.pth")
    with pytest.raises(ConfigError, match="got d.logits, allowed d.blocks.0, d.blocks.1"):
        describe_teacher(config_of(tmp_path, levels=["d.logits"]), mode="encode")
    images = torch.rand(ROWS, 3, 16, 16)
    maps = load(config_of(tmp_path, levels=["d.linear"])).activations(images)
    torch.testing.assert_close(maps["d.linear"], reference.look(images)["d.linear"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    torch.save(Discriminator().state, tmp_path / "D.pth")
    torch.save(Reference().state, tmp_path / "G_ema.pth")
    with pytest.raises(ConfigError, match=r"image_size: got 18x16, allowed multiples of 4"):
        describe_teacher(config_of(tmp_path), mode="encode", image_size=(18, 16))
    with pytest.raises(TeacherError, match="not a BigGAN discriminator"):
        describe_teacher(config_of(tmp_path / "G_ema.pth"), mode="encode")
    with pytest.raises(ConfigError, match=r"no D\*\.pth in"):
        describe_teacher(config_of(tmp_path.parent), mode="encode")
    with pytest.raises(ConfigError, match="draws: got 2, allowed 1"):
        describe_teacher(config_of(tmp_path, draws=2), mode="encode")
    assert load(config_of(tmp_path), (8, 24)).levels[0].shape == (8, 4, 12)


def test_half_precision_is_close(tmp_path: Path) -> None:
    torch.save(Discriminator(attention=(0,)).state, tmp_path / "D.pth")
    images = torch.rand(ROWS, 3, 16, 16) * 2 - 1
    config = config_of(tmp_path, levels=["s4", "d.pool"])
    exact = load(config).activations(images)
    half = config_of(tmp_path, levels=["s4", "d.pool"], compute_dtype="bfloat16")
    for name, value in load(half).activations(images).items():
        assert 0 < (value.float() - exact[name]).abs().mean() < 0.03 * exact[name].abs().mean()
