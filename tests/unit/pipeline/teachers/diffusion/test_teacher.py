from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamshard import rng
from dreamshard.errors import ConfigError, DataError, TeacherError
from pipeline.teachers.base import Mode, TeacherConfig
from pipeline.teachers.diffusion import ahead as ahead_module
from pipeline.teachers.diffusion import schedules
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from pipeline.teachers.load import describe_teacher, load_teacher
from tests.unit.pipeline.teachers.conftest import make_images, make_teacher, pins

LEVELS = ["up.2", "up.1", "up.0", "mid", "down.1"]


def hooked(folder: Path, images: np.ndarray, timestep: int, draw: int = 0) -> dict[str, np.ndarray]:
    """Compute the same features with diffusers alone."""
    from diffusers import DDPMScheduler, UNet2DModel

    module = UNet2DModel.from_pretrained(folder, use_safetensors=True).eval()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    found: dict[str, torch.Tensor] = {}
    for name, path in (
        ("up.2", "up_blocks.2.resnets.1"),
        ("up.1", "up_blocks.1.attentions.1"),
        ("up.0", "up_blocks.0.resnets.1"),
        ("mid", "mid_block"),
        ("down.1", "down_blocks.1.attentions.0"),
    ):
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, name=name: found.__setitem__(name, output)
        )
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    eps = torch.from_numpy(rng.normal(0, range(len(images)), draw, "noise", tuple(x0.shape[1:])))
    times = torch.full((len(images),), timestep)
    with torch.no_grad():
        module(scheduler.add_noise(x0, eps, times), times)
    return {name: value.half().numpy() for name, value in found.items()}


def test_features_are_those_of_hooks_on_diffusers(unet_folder: Path) -> None:
    images = make_images()
    teacher = make_teacher(unet_folder, levels=LEVELS, timesteps=[100, 7], draws=2)
    batch = teacher.encode(images, np.arange(4))
    assert len(batch.levels) == len(LEVELS) * 2 * 2
    for timestep, draw in ((100, 0), (7, 1)):
        expected = hooked(unet_folder, images, timestep, draw)
        for name in LEVELS:
            full = f"{name}.t{timestep}" + (f".d{draw}" if draw else "")
            assert batch.levels[full].dtype == np.float16
            np.testing.assert_allclose(batch.levels[full], expected[name], atol=4e-3, rtol=2e-3)


def test_levels_say_their_shapes_before_loading(unet_folder: Path) -> None:
    config = TeacherConfig(path=str(unet_folder), levels=["s1", "s2", "s4"], timesteps=[100])
    spec = describe_teacher(config, mode="encode")
    found = {level.name: (level.shape, level.stride) for level in spec.levels}
    assert found == {
        "up.2.t100": ((8, 16, 16), 1),
        "up.1.t100": ((16, 8, 8), 2),
        "up.0.t100": ((16, 4, 4), 4),
    }
    teacher = load_teacher(config, mode="encode", seed=0, pins=pins())
    batch = teacher.encode(make_images(), np.arange(4))
    for level in teacher.levels:
        assert batch.levels[level.name].shape == (4, *level.shape)


def test_every_tap_has_the_shape_it_says(unet_folder: Path) -> None:
    spec = DiffusionTeacher.describe
    config = TeacherConfig(path=str(unet_folder), levels=["mid"], timesteps=[1])
    names = [
        tap.name
        for tap in make_teacher(unet_folder, levels=["mid"], timesteps=[1]).description.taps
    ]
    assert spec(config, mode="encode", image_size=None).image_size == (16, 16)
    teacher = make_teacher(unet_folder, levels=names, timesteps=[1])
    batch = teacher.encode(make_images(), np.arange(4))
    for level in teacher.levels:
        assert batch.levels[level.name].shape == (4, *level.shape), level.name


def test_noise_depends_on_the_index_not_on_the_place(unet_folder: Path) -> None:
    teacher = make_teacher(unet_folder, levels=["up.1"], timesteps=[100])
    images = make_images()
    order = np.array([2, 0, 3, 1])
    straight = teacher.encode(images, np.arange(4)).levels["up.1.t100"]
    shuffled = teacher.encode(images[order], order).levels["up.1.t100"]
    np.testing.assert_allclose(shuffled, straight[order], atol=2e-3)
    again = teacher.encode(images, np.arange(4)).levels["up.1.t100"]
    assert np.array_equal(straight, again)
    other = make_teacher(unet_folder, levels=["up.1"], timesteps=[100], seed=1)
    assert not np.array_equal(straight, other.encode(images, np.arange(4)).levels["up.1.t100"])


@pytest.mark.parametrize(
    ("mode", "settings"),
    [("encode", {}), ("encode", {"mean_draws": 2}), ("synthesize", {"steps": 3})],
)
def test_noise_drawn_ahead_is_the_noise_of_the_sample(
    unet_folder: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, settings: dict[str, int]
) -> None:
    told = {"levels": ["up.1"], "timesteps": [100], "draws": 2, "mode": mode, **settings}
    teacher = make_teacher(unet_folder, **told)  # type: ignore[arg-type]

    def run() -> dict[str, np.ndarray]:
        if mode == "encode":
            return teacher.encode(make_images(), np.arange(4)).levels
        return teacher.synthesize(np.arange(4)).levels

    plain = run()
    kept = teacher.foresee(np.arange(4))
    with monkeypatch.context() as patched:
        patched.setattr(rng, "normal", None)  # nothing is drawn while the network waits
        ahead = run()
    assert all(np.array_equal(plain[name], ahead[name]) for name in plain)
    del kept
    assert not teacher._noise_ahead._ready, "a micro-batch that is given up leaves nothing behind"


def test_too_much_noise_is_not_drawn_ahead(
    unet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(unet_folder, levels=["up.1"], timesteps=[100])
    monkeypatch.setattr(ahead_module, "MOST_BYTES", 4 * 3 * 16 * 16 * 4 - 1)
    assert teacher.foresee(np.arange(4)) == []
    assert teacher.foresee(np.arange(3)) != []


def test_only_what_the_highest_level_needs_is_run(unet_folder: Path) -> None:
    teacher = make_teacher(unet_folder, levels=["up.0", "mid"], timesteps=[10])
    ran: list[str] = []
    for name, module in teacher.network.module.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: ran.append(name))
    teacher.encode(make_images(), np.arange(4))
    assert "up_blocks.0.resnets.1" in ran or "up_blocks.0.resnets.0" in ran
    assert not any(name.startswith(("up_blocks.1", "up_blocks.2", "conv_out")) for name in ran)


def test_pooling_is_the_mean_over_space(unet_folder: Path) -> None:
    images = make_images()
    whole = make_teacher(unet_folder, levels=["up.1"], timesteps=[100])
    pooled = make_teacher(unet_folder, levels=["up.1"], timesteps=[100], pool="gap")
    maps = whole.encode(images, np.arange(4)).levels["up.1.t100"].astype(np.float32)
    gap = pooled.encode(images, np.arange(4)).levels["up.1.t100.gap"]
    assert gap.shape == (4, 16)
    np.testing.assert_allclose(gap, maps.mean((2, 3)), atol=1e-3)


def test_mean_over_draws_is_one_level(unet_folder: Path) -> None:
    images = make_images()
    mean = make_teacher(unet_folder, levels=["up.1"], timesteps=[100], mean_draws=3)
    each = make_teacher(unet_folder, levels=["up.1"], timesteps=[100], draws=3)
    assert [level.name for level in mean.levels] == ["up.1.t100.m3"]
    found = mean.encode(images, np.arange(4)).levels["up.1.t100.m3"]
    parts = np.stack(list(each.encode(images, np.arange(4)).levels.values())).astype(np.float32)
    np.testing.assert_allclose(found, parts.mean(0), atol=2e-3, rtol=2e-3)


def test_synthesized_records_equal_encoded_ones_of_the_same_picture(unet_folder: Path) -> None:
    teacher = make_teacher(
        unet_folder, levels=["up.1"], timesteps=[100], mode="synthesize", steps=3, eta=0.5
    )
    batch = teacher.synthesize(np.arange(4))
    assert batch.image is not None and batch.image.shape == (4, 16, 16, 3)
    assert batch.image.dtype == np.uint8 and batch.label is None
    encoded = teacher.encode(batch.image, np.arange(4))
    assert np.array_equal(batch.levels["up.1.t100"], encoded.levels["up.1.t100"])
    again = teacher.synthesize(np.arange(4))
    assert np.array_equal(batch.image, again.image)
    assert not np.array_equal(batch.image[0], batch.image[1])


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_features_can_be_recorded_on_the_way(unet_folder: Path, sampler: str) -> None:
    teacher = make_teacher(
        unet_folder, levels=["up.1"], timesteps=[250, 500], mode="synthesize",
        steps=4, record="steps", sampler=sampler,
    )  # fmt: skip
    batch = teacher.synthesize(np.arange(4))
    assert sorted(batch.levels) == ["up.1.t250", "up.1.t500"]
    assert not np.array_equal(batch.levels["up.1.t250"], batch.levels["up.1.t500"])
    with pytest.raises(ConfigError, match="steps of the sampler: 0, 250, 500, 750"):
        make_teacher(
            unet_folder,
            levels=["up.1"],
            timesteps=[100],
            mode="synthesize",
            steps=4,
            record="steps",
        )


def test_inversion_has_no_noise_and_shares_its_passes(unet_folder: Path) -> None:
    images = make_images()
    settings = {"encoding": "inversion", "inversion_steps": 10}
    one = make_teacher(unet_folder, levels=["up.1"], timesteps=[200], **settings)
    two = make_teacher(unet_folder, levels=["up.1"], timesteps=[200], seed=5, **settings)
    first = one.encode(images, np.arange(4)).levels["up.1.t200"]
    second = two.encode(images, np.arange(4) + 9).levels["up.1.t200"]
    assert np.array_equal(first, second)
    assert one.request.inversion_timesteps() == [0, 100, 200]
    with pytest.raises(ConfigError, match="no noise to draw"):
        make_teacher(unet_folder, levels=["up.1"], timesteps=[200], draws=2, **settings)


def test_what_changes_bytes_is_in_the_recipe(unet_folder: Path, tmp_path: Path) -> None:
    config = TeacherConfig(path=str(unet_folder), levels=["up.1"], timesteps=[100])
    spec = describe_teacher(config, mode="encode")
    assert spec.mode_settings == {
        "encoding": "stochastic", "mean_draws": 1, "memory_format": "channels_last",
    }  # fmt: skip
    assert set(describe_teacher(config, mode="synthesize").mode_settings) == {
        "encoding", "mean_draws", "memory_format", "sampler", "steps", "eta", "record",
    }  # fmt: skip
    moved = tmp_path / "moved"
    shutil.copytree(unet_folder, moved)
    config.path = str(moved)
    assert describe_teacher(config, mode="encode").fingerprint == spec.fingerprint
    other = json.loads((moved / "scheduler" / "scheduler_config.json").read_text())
    other["beta_schedule"] = "linear"
    (moved / "scheduler" / "scheduler_config.json").write_text(json.dumps(other))
    changed = describe_teacher(config, mode="encode").fingerprint
    assert changed["weights"] == spec.fingerprint["weights"]
    assert changed["architecture"] != spec.fingerprint["architecture"]


def test_every_mistake_is_reported_at_once(unet_folder: Path) -> None:
    config = TeacherConfig(
        path=str(unet_folder), levels=["s32", "up.1"], timesteps=[1200], settings={"encode": "x"}
    )
    with pytest.raises(ConfigError) as caught:
        describe_teacher(config, mode="encode")
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "teacher.levels: got s32, allowed" in text and "up.2" in text
    assert "teacher.timesteps: got 1200, allowed 0..999" in text
    assert "teacher.settings.encode" in text and "Did you mean encoding?" in text


def test_wrong_images_and_sizes_are_named(unet_folder: Path) -> None:
    teacher = make_teacher(unet_folder, levels=["up.1"], timesteps=[1])
    with pytest.raises(DataError, match=r"\(16, 16, 3\) of uint8"):
        teacher.encode(make_images(size=8), np.arange(4))
    with pytest.raises(DataError, match="uint8"):
        teacher.encode(make_images().astype(np.float32), np.arange(4))
    config = TeacherConfig(path=str(unet_folder), levels=["up.1"], timesteps=[1])
    with pytest.raises(ConfigError, match="multiples of 4"):
        describe_teacher(config, mode="encode", image_size=(18, 16))


def test_other_sizes_run_where_the_strides_divide_them(unet_folder: Path) -> None:
    config = TeacherConfig(path=str(unet_folder), levels=["up.1"], timesteps=[1])
    teacher = DiffusionTeacher(config, mode="encode", image_size=(8, 24), seed=0, pins=pins())
    images = np.zeros((2, 8, 24, 3), np.uint8)
    assert teacher.encode(images, np.arange(2)).levels["up.1.t1"].shape == (2, 16, 4, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "VQModel, allowed UNet2DModel"),
        ({"block_out_channels": [8, 16]}, "2, 3 and 3 entries"),
        ({"block_out_channels": None}, "block_out_channels: got null, allowed a list"),
        ({"norm_num_groups": 3}, "num_channels"),
        ({"layers_per_block": 2}, "keys missing"),
        ({"time_embedding_type": "fourier"}, "got 'fourier', allowed positional"),
        ({"some_key": 1}, "some_key: got 1, allowed the keys of UNet2DModel"),
    ],
)
def test_configs_that_contradict_the_weights(
    unet_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(unet_folder, folder)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TeacherError, match=message) as caught:
        make_teacher(folder, levels=["up.1"], timesteps=[1])
    assert "\n" not in str(caught.value)


def test_paths_that_hold_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an existing path"):
        make_teacher(tmp_path / "nowhere", levels=["up.1"], timesteps=[1])
    with pytest.raises(TeacherError, match=r"no config\.json"):
        make_teacher(tmp_path, levels=["up.1"], timesteps=[1])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TeacherError, match="not readable as JSON"):
        make_teacher(tmp_path, levels=["up.1"], timesteps=[1])


def test_class_conditional_networks_ask_for_a_label(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    from tests.unit.pipeline.teachers.conftest import UNET, randomize

    module = UNet2DModel(**UNET, num_class_embeds=10)  # type: ignore[arg-type]
    randomize(module)
    module.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"settings\.class_label: got nothing, allowed 0\.\.9"):
        make_teacher(tmp_path, levels=["up.1"], timesteps=[1])
    images, rows = make_images(), np.arange(4)
    found = [
        make_teacher(tmp_path, levels=["up.1"], timesteps=[1], class_label=label).encode(
            images, rows
        )
        for label in (3, 4, -1)
    ]
    maps = [batch.levels["up.1.t1"] for batch in found]
    assert not np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])
    drawn = make_teacher(tmp_path, levels=["up.1"], timesteps=[1], mode="synthesize", steps=2)
    batch = drawn.synthesize(np.arange(8))
    assert batch.label is not None and len(set(batch.label.tolist())) > 2
    assert batch.label.min() >= 0 and batch.label.max() <= 9


def test_overflow_is_an_error_that_names_the_level(unet_folder: Path) -> None:
    teacher = make_teacher(unet_folder, levels=["up.2"], timesteps=[1])
    with torch.no_grad():
        teacher.network.module.get_parameter("up_blocks.2.resnets.1.conv2.bias").fill_(1e6)
    with pytest.raises(DataError, match=r"up\.2\.t1: .*65504"):
        teacher.encode(make_images(), np.arange(4))


def test_flow_and_edm_schedules_are_told_their_own_time(unet_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edm"
    shutil.copytree(unet_folder, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "EDMEulerScheduler", "num_train_timesteps": 18}'
    )
    teacher = make_teacher(folder, levels=["up.1"], timesteps=[4])
    images = make_images()
    found = teacher.encode(images, np.arange(4)).levels["up.1.t4"]
    schedule = schedules.edm(18)
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    eps = torch.from_numpy(rng.normal(0, range(4), 0, "noise", (3, 16, 16)))
    sigma = float(schedule.noise[4])
    module, seen = teacher.network.module, []
    module.get_submodule("up_blocks.1.attentions.1").register_forward_hook(
        lambda _m, _i, output: seen.append(output)
    )
    teacher._recorder.close()
    with torch.no_grad():
        module((x0 + sigma * eps) / (sigma**2 + 0.25) ** 0.5, torch.tensor(np.log(sigma) / 4))
    np.testing.assert_allclose(found, seen[0].half().numpy(), atol=4e-3, rtol=2e-3)


def test_describing_needs_no_torch(unet_folder: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pipeline.teachers.load import *; "
        f"c = TeacherConfig(path={str(unet_folder)!r}, levels=['s4'], timesteps=[5]); "
        "describe_teacher(c, mode='encode'); "
        "print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
