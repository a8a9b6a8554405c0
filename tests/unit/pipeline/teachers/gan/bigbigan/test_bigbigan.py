"""BigBiGAN: its generator, and its encoder converted from TensorFlow's variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.gan.bigbigan import convert
from pipeline.teachers.gan.bigbigan.layout import EncoderLayout, Perceptron, read_layout
from pipeline.teachers.gan.bigbigan.network import BigBiGANEncoder
from pipeline.teachers.load import describe_teacher, load_teacher
from storage.schema import Pins
from tests.unit.pipeline.teachers.gan.bigbigan.encoder_reference import Encoder
from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference

ROWS, SIZE = 2, 16
KINDS: dict[str, dict[str, Any]] = {
    "resnet": {},
    "resnet, shortcuts built last": {"last": True, "apart": True},
    "resnet with norms in its head": {"norms": True, "last_relu": False},
    "resnet without crelu": {"crelu": False, "blocks": 0},
    "revnet": {"reversible": True, "last_relu": False},
    "revnet of three stages": {"reversible": True, "units": (1, 2, 1), "hidden": 128},
}


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)


def signed() -> np.ndarray:
    return images().astype(np.float32) / np.float32(127.5) - 1


def convert_to(
    folder: Path,
    encoder: Encoder,
    *more: str,
    relu: str = "",
    changed: dict[str, np.ndarray] | None = None,
) -> Path:
    """Convert as the module's text says, with a check against what the long way gives."""
    file, target = folder / "variables.npz", folder / "encoder.safetensors"
    unused = {"module/Generator/w": np.zeros((3, 3), np.float32), "global_step": np.array(3)}
    np.savez(file, **{**unused, **encoder.v, **(changed or {})})  # type: ignore[arg-type]
    expected = encoder.encode(signed())
    outputs = {
        name: expected[tap].numpy() for name, tap in convert.OUTPUTS.items() if tap in expected
    }
    np.savez(folder / "outputs.npz", x=signed(), **outputs)  # type: ignore[arg-type]
    units = ",".join(str(count) for count in encoder.units)
    relu = relu or str(encoder.last_relu).lower()
    told = ["--units", units, "--latent", str(encoder.latent), "--image_size", str(SIZE)]
    told += ["--bn_eps", str(encoder.eps), "--last_relu", relu]
    told += ["--shortcut", "last" if encoder.last else "first"]
    assert convert.main([str(file), str(target), *told, *more]) == 0
    return target


def save_generator(folder: Path, *, latent: int = 6, name: str = "BigBiGAN_x1.pth") -> Reference:
    """Save a generator as published: no log of sigma, no flags beside it; classes mean nothing."""
    own = Reference(latent=latent, bn_eps=1e-4, sn_eps=1e-4)
    torch.save({n: v for n, v in own.state.items() if not n.endswith(".sv0")}, folder / name)
    return own


def config_of(path: Path, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {"kind": "bigbigan", "part": "encoder", "path": str(path)}
    return TeacherConfig(**{**values, "levels": ["s4"], **changes})


def load(config: TeacherConfig, mode: Any = "encode", seed: int = 0) -> Any:
    pins = Pins(ROWS, config.compute_dtype, "cpu", 1)
    return load_teacher(config, mode=mode, seed=seed, pins=pins)


def record(config: TeacherConfig, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(load(config, seed=seed).encode(images(), np.arange(ROWS)).levels)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_encoder_that_the_variables_make(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder(**KINDS[kind])
    path = convert_to(tmp_path, encoder, "--check", str(tmp_path / "outputs.npz"))
    assert "z_mean differs by" in capsys.readouterr().out
    expected = encoder.encode(signed())
    teacher = load(config_of(path, levels=[*expected]))
    assert teacher.image_size == (SIZE, SIZE)
    maps = teacher.activations(teacher.prepare(torch.from_numpy(images())))
    for name, value in expected.items():
        torch.testing.assert_close(maps[name], value, rtol=1e-5, atol=2e-5)


def test_the_generator_is_told_class_0_and_the_published_epsilons(tmp_path: Path) -> None:
    own = save_generator(tmp_path)
    config = config_of(tmp_path, part="generator", levels=["linear", "blocks.0", "blocks.1"])
    teacher = load(config, "synthesize")
    assert not teacher.request.has_labels and not teacher.request.spec.notes
    assert teacher.fingerprint["kind"] == "bigbigan"
    z, labels, _ = teacher.inputs(np.arange(ROWS))
    assert labels is not None and not labels.any()
    expected = own.forward(torch.from_numpy(z), torch.zeros(ROWS, dtype=torch.int64))
    maps, made = teacher.generate(z, labels, None)
    torch.testing.assert_close(maps["blocks.1"], expected["blocks.1.0"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, expected["image"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="settings.BN_eps"):
        describe_teacher(config_of(tmp_path, part="", settings={"BN_eps": 1e-3}), mode="synthesize")


def test_reconstructions_are_what_the_generator_makes_of_the_latents(tmp_path: Path) -> None:
    encoder, own = Encoder(), save_generator(tmp_path)
    convert_to(tmp_path, encoder)
    levels = ["e.z_mean", "e.z_stdev", "e.z", "rec.linear", "rec.blocks.0", "rec.image"]
    teacher = load(config_of(tmp_path, levels=levels))
    assert [level.kind for level in teacher.levels] == ["latent"] * 3 + ["feature"] * 3
    assert [level.stride for level in teacher.levels] == [0, 0, 0, 4, 2, 1]
    found = teacher.encode(images(), np.arange(ROWS)).levels
    mean = encoder.encode(signed())["e.z_mean"]
    np.testing.assert_allclose(found["e.z"], mean, atol=1e-5)
    made = own.forward(mean, torch.zeros(ROWS, dtype=torch.int64))
    np.testing.assert_allclose(found["rec.image"], made["image"], atol=2e-3)
    np.testing.assert_allclose(found["rec.blocks.0"], made["blocks.0.0"], atol=4e-3)
    pooled = record(config_of(tmp_path, levels=["rec.blocks.0", "e.avepool"], pool="gap"))
    assert {name: value.shape[1:] for name, value in pooled.items()} == {
        "rec.blocks.0.gap": (16,),
        "e.avepool": (64,),
    }


def test_latents_are_drawn_by_index_where_asked_for(tmp_path: Path) -> None:
    encoder, _ = Encoder(), save_generator(tmp_path)
    convert_to(tmp_path, encoder)
    config = config_of(tmp_path, levels=["e.z", "rec.image"], settings={"z": "sample"})
    assert describe_teacher(config, mode="encode").seeded
    first, second, other = record(config), record(config), record(config, seed=1)
    told = encoder.encode(signed())
    steps = (first["e.z"] - told["e.z_mean"].numpy()) / told["e.z_stdev"].numpy()
    assert np.array_equal(first["e.z"], second["e.z"]) and 0.3 < steps.std() < 3
    assert not np.array_equal(first["rec.image"], other["rec.image"])
    mean = config_of(tmp_path, levels=["e.z"])
    assert not describe_teacher(mean, mode="encode").seeded
    # Where the generator lies is no part of what is recorded.
    apart = tmp_path / "apart"
    apart.mkdir()
    (tmp_path / "BigBiGAN_x1.pth").rename(apart / "G.pth")
    elsewhere = config_of(
        tmp_path,
        levels=["e.z", "rec.image"],
        settings={"z": "sample", "generator": str(apart / "G.pth")},
    )
    told_here, told_there = (describe_teacher(each, mode="encode") for each in (mean, elsewhere))
    assert told_there.mode_settings == {"z": "sample"} and told_here.mode_settings == {"z": "mean"}
    assert np.array_equal(record(elsewhere)["rec.image"], first["rec.image"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    convert_to(tmp_path, Encoder())
    for changes, message in (
        ({"levels": ["rec.image"]}, "got rec.image, allowed e.block1, e.block2, e.avepool"),
        ({"settings": {"z": "mode"}}, r"z: got mode, allowed mean \| sample"),
        ({"settings": {"generator": "nowhere"}}, "settings.generator: got nowhere"),
        ({"part": "discriminator"}, r"got discriminator, allowed generator \| encoder"),
        ({"path": str(tmp_path / "outputs.npz")}, r"outputs\.npz, allowed a \.safetensors file"),
        ({"path": str(tmp_path.parent)}, r"no \*encoder\*\.safetensors"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe_teacher(config_of(**{"path": tmp_path, **changes}), mode="encode")
    save_generator(tmp_path, latent=9)
    with pytest.raises(TeacherError, match="latents of 9, allowed 6, the encoder's"):
        describe_teacher(config_of(tmp_path), mode="encode")


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    path = convert_to(tmp_path, Encoder())
    state = load_file(path)
    told = {"architecture": "resnet50v2", "bn_eps": "1e-4", "image_size": "16", "last_relu": "true"}
    for changes, message in (
        ({"architecture": "vgg"}, "architecture vgg, not resnet50v2 or revnet50"),
        ({"architecture": "revnet50"}, "shortcuts of the other"),
        ({"bn_eps": "nan"}, "bn_eps nan"),
        ({"image_size": "18"}, "image_size 18, not a multiple of 8"),
        ({"last_relu": "yes"}, "last_relu yes"),
    ):
        save_file(state, path, metadata={**told, **changes})
        with pytest.raises(TeacherError, match=message):
            describe_teacher(config_of(tmp_path), mode="encode")
    save_file(state, path)
    with pytest.raises(TeacherError, match="KeyError: 'architecture'"):
        describe_teacher(config_of(tmp_path), mode="encode")


@pytest.mark.parametrize(
    ("architecture", "width", "pooled"),
    [("resnet50v2", 1, 2048), ("revnet50", 1, 2048), ("revnet50", 2, 4096), ("revnet50", 4, 8192)],
)
def test_published_sizes_are_read_from_shapes(architecture: str, width: int, pooled: int) -> None:
    head = (
        Perceptron(inputs=pooled, hidden=4096, outputs=4096, shortcut=pooled != 4096, norms=False),
        Perceptron(inputs=4096, hidden=4096, outputs=4096, shortcut=False, norms=False),
    )
    layout = EncoderLayout(
        reversible=architecture == "revnet50",
        filters=64 * width,
        units=(3, 4, 6, 3),
        head=head,
        latent=120,
        crelu=True,
        eps=1e-4,
        last_relu=architecture == "resnet50v2",
        image_size=256,
    )
    with torch.device("meta"):
        module = BigBiGANEncoder(layout)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    told = {"architecture": architecture, "bn_eps": "0.0001", "image_size": "256"}
    told["last_relu"] = str(layout.last_relu).lower()
    assert read_layout(shapes, told, where="x") == layout
    assert (layout.widths[-1], layout.reduction) == (pooled, 32)


def test_variables_that_do_not_fit_are_not_converted(tmp_path: Path) -> None:
    for change, message in (
        ({"module/Encoder/conv2d_1/b": np.ones(3, np.float32)}, "a kernel of shape .* with 1 vec"),
        ({"module/Encoder/extra/w": np.ones((1, 1, 2, 2), np.float32)}, "got 13 convolutions"),
        ({"module/Encoder/conv2d_1/w": np.ones((1, 1, 2, 2), np.float32)}, "allowed .1, 1, 8, 32"),
        ({"module/Encoder/batch_norm_0/moving_mean": np.ones(3, np.float32)}, r"allowed \(8,\)"),
        ({"module/Encoder/linear_9/w": np.ones((2, 2), np.float32)}, "allowed one kernel|a kernel"),
    ):
        with pytest.raises(TeacherError, match=message):
            convert_to(tmp_path, Encoder(), changed=change)
    with pytest.raises(TeacherError, match="no variable has 'nowhere' in its name"):
        convert_to(tmp_path, Encoder(), "--scope", "nowhere")
    with pytest.raises(TeacherError, match="differs from the module"):
        relu = {"last_relu": False}
        convert_to(tmp_path, Encoder(**relu), "--check", str(tmp_path / "outputs.npz"), relu="true")
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob(".*")]
