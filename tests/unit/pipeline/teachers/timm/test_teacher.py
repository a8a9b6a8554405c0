"""What a folder, a file or a name leads to: levels, normalisation, licence, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import describe_teacher
from tests.unit.pipeline.teachers.conftest import make_images
from tests.unit.pipeline.teachers.timm.networks import make, save


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    save(folder, "test_resnet")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    save(folder, "vit_small_patch14_reg4_dinov2", depth=4, embed_dim=32, num_heads=2, img_size=56)
    return folder


def spec(path: Path | str, size: int | None = None, levels: str = "pooled", **settings: object):
    config = TeacherConfig(
        kind="timm",
        path=str(path),
        levels=levels.split(),
        settings=settings,  # type: ignore[arg-type]
    )
    shape = (size, size) if size else None
    return describe_teacher(config, mode="encode", image_size=shape)


def test_a_folder_says_everything(plain: Path) -> None:
    found = spec(plain, levels="s14 d50 block.0 cls pooled")
    assert found.image_size == (56, 56) and not found.seeded and found.notes == ()
    assert [(level.name, level.kind, level.shape, level.stride) for level in found.levels] == [
        ("final", "feature", (32, 4, 4), 14),
        ("block.1", "feature", (32, 4, 4), 14),
        ("block.0", "feature", (32, 4, 4), 14),
        ("cls", "embedding", (32,), 0),
        ("pooled", "embedding", (32,), 0),
    ]
    flags = {flag.name: (flag.value, flag.source) for flag in found.flags}
    assert flags["mean"] == ("0.485,0.456,0.406", "file")
    assert found.fingerprint["flags"] == {name: value for name, (value, _) in flags.items()}


def test_images_get_the_networks_own_normalisation(plain: Path) -> None:
    teacher = make(plain, ["s14", "cls"])
    images = make_images(2, 56)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.inference_mode():
        tokens = teacher.network.module.model.forward_features(((pixels - mean) / std).float())
    batch = teacher.encode(images, np.arange(2))
    np.testing.assert_allclose(batch.levels["cls"], tokens[:, 0].numpy(), atol=2e-3, rtol=2e-3)
    first = tokens[:, 5:].transpose(1, 2).reshape(2, 32, 4, 4)  # a class, four registers
    np.testing.assert_allclose(batch.levels["final"], first.numpy(), atol=2e-3, rtol=2e-3)


def test_images_are_resized_for_a_network_of_another_size(plain: Path) -> None:
    """A patch of 14 joins teachers of stride 16: 64 pixels, seen as 56, give 4 x 4 cells of 16."""
    found = spec(plain, 64, "s16", input_size=56)
    assert [(level.name, level.stride, level.shape) for level in found.levels] == [
        ("final", 16, (32, 4, 4))
    ]
    assert found.mode_settings == {"seen": [56, 56]} and found.image_size == (64, 64)
    even = np.full((2, 64, 64, 3), 90, np.uint8)
    resized = make(plain, ["s16"], 64, input_size=56).encode(even, np.arange(2))
    plainly = make(plain, ["s14"]).encode(even[:, :56, :56], np.arange(2))
    close = {"atol": 2e-3, "rtol": 2e-3}
    np.testing.assert_allclose(resized.levels["final"], plainly.levels["final"], **close)
    with pytest.raises(ConfigError, match=r"settings.input_size: got 9000, allowed pixels up to"):
        spec(plain, 64, "s16", input_size=9000)


def test_another_size_resamples_positions_as_timm_does(plain: Path) -> None:
    import timm

    teacher = make(plain, ["final"], 84)
    theirs = timm.create_model(f"local-dir:{plain}", pretrained=True, img_size=84).eval()
    images = torch.randn(2, 3, 84, 84)
    with torch.inference_mode():
        tokens = theirs.forward_features(images)  # type: ignore[operator]
        ours = teacher.activations(images)["final"]
    expected = tokens[:, 5:].transpose(1, 2).reshape(2, 32, 6, 6)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_only_what_is_asked_for_is_computed(plain: Path, convolutional: Path) -> None:
    teacher = make(plain, ["block.0"])
    blocks = teacher.network.module.model.blocks
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    teacher.encode(make_images(2, 56), np.arange(2))
    assert ran == [0]
    pooled = make(convolutional, ["pooled"], 32).encode(make_images(2, 32), np.arange(2))
    assert pooled.levels["pooled"].shape[0] == 2


def test_a_file_needs_the_networks_name(convolutional: Path, tmp_path: Path) -> None:
    alone = tmp_path / "weights.safetensors"
    save_file(load_file(convolutional / "model.safetensors"), alone)
    with pytest.raises(ConfigError, match=r"teacher.settings.name: got nothing, allowed the netw"):
        spec(alone, 32)
    found = spec(alone, 32, name="test_resnet")
    assert "guessed, as no file says it: mean" in found.notes[0]
    told = spec(alone, 32, name="test_resnet", mean="0.4,0.5,0.6", std="0.5,0.5,0.5")
    assert told.notes == () and told.fingerprint != found.fingerprint
    same = make(alone, ["pooled"], 32, name="test_resnet", mean="0.5,0.5,0.5", std="0.5,0.5,0.5")
    folder = make(convolutional, ["pooled"], 32, mean="0.5,0.5,0.5", std="0.5,0.5,0.5")
    images = make_images(2, 32)
    one, other = (each.encode(images, np.arange(2)) for each in (same, folder))
    assert np.array_equal(one.levels["pooled"], other.levels["pooled"])
    torch.save(load_file(alone), tmp_path / "weights.pth")
    pickled = make(tmp_path / "weights.pth", ["pooled"], 32, name="test_resnet.r160_in1k")
    assert pickled.levels == same.levels


def test_nothing_is_fetched_and_random_weights_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"path: got nothing, .*save_for_hf.*random_weights: tr"):
        spec("", 32, name="test_resnet")
    with pytest.raises(ConfigError, match="path: got nothing, allowed a folder of timm's layout"):
        spec("", 32)
    found = spec("", 32, name="test_resnet", random_weights=True, seed=3)
    assert "random weights of seed 3" in found.notes[0]
    assert found.fingerprint["weights"] == "random, seed 3" and found.licence == "none needed"
    first, again, other = (
        make("", ["pooled"], 32, name="test_resnet", random_weights=True, seed=seed).encode(
            make_images(2, 32), np.arange(2)
        )
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first.levels["pooled"], again.levels["pooled"])
    assert not np.array_equal(first.levels["pooled"], other.levels["pooled"])


def test_random_weights_are_timms_own() -> None:
    import timm

    teacher = make("", ["final"], 32, name="test_resnet", random_weights=True, seed=5)
    with pytest.raises(TeacherError, match=r"timm: describes images of .* allowed up to 16,384"):
        dataclasses.replace(teacher.description, image_size=(1 << 15, 1 << 15))
    torch.manual_seed(5)
    theirs = timm.create_model("test_resnet").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs.forward_features(images)  # type: ignore[operator]
        torch.testing.assert_close(teacher.activations(images)["final"], expected)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "resnet5O"}, "settings.name: got 'resnet5O', allowed a network of timm"),
        ({"name": "resnet50.nothing"}, "settings.name: got resnet50.nothing, allowed resnet50, or"),
        ({"name": "hf-hub:me/mine"}, "settings.name: got 'hf-hub:me/mine', allowed a network of"),
        ({"name": "os:system"}, "settings.name: got 'os:system', allowed a network of timm"),
        ({"name": "vit_tiny_patch16_224"}, "image_size: got 30x30, allowed multiples of 16 pixels"),
    ],
)
def test_names_and_sizes_that_are_none(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        spec("", 30, random_weights=True, **settings)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"architecture": "os:system"}, "architecture: settings.name: got 'os:system'"),
        ({"architecture": None}, "architecture: got None, allowed the name of a network"),
        ({"model_args": {"pretrained": True}}, "model_args.pretrained: got True"),
        ({"model_args": {"checkpoint_path": "/x"}}, "model_args.checkpoint_path: got /x"),
        ({"model_args": {"in_chans": 1}}, "model_args.in_chans: got 1"),
        ({"model_args": {"stem_width": 10**9}}, "model_args.stem_width: got 1000000000"),
        ({"model_args": [1]}, r"model_args: got \[1\], allowed an object"),
        ({"pretrained_cfg": {"mean": [0, "x", 1]}}, "pretrained_cfg.mean: got .*three numbers"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "pretrained_cfg.std: got .*three numbers above 0"),
        ({"pretrained_cfg": {"input_size": [1, 28, 28]}}, "allowed 3 channels"),
        ({"architecture": "resnet50"}, "allowed those of resnet50|do not fit resnet50"),
    ],
)
def test_a_folder_is_data(
    convolutional: Path, tmp_path: Path, change: dict[str, object], text: str
) -> None:
    config = json.loads((convolutional / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((convolutional / "model.safetensors").read_bytes())
    with pytest.raises(TeacherError, match=text):
        make(tmp_path, ["pooled"], 32)


@pytest.mark.parametrize("arguments", [{"act_layer": "os.system"}, {"block": "os:system"}])
def test_whatever_a_constructor_makes_of_arguments_is_one_sentence(
    convolutional: Path, tmp_path: Path, arguments: dict[str, str]
) -> None:
    config = json.loads((convolutional / "config.json").read_text()) | {"model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((convolutional / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"with arguments that it takes: .*os.system"):
        make(tmp_path, ["pooled"], 32)


def test_weights_that_are_missing_or_not_finite(convolutional: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((convolutional / "config.json").read_bytes())
    with pytest.raises(TeacherError, match=r"no model.safetensors or .bin"):
        make(tmp_path, ["pooled"], 32)
    state = load_file(convolutional / "model.safetensors")
    name = next(key for key in state if key.endswith("conv1.weight"))
    save_file({k: v for k, v in state.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match=f"do not fit test_resnet .*{name}"):
        make(tmp_path, ["pooled"], 32)
    save_file({**state, "no.such": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match=r"do not fit test_resnet .*no\.such"):
        make(tmp_path, ["pooled"], 32)
    state[name] = state[name].clone().fill_(float("nan"))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match=f"{name} has values that are not finite"):
        make(tmp_path, ["pooled"], 32)


def test_the_licence_is_found(convolutional: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((convolutional / name).read_bytes())
    (tmp_path / "README.md").write_text("---\ntags:\n- timm\nlicense: apache-2.0\n---\n# A model\n")
    known = spec(tmp_path, 32).licence
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"].pop("license", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert spec(tmp_path, 32).licence == "apache-2.0" and known
    config["pretrained_cfg"]["license"] = "cc-by-nc-4.0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert spec(tmp_path, 32).licence == "cc-by-nc-4.0"
    (tmp_path / "teacher_card.json").write_text('{"licence": "mine"}')
    assert spec(tmp_path, 32).licence == "mine"
