"""Post-hoc encoders: losses by hand, whose gradients, resume, what is refused, real images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError
from pipeline import pretrain as script
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.checkpoint import checkpoints
from pipeline.learning.pretraining.adversarial.objective import Share
from pipeline.learning.pretraining.adversarial.play import Players
from pipeline.learning.pretraining.config import PretrainConfig
from pipeline.learning.pretraining.encoding import losses
from pipeline.learning.pretraining.encoding.config import PerceptualConfig, PosthocConfig
from pipeline.learning.pretraining.encoding.run import real_count
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.door import open_teacher
from pipeline.teachers.weights import read
from tests.unit.pipeline.teachers.posthoc import made

KINDS = ("stylegan2", "ssgan", "biggan")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("generators")
    return {kind: made.generator(root / kind, kind) for kind in KINDS}


def share(count: int = 4, **told: Any) -> Share:
    images = torch.zeros(0, 3, 1, 1)
    usual: dict[str, Any] = {"seed": 0, "turn": 1, "step": 1, "progress": 0.0}
    return Share(images, None, range(count), **{**usual, **told})


def test_distances_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(losses.pixel_distance(a, b)) == 1.5
    assert float(losses.latent_distance(a, b)) == 2.5
    layers = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]])  # one layer is right, the other is b
    assert float(losses.latent_distance(a, layers)) == 1.25
    own = {"map": torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2), "vector": a}
    other = {"map": torch.tensor([4.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2), "vector": 7 * a}
    # (.6, .8) against (.8, .6) in every cell; the vectors have one direction.
    found = losses.perceptual_distance(own, other)
    torch.testing.assert_close(found, torch.tensor(0.08))


def test_a_sample_is_made_again_from_its_latent_and_class(
    generators: dict[str, Path], kind: str
) -> None:
    """The images are those of `synthesize`, to the pixel."""
    one = made.objective(generators[kind])
    images, latents, labels = one.generator.draw([5, 6, 9])
    again = one.generator.images(latents, labels)
    assert float((again.clip(-1, 1) - images).abs().max()) <= 1 / 255 + 1e-6
    teacher = open_teacher(generators[kind], kind=kind, mode="synthesize", part="generator")
    drawn = teacher.synthesize(np.array([5, 6, 9])).image
    assert drawn is not None
    shown = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().numpy()
    assert np.abs(shown - drawn).max() <= 1
    assert (labels is not None) == (kind == "biggan")  # StyleGAN2's class is in w


def test_gradients_reach_the_encoder_alone(generators: dict[str, Path], kind: str) -> None:
    told = {"perceptual": PerceptualConfig(path="discriminator", weight=3.0), "l1_weight": 2.0}
    one = made.objective(generators[kind], **told, latent_weight=5.0)
    terms = one.generator_step(share())
    expected = 2 * terms["l1"] + 3 * terms["perceptual"] + 5 * terms["latent"]
    torch.testing.assert_close(terms["loss"], expected)
    terms["loss"].backward()
    learned = list(one.networks["encoder"].parameters())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learned[-2:])
    assert not [
        p for p in one.generator.module.parameters() if p.requires_grad or p.grad is not None
    ]
    owned = {id(p) for group in one.optimizers["encoder"].param_groups for p in group["params"]}
    assert owned == {id(p) for p in learned}


def test_the_image_alone_teaches_through_the_generator(
    generators: dict[str, Path], kind: str
) -> None:
    one = made.objective(generators[kind], latent_weight=0.0)
    one.generator_step(share())["loss"].backward()
    head: Any = one.networks["encoder"].head
    assert float(head[-1].weight.grad.abs().sum()) > 0


def test_of_real_images_only_the_reconstruction_counts(generators: dict[str, Path]) -> None:
    one = made.objective(generators["biggan"], real_share=0.25, l1_weight=2.0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    told = share()
    both = Share(images, torch.tensor([1, 4]), told.positions, 0, 1, 1, 0.5)
    terms = one.generator_step(both)
    expected = 0.75 * (2 * terms["l1"] + terms["latent"]) + 0.25 * 2 * terms["l1_real"]
    torch.testing.assert_close(terms["loss"], expected)
    assert "latent_real" not in terms
    group = one.optimizers["encoder"].param_groups[0]
    assert group["lr"] == pytest.approx(0.01 * 4 / 256 / 2)  # half of the cosine


def tiny(out: Path, generator: Path | str, **changes: Any) -> PretrainConfig:
    own = {"width": 8, "held_out": 4, **changes.pop("encoder", {})}
    values: dict[str, Any] = {
        "kind": "encoder", "generator": str(generator), "out": str(out), "steps": 4,
        "batch_size": 4, "num_samples": 4, "checkpoint_every": 2, "threads": 1, "device": "cpu",
        "precision": "float32", "encoder": PosthocConfig(**own),
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})


def digits(**changes: Any) -> dict[str, Any]:
    return {"source": SourceConfig(kind="digits"), "image": ImageConfig(size=16), **changes}


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    generators: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Through the command: generated and real images, then what is recorded with it."""
    command = [
        "--kind", "encoder", "--generator", str(generators["stylegan2"]), "--steps", "4",
        "--batch_size", "4", "--num_samples", "4", "--checkpoint_every", "2", "--device", "cpu",
        "--precision", "float32", "--threads", "1", "--encoder.width", "8",
        "--encoder.held_out", "4", "--encoder.real_share", "0.5", "--encoder.ema", "0.5",
        "--source.kind", "digits", "--image.size", "16",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert script.main([*command, "--out", str(whole)]) is None
    told = capsys.readouterr()
    assert "perceptual distance is OFF" in told.err
    assert all(f"held out, {what}: relative L1" in told.err for what in ("generated", "real"))
    original = Players.step

    def stopped(self: Players, number: int, *told: Any, **named: Any) -> Any:
        if number == 4:
            raise Interrupted
        return original(self, number, *told, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Players, "step", stopped)
        with pytest.raises(Interrupted):
            script.main([*command, "--out", str(broken)])
    assert checkpoints(broken / "run") and not (broken / "encoder.json").exists()
    script.main([*command, "--out", str(broken)])
    first, second = (read((folder / "encoder.safetensors",)) for folder in (whole, broken))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    card = json.loads((whole / "teacher_card.json").read_text())
    assert {"relative_l1", "latent_error", "real_relative_l1"} <= card["held_out"].keys()
    line = json.loads((whole / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss_e", "l1", "latent", "l1_real"} <= line.keys() and "loss_d" not in line
    assert (whole / "samples.png").stat().st_size > 0
    capsys.readouterr()
    script.main([*command, "--out", str(whole)])
    assert "already trained" in capsys.readouterr().err
    shutil.move(whole, tmp_path / "moved")
    teacher = open_teacher(tmp_path / "moved", kind="encoder", levels=["e.w", "rec.image"])
    batch = teacher.encode(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2))
    assert batch.levels["e.w"].shape == (2, 7)


def refused(config: PretrainConfig) -> str:
    if problems := [*config.problems(), *config.encoder.problems()]:
        return "\n".join(map(str, problems))
    with pytest.raises(ConfigError) as caught:
        script.pretrain(config)
    assert not (Path(config.out) / "run").exists()  # before step one
    return str(caught.value)


def test_what_cannot_be_is_told_before_step_one(
    generators: dict[str, Path], tmp_path: Path
) -> None:
    out, nowhere = tmp_path / "out", tmp_path / "nowhere"
    style, big = generators["stylegan2"], generators["biggan"]
    assert "generator: got nothing" in refused(tiny(out, ""))
    assert f"generator: got {nowhere}, allowed an existing path" in refused(tiny(out, nowhere))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "of kind diffusers, allowed a generator: stylegan2" in refused(tiny(out, empty))
    one = made.encoder(tmp_path / "has")
    assert "which has an encoder" in refused(tiny(out, one))
    w = {"encoder": {"latent": "w"}}
    assert "encoder.latent: got w, allowed z" in refused(tiny(out, big, **w))
    other = {"encoder": {"real_share": 0.5}, **digits(image=ImageConfig(size=8))}
    assert "image.size: got 8x8, allowed 16x16" in refused(tiny(out, style, **other))
    flags = {"encoder": {"settings": {"truncation": 0.5}}}
    assert "encoder.settings.truncation: got 0.5, allowed BN_eps" in refused(
        tiny(out, big, **flags)
    )
    assert "l1_weight" in refused(
        tiny(out, style, encoder={"l1_weight": 0.0, "latent_weight": 0.0})
    )
    with pytest.raises(ConfigError, match=r"encoder\.real_share: got 0\.1"):
        real_count(4, 0.1, 1)


def test_networks_of_the_perceptual_distance_that_cannot_be_are_refused(
    generators: dict[str, Path], tmp_path: Path
) -> None:
    def asked(**told: Any) -> str:
        own = {"perceptual": PerceptualConfig(**told)}
        return refused(tiny(tmp_path / "out", generators["stylegan2"], encoder=own))

    assert "encoder.perceptual.path: got nowhere" in asked(path="nowhere")
    lone = tmp_path / "lone"
    lone.mkdir()
    assert "allowed a network that looks at images" in asked(path=str(lone))
    assert "encoder.perceptual.levels: got no, allowed" in asked(
        path=str(generators["ssgan"]), levels=["no"]
    )
    wrong = made.generator(tmp_path / "style", "stylegan2")
    found = made.objective(wrong, perceptual=PerceptualConfig(path=str(generators["biggan"])))
    assert found.perceptual is not None and found.perceptual.fingerprint["levels"]


def test_real_images_of_a_conditional_generator_need_labels(
    generators: dict[str, Path], tmp_path: Path
) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    told = {
        "source": SourceConfig(kind="folder", path=str(folder)), "image": ImageConfig(size=16),
        "encoder": {"real_share": 0.5},
    }  # fmt: skip
    text = refused(tiny(tmp_path / "out", generators["biggan"], **told))
    assert "source: got images without labels, allowed images with labels" in text


def test_a_class_is_asked_for_where_the_generator_is_told_one(tmp_path: Path) -> None:
    folder = made.encoder(tmp_path, "biggan")

    def asked(levels: list[str], **settings: Any) -> Any:
        return open_teacher(folder, kind="encoder", levels=levels, **settings)

    with pytest.raises(ConfigError, match=r"settings\.class_label: got nothing, allowed 0\.\.4"):
        asked(["e.z", "rec.blocks.0"])
    with pytest.raises(ConfigError, match=r"settings\.class_label: got 7, allowed 0\.\.4"):
        asked(["rec.blocks.0"], class_label=7)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    plain = asked(["e.z"]).encode(images, np.arange(2)).levels
    first, second = (
        asked(["e.z", "rec.image"], class_label=label).encode(images, np.arange(2)).levels
        for label in (0, 1)
    )
    assert np.array_equal(plain["e.z"], first["e.z"])
    assert not np.array_equal(first["rec.image"], second["rec.image"])


def test_an_encoder_s_folder_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    from dreamshard.errors import TeacherError
    from pipeline.teachers.load import describe_teacher

    folder = made.encoder(tmp_path)
    good = json.loads((folder / "encoder.json").read_text())
    for key, value in (
        ("network", "os:system"), ("width", 1 << 40), ("latent", "x"), ("format_version", 9),
        ("generator", {**good["generator"], "file": "../../x.pkl"}),
        ("generator", {**good["generator"], "kind": "os:system"}),
        ("generator", {**good["generator"], "settings": {"a": []}}), ("generator", 3),
    ):  # fmt: skip
        (folder / "encoder.json").write_text(json.dumps({**good, key: value}))
        with pytest.raises(TeacherError, match=f"encoder.json: {key}"):
            describe_teacher(
                TeacherConfig(kind="encoder", path=str(folder), levels=["e.w"]), mode="encode"
            )
