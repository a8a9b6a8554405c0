"""StyleGAN2-ADA equals its textbook form and the official code, whatever its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError, DataError, TeacherError
from pipeline.teachers.door import open_teacher
from pipeline.teachers.gan.stylegan2.discriminator import Discriminator
from pipeline.teachers.gan.stylegan2.family import StyleGAN2Teacher
from pipeline.teachers.inspecting.command import main as inspect_teacher
from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import Reference

OFFICIAL = Path(__file__).resolve().parents[7] / "shared" / "parity" / "stylegan2-ada-cifar32"
ROWS = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SHAPES: dict[str, dict[str, Any]] = {
    "skip": {"classes": 4, "clamp": 1.5},
    "orig": {"architecture": "orig", "d_architecture": "skip", "side": 8, "layers": 3},
    "resnet": {"architecture": "resnet", "d_architecture": "resnet", "clamp": 2.0, "group": None},
    "instances": {"features": 9, "noise": False, "side": 32},
}


def load(path: Path, **told: Any) -> Any:
    told = {"kind": "stylegan2", "mode": "synthesize", "micro_batch": ROWS, **told}
    return open_teacher(path, **told)


def given(reference: Reference) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    drawn = np.random.default_rng(1)
    z = drawn.standard_normal((ROWS, reference.z)).astype(np.float32)
    labels = np.arange(ROWS) if reference.classes else None
    features = drawn.standard_normal((ROWS, max(reference.features, 1))).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return z, labels, features if reference.features else None


def tensors(reference: Reference) -> list[Any]:
    z, labels, features = given(reference)
    c = None
    if labels is not None:
        c = torch.nn.functional.one_hot(torch.from_numpy(labels), reference.classes).float()
    return [torch.from_numpy(z), c, None if features is None else torch.from_numpy(features)]


def told_instances(reference: Reference, folder: Path) -> dict[str, Any]:
    if not reference.features:
        return {}
    np.save(folder / "instances.npy", np.eye(reference.features, dtype=np.float32))
    return {"instance_features": str(folder / "instances.npy")}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_generator_is_the_textbook_s(tmp_path: Path, kind: str) -> None:
    reference = Reference(**SHAPES[kind])
    path = reference.write(tmp_path / "n.pkl", protocol=2 + list(SHAPES).index(kind))
    w = reference.map(reference.g, *tensors(reference))
    layers = 2 * len(reference.sides)
    expected = reference.synthesis(w[:, None].repeat(1, layers, 1))
    names = [*(name for name in expected if name != "image"), "z", "w", "ws"]
    if reference.arch != "skip":
        names = [name for name in names if not name.endswith(".img")]
    teacher = load(path, levels=names, **told_instances(reference, tmp_path))
    maps, images = teacher.generate(*given(reference))
    for name in set(names) - {"z", "w", "ws"}:
        torch.testing.assert_close(maps[name].contiguous(), expected[name], **CLOSE)
    torch.testing.assert_close(images, expected["image"], **CLOSE)
    torch.testing.assert_close(maps["w"], w, rtol=1e-5, atol=1e-6)
    assert maps["ws"].shape == (ROWS, layers, reference.w)
    plain = reference.synthesis(w[:, None].repeat(1, layers, 1), "none")["image"]
    torch.testing.assert_close(teacher.generate(*given(reference), noise="none")[1], plain, **CLOSE)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_discriminator_is_the_textbook_s(tmp_path: Path, kind: str) -> None:
    reference = Reference(**SHAPES[kind])
    path = reference.write(tmp_path / "n.pkl")
    names = [f"d.b{side}" for side in reference.sides] + ["d.fc"]
    logits = not reference.features
    teacher = load(path, mode="encode", levels=names + ["d.logits"] * logits)
    images = torch.rand(4, 3, reference.side, reference.side) * 2 - 1
    network: Discriminator = teacher.network.module
    c = torch.eye(reference.classes)[[0, 1, 1, 2]] if reference.classes else None
    h = torch.rand(4, reference.features) if reference.features else None
    batch = reference.discriminate(images, c, h)  # the official statistics, over the whole batch
    torch.testing.assert_close(network.judge(images, c, h), batch["logits"], **CLOSE)
    alone = [
        reference.discriminate(
            images[[k]], None if c is None else c[[k]], None if h is None else h[[k]]
        )
        for k in range(4)
    ]
    maps = teacher.activations(images)  # ours: every image as if it were on its own
    for name in names:
        official = torch.cat([each[name.removeprefix("d.")] for each in alone])
        torch.testing.assert_close(maps[name].contiguous(), official, **CLOSE)
    if logits:
        official = torch.cat([each["logits"] for each in alone])
        own = maps["d.logits"] if c is None else (maps["d.logits"] * c).sum(1, keepdim=True)
        torch.testing.assert_close(own, official, **CLOSE)
    told = load(path, mode="encode", levels=["d.fc"], minibatch_std=0.5)
    assert not torch.equal(told.activations(images)["d.fc"], maps["d.fc"])


def test_truncation_noise_and_given_w(tmp_path: Path) -> None:
    reference = Reference(classes=3)
    path = reference.write(tmp_path / "n.pkl")
    told = {"truncation_psi": 0.5, "truncation_cutoff": 3, "noise_mode": "random"}
    teacher = load(path, levels=["b8", "w", "ws"], class_label=2, **told)
    rows = np.array([8, 3, 5])
    batch = teacher.synthesize(rows)
    assert batch.label is not None and batch.label.tolist() == [2, 2, 2]
    assert {k: (v.dtype, v.shape) for k, v in batch.levels.items()} == {
        "b8": (np.float16, (3, 8, 8, 8)), "w": (np.float32, (3, 7)), "ws": (np.float32, (3, 6, 7)),
    }  # fmt: skip
    w = torch.from_numpy(batch.levels["w"])
    centre = reference.g["mapping.w_avg"]
    near = centre + (w - centre) * 0.5
    expected = torch.stack([near] * 3 + [w] * 3, 1)
    np.testing.assert_allclose(batch.levels["ws"], expected.numpy(), atol=1e-5)
    noise = [each.numpy() for each in teacher.noise(rows)]
    assert [each.shape for each in noise] == [(3, 1, s, s) for s in (4, 8, 8, 16, 16)]
    alone = load(path, levels=["b8"], class_label=2, micro_batch=1, **told)
    again = alone.synthesize(rows[1:2])  # noise belongs to the sample, not to its batch
    np.testing.assert_allclose(again.levels["b8"][0], batch.levels["b8"][1], atol=2e-3, rtol=2e-3)
    textbook = reference.synthesis(expected, [torch.from_numpy(each) for each in noise])
    found = load(path, levels=["b8", "ws"], **told).from_w(batch.levels["ws"], rows)
    np.testing.assert_allclose(found.levels["b8"], textbook["b8"].numpy(), atol=0.02, rtol=2e-3)
    assert np.abs(found.image.astype(int) - batch.image.astype(int)).max() <= 1
    same = load(path, levels=["b8"], noise_mode="none").from_w(batch.levels["w"])
    assert same.image.shape == (3, 16, 16, 3)
    with pytest.raises(DataError, match="level w: images made of given w have none"):
        teacher.from_w(batch.levels["w"])
    with pytest.raises(DataError, match=r"w: got shape .*allowed \(N, 7\) or \(N, 6, 7\)"):
        load(path, levels=["b8"]).from_w(np.zeros((2, 5)))


def test_half_the_width_is_near(tmp_path: Path) -> None:
    reference = Reference(classes=2, clamp=2.0, d_architecture="resnet")
    path = reference.write(tmp_path / "n.pkl")
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8)
    for compute in ("float32", "bfloat16"):
        told = {"compute_dtype": compute}
        maps = load(path, levels=["b16"], **told).synthesize(np.arange(ROWS)).levels["b16"]
        seen = load(path, mode="encode", levels=["d.fc"], **told).encode(images, np.arange(ROWS))
        if compute == "float32":
            exact = maps, seen.levels["d.fc"]
        else:
            for near, value in zip((maps, seen.levels["d.fc"]), exact, strict=True):
                assert not np.array_equal(near, value)
                assert np.abs(near.astype(float) - value).mean() < 0.05 * value.std()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("prefix", ["", "stylegan2_ada_pytorch."])
def test_every_protocol_is_read(tmp_path: Path, protocol: int, prefix: str) -> None:
    path = Reference(side=8).write(tmp_path / "n.pkl", protocol=protocol, prefix=prefix)
    assert isinstance(load(path, levels=["b8"]), StyleGAN2Teacher)


def test_other_files_are_named(tmp_path: Path) -> None:
    path, reference = tmp_path / "n.pkl", Reference(side=8)
    reference.g["synthesis.input.weight"] = torch.ones(2, 2)
    reference.write(path)
    with pytest.raises(TeacherError, match=r"n\.pkl: G_ema: it is a StyleGAN3 network"):
        load(path)
    path.write_bytes(b"(cdnnlib.tflib.network\nNetwork\n)\x81\x85.")
    with pytest.raises(TeacherError, match="legacy TensorFlow pickle of StyleGAN"):
        load(path)
    Reference(side=8).write(path, G_ema=None)
    with pytest.raises(TeacherError, match="holds no G_ema, only G, D"):
        load(path)
    broken = Reference(side=8)
    broken.g["synthesis.b8.conv0.weight"][0, 0, 0, 0] = float("inf")
    del broken.d["b4.fc.bias"]
    broken.write(path)
    with pytest.raises(TeacherError, match=r"synthesis\.b8\.conv0\.weight has values that are not"):
        load(path, levels=["b8"])
    with pytest.raises(TeacherError, match=r"1 keys missing: b4\.fc\.bias"):
        load(path, mode="encode", levels=["d.b8"])


def test_settings_not_known_are_refused(tmp_path: Path) -> None:
    reference = Reference(side=8)
    usual = reference.kwargs
    for change, text in (
        ({"unheard_of": 1}, "the setting unheard_of, not known"),
        ({"synthesis_kwargs": {"activation": "selu"}}, "activation 'selu', allowed lrelu"),
        ({"mapping_kwargs": {"lr_multiplier": 0}}, "lr_multiplier 0"),
    ):
        reference.kwargs = lambda name, change=change: usual(name) | change
        path = reference.write(tmp_path / f"{len(text)}.pkl")
        with pytest.raises(TeacherError, match=text):
            load(path, levels=["b8"])
    path = Reference(side=8, classes=2).write(tmp_path / "n.pkl")
    with pytest.raises(ConfigError) as caught:
        load(path, levels=["b8"], truncation_psi=3.0, truncation_cutoff=9, noise_mode="loud")
    told = str(caught.value)
    for part in ("truncation_psi: got 3.0", "truncation_cutoff: got 9, allowed 1..4", "got loud"):
        assert part in told
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match=r"no \*\.pkl in"):
        load(tmp_path / "more")


def test_it_is_inspected_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Reference(side=8, classes=2).write(tmp_path / "n.pkl")
    assert inspect_teacher([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "stylegan2, 8x8 pixels, a generator of latents of 5" in shown and "b8.conv0" in shown
    assert inspect_teacher([str(path), "--kind", "stylegan2", "--part", "discriminator"]) == 0
    shown = capsys.readouterr().out
    assert "stylegan2.discriminator, 8x8 pixels" in shown and "d.fc" in shown


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no official checkpoint beside the checkout")
def test_it_equals_the_official_code() -> None:
    expected = np.load(OFFICIAL / "expected.npz")
    taps = [f"b{side}{part}" for side in (4, 8, 16, 32) for part in ("", ".img", ".conv1")]
    taps += ["b8.conv0", "b16.conv0", "b32.conv0", "ws"]
    near = {"atol": 1e-4, "rtol": 0}

    def run(noise: Any = None, **told: Any) -> tuple[Any, Any]:
        teacher = load(OFFICIAL, levels=taps, **told)
        return teacher.generate(expected["z"], expected["c"], None, noise=noise)

    maps, image = run()
    for tap in taps:
        name = f"const/{tap.replace('.img', '/img')}"
        name = name if "conv" in tap or "img" in tap else f"{name}/x"
        exact = expected["ws" if tap == "ws" else name]
        np.testing.assert_allclose(maps[tap], exact, **({"atol": 1e-6} if tap == "ws" else near))
    np.testing.assert_allclose(image, expected["const/image"], **near)
    np.testing.assert_allclose(run("none")[1], expected["none/image"], **near)
    drawn = [expected[f"random_seed7/noise{number}"] for number in range(7)]
    np.testing.assert_allclose(run(drawn)[1], expected["random_seed7/image"], **near)
    image = run(truncation_psi=0.7)[1]
    np.testing.assert_allclose(image, expected["const_psi0.7/image"], **near)
    maps, _ = run(truncation_psi=0.5, truncation_cutoff=4)
    np.testing.assert_allclose(maps["ws"], expected["ws_psi0.5_cut4"], atol=1e-6)
    mixed = load(OFFICIAL, levels=["b32"]).generator.from_w(torch.from_numpy(expected["mixed_ws"]))
    np.testing.assert_allclose(mixed, expected["mixed/image"], **near)
    judge = load(OFFICIAL, mode="encode", levels=["d.b32", "d.b16", "d.b8"])
    seen, c = (torch.from_numpy(expected[name]) for name in ("const/image", "c"))
    for name, value in judge.activations(seen).items():
        np.testing.assert_allclose(value, expected[name.replace("d.", "D/")], **near)
    np.testing.assert_allclose(judge.judge(seen, c), expected["D/logits"], **near)
