"""BigGAN, BigGAN-deep and IC-GAN: read from the official format, equal to the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dreamshard
from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig, guesses
from pipeline.teachers.gan.biggan.family import BigGANTeacher
from pipeline.teachers.inspecting.command import main as inspect_teacher
from pipeline.teachers.load import describe_teacher, load_teacher
from storage.schema import Pins
from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference

OFFICIAL = Path(__file__).resolve().parents[7] / "shared" / "parity" / "biggan-64"
ROWS = 3
SHAPES: dict[str, dict[str, Any]] = {
    "biggan": {"attention": (0,), "widths": (16, 16, 8)},
    "biggan of one z": {"hier": False},
    "biggan, tables per block": {"hier": False, "shared": 0, "stats": "mybn"},
    "biggan, mybn": {"stats": "mybn", "attention": (1,), "widths": (16, 8, 8)},
    "biggan, cross_replica": {"stats": "cross_replica"},
    "biggan, from TensorFlow": {"bn_eps": 1e-4, "sn_eps": 1e-4},
    "deep": {"deep": True, "attention": (1,), "widths": (32, 16, 16)},
    "deep, of one width, three blocks a stage": {
        "deep": True,
        "depth": 3,
        "widths": (16, 16, 16, 16),
    },
    "ic-gan": {"features": 20, "shared_features": 7, "told_class": False},
    "ic-gan with classes": {"features": 20, "shared_features": 7},
    "ic-gan, cross_replica": {"features": 20, "shared_features": 7, "stats": "cross_replica"},
    "ic-gan of one z": {"features": 20, "shared_features": 7, "told_class": False, "hier": False},
}


def config_of(path: Path, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {"kind": "biggan", "path": str(path), "levels": ["s1", "s2"]}
    return TeacherConfig(**{**values, **changes})


def load(config: TeacherConfig, *, seed: int = 0) -> BigGANTeacher:
    pins = Pins(ROWS, config.compute_dtype, "cpu", 1)
    found = load_teacher(config, mode="synthesize", seed=seed, pins=pins)
    assert isinstance(found, BigGANTeacher)
    return found


def write(
    folder: Path, reference: Reference, *, name: str = "G_ema.pth", flags: bool = True
) -> Path:
    """Write a checkpoint as the official code does, with what `torch.load` would refuse in it."""
    torch.save(reference.state, folder / name)
    if flags:
        config = {"BN_eps": reference.bn_eps, "SN_eps": reference.sn_eps, "G_nl": "relu"}
        config |= {"hier": reference.hier, "G_activation": nn.ReLU(inplace=False)}
        record = {"itr": 3, "best_IS": np.float32(9.5), "best_FID": np.float64(7), "config": config}
        torch.save(record, folder / name.replace("G_ema", "state_dict"))
    return folder / name


def instances(folder: Path, *, rows: int = 4, width: int = 20, classes: int = 5) -> Path:
    drawn = np.random.default_rng(0)
    features = drawn.standard_normal((rows, width)).astype(np.float32)
    labels = drawn.integers(0, classes, rows)
    np.savez(folder / "instances.npz", instance_features=features, labels=labels)
    return folder / "instances.npz"


@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_the_official_generator(tmp_path: Path, kind: str) -> None:
    reference = Reference(**SHAPES[kind])
    path = write(tmp_path, reference)
    settings = {}
    if reference.features:
        settings = {"instance_features": str(instances(tmp_path))}
    blocks = [f"blocks.{number}" for number in range(len(reference.blocks))]
    teacher = load(config_of(path, levels=["linear", *blocks], settings=settings))
    z, labels, features = teacher.inputs(np.arange(ROWS))
    assert z.shape == (ROWS, reference.latent)
    assert (labels is None) == (not reference.told_class)
    told = [None if each is None else torch.from_numpy(each) for each in (labels, features)]
    expected = reference.forward(torch.from_numpy(z), *told)
    maps, images = teacher.generate(z, labels, features)
    for number, name in enumerate(blocks):
        exact = expected.get(f"{name}.1", expected[f"{name}.0"])
        assert (number in reference.attention) == (f"{name}.1" in expected)
        torch.testing.assert_close(maps[name], exact, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(maps["linear"].flatten(1), expected["linear"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images, expected["image"], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no official checkpoint beside the checkout")
def test_it_equals_the_official_code() -> None:
    expected = np.load(OFFICIAL / "expected.npz")
    names = {"linear": "linear", "blocks.0": "blocks.0.0", "blocks.1": "blocks.1.0"}
    names |= {"blocks.2.0": "blocks.2.0", "blocks.2": "blocks.2.1", "blocks.3": "blocks.3.0"}
    teacher = load(config_of(OFFICIAL, levels=list(names)))
    maps, images = teacher.generate(expected["z"], expected["y"], None)
    for name, official in names.items():
        exact = expected[f"G/{official}"]
        np.testing.assert_allclose(maps[name].numpy().reshape(exact.shape), exact, atol=1e-5)
    np.testing.assert_allclose(images.numpy(), expected["G/image"], atol=1e-5)


def test_records_are_what_the_network_gave(tmp_path: Path) -> None:
    teacher = load(config_of(write(tmp_path, Reference(attention=(0,))), levels=["s2", "s1"]))
    batch = teacher.synthesize(np.arange(ROWS))
    maps, images = teacher.generate(*teacher.inputs(np.arange(ROWS)))
    assert list(batch.levels) == ["blocks.0", "blocks.1"] and batch.image is not None
    for name, values in batch.levels.items():
        assert np.array_equal(values, maps[name].numpy().astype(np.float16))
    pixels = np.clip(images.permute(0, 2, 3, 1).numpy(), -1, 1) * 127.5 + 127.5
    assert np.abs(pixels - batch.image).max() <= 0.5 + 1e-4
    assert batch.label is not None and ((batch.label >= 0) & (batch.label < 5)).all()
    pooled = load(config_of(tmp_path, levels=["s2"], pool="gap")).synthesize(np.arange(ROWS))
    mean = maps["blocks.0"].mean((2, 3)).numpy()
    np.testing.assert_allclose(pooled.levels["blocks.0.gap"], mean, atol=2e-3)


def described(path: Path, **settings: Any) -> Any:
    return BigGANTeacher.look_up(config_of(path, settings=settings), None)[0]


def test_epsilons_are_found_asked_for_or_usual(tmp_path: Path) -> None:
    reference = Reference(bn_eps=1e-2, sn_eps=1e-3)
    path = write(tmp_path, reference)
    found = described(path)
    assert (found.architecture["BN_eps"], found.architecture["SN_eps"]) == (1e-2, 1e-3)
    assert not guesses(found.flags)
    given = described(path, BN_eps=1e-4)
    assert (given.architecture["BN_eps"], given.architecture["SN_eps"]) == (1e-4, 1e-3)
    (tmp_path / "alone").mkdir()
    alone = write(tmp_path / "alone", reference, flags=False)
    usual = described(alone)
    assert (usual.architecture["BN_eps"], usual.architecture["SN_eps"]) == (1e-5, 1e-6)
    assert "BN_eps 1e-05, SN_eps 1e-06 (the official ImageNet scripts')" in guesses(usual.flags)[0]
    fingerprints = {
        str(describe_teacher(config_of(p), mode="synthesize").fingerprint["architecture"])
        for p in (path, alone)
    }
    assert len(fingerprints) == 2, "another epsilon is another network"
    torch.save({k: v for k, v in reference.state.items() if not k.endswith("sv0")}, alone)
    assert described(alone).architecture["BN_eps"] == 1e-4, "weights from TensorFlow"


@pytest.mark.parametrize("name", ["G.pth", "G_ema.safetensors", "G_ema_best0.pth", "G_best0.pth"])
def test_the_record_of_a_checkpoint_is_found(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    write(tmp_path, Reference(bn_eps=1e-2))
    record = "state_dict_best0.pth" if "best0" in name else "state_dict.pth"
    (tmp_path / "state_dict.pth").rename(tmp_path / record)
    (tmp_path / "G_ema.pth").rename(tmp_path / name)
    if name.endswith("safetensors"):
        save_file(Reference().state, tmp_path / name)
    assert described(tmp_path / name).architecture["BN_eps"] == 1e-2


def test_flags_of_the_record_are_heeded(tmp_path: Path) -> None:
    path = write(tmp_path, Reference())
    config = {"z_var": 0.5, "constant_conditioning": True, "G_nl": "ir"}
    torch.save({"config": config}, tmp_path / "state_dict.pth")
    teacher = load(config_of(path))
    z, labels, _ = teacher.inputs(np.arange(4000))
    assert z.std() == pytest.approx(0.5, abs=0.01)
    assert labels is not None and not labels.any()
    one = load(config_of(path, settings={"z_var": 2.0, "class_label": 3}))
    assert one.inputs(np.arange(4000))[0].std() == pytest.approx(2, abs=0.04)


def test_gains_that_the_official_evaluation_adds_can_be_multiplied(tmp_path: Path) -> None:
    reference = Reference(stats="cross_replica")
    path = write(tmp_path, reference)
    told = config_of(path, settings={"cross_replica": False})
    teacher = load(told)
    inputs = teacher.inputs(np.arange(ROWS))
    reference.additive = False
    z, labels = (torch.from_numpy(each) for each in inputs[:2] if each is not None)
    expected = reference.forward(z, labels)["image"]
    torch.testing.assert_close(teacher.generate(*inputs)[1], expected, rtol=1e-5, atol=1e-5)
    assert teacher.fingerprint != load(config_of(path)).fingerprint


def test_a_shape_that_can_be_read_in_two_ways_is_asked_about(tmp_path: Path) -> None:
    twofold = {"features": 20, "shared_features": 7, "shared": 12, "hier": False}
    path = write(tmp_path, Reference(**twofold), flags=False)
    with pytest.raises(TeacherError, match=r"2 readings .* Give settings.hier and settings.class"):
        described(path)
    found = described(path, hier=False)
    assert (found.latent, found.classes) == (12, 5)
    assert described(path, hier=True).classes == 0
    write(tmp_path, Reference(**twofold))
    assert described(path).classes == 5, "the record says"


def test_a_hostile_record_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, Reference())
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (marker.touch, ())

    torch.save({"config": {"BN_eps": 1e-5, "G_activation": Bomb()}}, tmp_path / "state_dict.pth")
    with pytest.raises(TeacherError, match=r"state_dict\.pth: refused: loading it would run code"):
        describe_teacher(config_of(path), mode="synthesize")
    assert not marker.exists()
    told = {"BN_eps": 1e-4, "SN_eps": 1e-4}
    describe_teacher(config_of(path, settings=told), mode="synthesize")  # not needed, not read


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"config": {"G_nl": "tanh"}}, "G_nl: got tanh, allowed relu"),
        ({"config": {"BN_eps": float("nan")}}, "BN_eps: got nan"),
        ({"config": {"SN_eps": None}}, "SN_eps: got None"),
        ({"config": [1]}, "holds no `config`"),
        (torch.zeros(3), "holds no `config`"),
        (b"", "damaged or truncated"),
    ],
)
def test_a_record_of_something_else_is_named(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path, Reference())
    if isinstance(record, bytes):
        (tmp_path / "state_dict.pth").write_bytes(record)
    else:
        torch.save(record, tmp_path / "state_dict.pth")
    with pytest.raises(TeacherError, match=message):
        describe_teacher(config_of(path), mode="synthesize")


def test_what_is_stored_besides_is_understood(tmp_path: Path) -> None:
    """Half precision, DataParallel's prefix, further singular vectors, sums not yet divided."""
    reference = Reference(stats="mybn")
    inputs = torch.randn(ROWS, 12), torch.tensor([0, 1, 4])
    expected = reference.forward(*inputs)["image"]
    state = dict(reference.state)
    for name, value in reference.state.items():
        if name.endswith(("stored_mean", "stored_var")):
            state[name] = value * 16
        if name.endswith("accumulation_counter"):
            state[name] = value + 16
        if name.endswith("u0"):
            state[name.replace("u0", "u1")], state[name.replace("u0", "sv1")] = value, value[0, :1]
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "G_ema.pth")
    teacher = load(config_of(tmp_path, settings={"BN_eps": 1e-5, "SN_eps": 1e-6}))
    images = teacher.generate(inputs[0].numpy(), inputs[1].numpy(), None)[1]
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "G_ema.pth")
    halves = load(config_of(tmp_path)).generate(inputs[0].numpy(), inputs[1].numpy(), None)[1]
    torch.testing.assert_close(halves, expected, rtol=0, atol=0.05)
    state["linear.u0"] = torch.ones(1, 3)
    torch.save(state, tmp_path / "G_ema.pth")
    with pytest.raises(TeacherError, match=r"linear\.u0: got 3 numbers, allowed 256"):
        load(config_of(tmp_path))


def test_files_that_lack_the_log_of_sigma_load_and_others_do_not(tmp_path: Path) -> None:
    reference = Reference()
    kept = {k: v for k, v in reference.state.items() if not k.endswith("sv0")}
    torch.save(kept, tmp_path / "G_ema.pth")
    load(config_of(tmp_path))
    del kept["blocks.1.0.bn2.stored_var"]
    torch.save(kept, tmp_path / "G_ema.pth")
    with pytest.raises(TeacherError, match=r"1 keys missing: blocks\.1\.0\.bn2\.stored_var"):
        load(config_of(tmp_path))
    torch.save({"blocks.0.0.conv1.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "G_ema.pth")
    with pytest.raises(TeacherError, match="not a BigGAN generator"):
        load(config_of(tmp_path))


def test_the_folder_must_hold_one_generator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no G_ema\*\.pth"):
        describe_teacher(config_of(tmp_path), mode="synthesize")
    for name in ("G_ema_best0.pth", "G_ema_best1.pth"):
        write(tmp_path, Reference(), name=name)
    with pytest.raises(ConfigError, match=r"got G_ema_best0\.pth, G_ema_best1\.pth"):
        describe_teacher(config_of(tmp_path), mode="synthesize")
    describe_teacher(config_of(tmp_path / "G_ema_best1.pth"), mode="synthesize")
    for path, allowed in ((tmp_path / "none.pth", "existing"), (Path(__file__), r"\.safetensors")):
        with pytest.raises(ConfigError, match=allowed):
            describe_teacher(config_of(path), mode="synthesize")


@pytest.mark.parametrize("form", ["scaled", "bounded"])
def test_truncation_bounds_the_latents(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, Reference())
    settings = {"truncation": 0.5, "truncation_form": form}
    teacher = load(config_of(path, settings=settings))
    z, _, _ = teacher.inputs(np.arange(4000))
    assert 0.95 < np.abs(z).max() <= 1.0
    # A normal cut at 2 has standard deviation 0.8796, one cut at 1 has 0.5396.
    assert z.std() == pytest.approx(0.8796 / 2 if form == "scaled" else 0.5396, abs=0.01)
    again, _, _ = teacher.inputs(np.array([17]))
    assert np.array_equal(again[0], z[17])
    free, _, _ = load(config_of(path)).inputs(np.arange(4000))
    assert free.std() == pytest.approx(1, abs=0.02) and np.abs(free).max() > 3


def test_instances_decide_features_and_classes(tmp_path: Path) -> None:
    path = write(tmp_path, Reference(features=20, shared_features=7))
    teacher = load(config_of(path, settings={"instance_features": str(instances(tmp_path))}))
    _, labels, features = teacher.inputs(np.arange(50))
    assert features is not None and labels is not None
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    pairs = {(row.tobytes(), int(label)) for row, label in zip(features, labels, strict=True)}
    assert len(pairs) == 4, "an instance goes with its own class"
    one = load(
        config_of(
            path,
            settings={"instance_features": str(tmp_path / "instances.npz"), "class_label": 2},
        )
    )
    assert one.inputs(np.arange(5))[1].tolist() == [2] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "instance_features: got nothing, allowed a file. Give a file of"),
        ({"instance_features": "x.pkl"}, r"allowed a file of \.npy, \.npz, \.safetensors"),
        ({"instance_features": "gone.npy"}, r"gone\.npy"),
        ({"instance_features": "narrow.npz"}, r"shape \(4, 19\), allowed \(N, 20\)"),
        ({"instance_features": "zero.npy"}, "zero or not finite"),
        ({"instance_features": "pickled.npy"}, "plain arrays"),
        ({"instance_features": "beyond.npz"}, r"labels 0\.\.9, allowed 0\.\.4"),
        ({"instance_features": "empty.npy"}, r"empty\.npy: .*plain arrays"),
        ({"instance_features": "huge.npy"}, r"huge\.npy: .*plain arrays"),
        ({"instance_features": "broken.npz"}, r"broken\.npz: .*plain arrays"),
        ({"instance_features": "other.npz"}, "arrays none, allowed one of name instance_features"),
        ({"instance_features": "whole.npy"}, "allowed \\(N, D\\) of floating-point"),
        ({"instance_features": "short.npz"}, r"labels of shape \(9,\)"),
    ],
)
def test_bad_instances_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    instances(tmp_path, width=19).rename("narrow.npz")
    np.save("zero.npy", np.zeros((4, 20), np.float32))
    np.save("pickled.npy", np.array({"instance_features": 1}, dtype=object), allow_pickle=True)
    rows = np.ones((10, 20), np.float32)
    np.savez("beyond.npz", instance_features=rows, labels=np.arange(10))
    np.savez("short.npz", instance_features=rows, labels=np.arange(9))
    np.savez("other.npz", features=rows)
    np.save("whole.npy", rows.astype(np.int64))
    Path("empty.npy").touch()
    whole = Path("whole.npy").read_bytes()
    Path("huge.npy").write_bytes(whole.replace(b"(10, 20), }    ", b"(1000000, 99),}"))
    Path("broken.npz").write_bytes(Path("beyond.npz").read_bytes()[:-200])
    path = write(tmp_path, Reference(features=20, shared_features=7))
    with pytest.raises((ConfigError, TeacherError), match=message):
        describe_teacher(config_of(path, settings=settings), mode="synthesize")


def test_all_mistakes_of_a_request_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, Reference())
    wrong = config_of(
        path,
        levels=["s2", "up.1"],
        timesteps=[5],
        draws=2,
        settings={
            "class_label": 5,
            "truncation": -1.0,
            "truncation_form": "cut",
            "instance_features": "x.npy",
            "steps": 3,
        },
    )
    with pytest.raises(ConfigError) as error:
        describe_teacher(wrong, mode="synthesize", image_size=(32, 32))
    for part in (
        "teacher.image_size: got 32x32, allowed 16x16",
        "teacher.draws: got 2",
        "teacher.timesteps: got [5], allowed none",
        "teacher.levels: got up.1, allowed linear, blocks.0, blocks.1; aliases s1, s2, s4",
        "teacher.settings.class_label: got 5, allowed 0..4",
        "teacher.settings.truncation: got -1.0",
        "teacher.settings.truncation_form: got cut, allowed scaled | bounded",
        "teacher.settings.instance_features: got x.npy, allowed none",
        "teacher.settings.steps: got 3",
    ):
        assert part in str(error.value)
    generator = config_of(path, part="generator")
    with pytest.raises(ConfigError, match=r"biggan \(generator\) for encode, allowed synthesize"):
        describe_teacher(generator, mode="encode")
    for told, message in (
        ({"BN_eps": 2.0}, "BN_eps: got 2"),
        ({"z_var": -1.0}, "z_var: got -1.0, allowed above 0"),
        ({"hier": 3}, "hier: got 3, allowed true | false"),
        ({"SN_eps": "x"}, "SN_eps: got 'x', allowed a float"),
        ({"truncation": float("nan")}, "truncation: got nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe_teacher(config_of(path, settings=told), mode="synthesize")


@pytest.mark.parametrize(("dtype", "far"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_half_precision_is_close(tmp_path: Path, dtype: str, far: float) -> None:
    path = write(tmp_path, Reference(attention=(0,)))
    exact = load(config_of(path))
    inputs = exact.inputs(np.arange(ROWS))
    close = load(config_of(path, compute_dtype=dtype))
    difference = (close.generate(*inputs)[1].float() - exact.generate(*inputs)[1]).abs()
    assert 0 < difference.mean() < far


def test_it_is_inspected_and_opened_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, Reference(features=20, shared_features=7, attention=(0,)), flags=False)
    assert inspect_teacher([str(path)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "biggan, 16x16 pixels, a generator of latents of 12",
        "class-conditional: 5 classes",
        "conditioned on instances: (N, 20) numbers",
        "(the official ImageNet scripts')",
        "blocks.0.0",
        "GFLOP per image",
    ):
        assert part in shown
    with pytest.raises(TeacherError, match="it is a generator. Set teacher.kind to biggan"):
        dreamshard.load_teacher(str(path))
    with pytest.raises(TeacherError, match="it is a generator"):
        dreamshard.load_teacher(str(tmp_path))
    with pytest.raises(ConfigError, match=r"biggan \(generator\) for encode, allowed synthesize"):
        dreamshard.load_teacher(str(path), kind="biggan", part="generator", mode="encode")
    with pytest.raises(ConfigError, match="image_size: got 32x32, allowed 16x16"):
        inspect_teacher([str(path), "--image_size", "32"])
    told = {"instance_features": str(instances(tmp_path))}
    teacher = dreamshard.load_teacher(str(path), kind="biggan", micro_batch=2, **told)
    assert [level.tap for level in teacher.levels] == ["linear"], "of strides 4, 8, 16 and 32"
    assert teacher.synthesize(np.array([0, 1])).levels["linear"].shape == (2, 16, 4, 4)
