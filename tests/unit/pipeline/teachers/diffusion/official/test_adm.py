from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.diffusion import sampling
from pipeline.teachers.diffusion.official.adm_flags import RELEASED, SETTINGS, complete
from pipeline.teachers.diffusion.official.adm_layout import AdmLayout
from pipeline.teachers.diffusion.official.adm_names import block_taps, default_taps
from tests.unit.pipeline.teachers.conftest import open_teacher
from tests.unit.pipeline.teachers.diffusion.official.adm_reference import (
    Reference,
    Structure,
    posterior,
)

PARITY = Path(__file__).resolve().parents[6].parent / "shared/parity/guided-diffusion-adm64"
PARITY_FLAGS: dict[str, Any] = {
    "image_size": 64, "num_channels": 32, "num_res_blocks": 1, "num_head_channels": 16,
    "attention_resolutions": "32,16,8", "channel_mult": "1,1,2,3", "learn_sigma": True,
    "noise_schedule": "linear", "resblock_updown": True, "use_scale_shift_norm": True,
    "dropout": 0.1,
}  # fmt: skip
UNTOLD: dict[str, Any] = {"use_new_attention_order": False, "noise_schedule": "linear"}
"""What weights do not tell and nothing says a default for, where few other flags are given."""
EXACT = 5e-5

STRUCTURES = {
    "head channels, as 256": Structure(head_channels=16, mult=(1, 1, 2), attention=(2, 4), depth=2),
    "new order, as 64": Structure(head_channels=32, new_order=True, classes=7),
    "fixed heads, as 128": Structure(num_heads=4, mult=(1, 2, 3), attention=(2, 4), classes=5),
    "half width, as 512": Structure(channels=64, mult=(0.5, 1), head_channels=16),
    "conv resampling": Structure(updown=False, scale_shift=False, learn_sigma=False, num_heads=2),
    "conv resampling, scale-shift": Structure(updown=False, attention=(1, 2)),
    "no attention but the middle": Structure(attention=(), depth=2, num_heads=1),
    "other heads on the way up": Structure(num_heads=2, num_heads_upsample=8),
    "other heads on the way up, new order": Structure(
        num_heads=2, num_heads_upsample=8, new_order=True
    ),
}
DEEP = {"attention": (8, 16, 32), "depth": 2}
RELEASED_NARROWED = {
    "64 cond": Structure(
        mult=(1, 2, 3, 4), attention=(2, 4, 8), depth=3, head_channels=32, new_order=True, classes=9
    ),
    "128 cond": Structure(
        mult=(1, 1, 2, 3, 4), attention=(4, 8, 16), depth=2, num_heads=4, classes=9
    ),
    "256 uncond, LSUN": Structure(mult=(1, 1, 2, 2, 4, 4), head_channels=32, **DEEP),
    "256 cond": Structure(mult=(1, 1, 2, 2, 4, 4), head_channels=32, classes=9, **DEEP),
    "512 cond": Structure(
        channels=64, mult=(0.5, 1, 1, 2, 2, 4, 4), attention=(16, 32, 64), depth=2,
        head_channels=64, classes=9,
    ),
}  # fmt: skip
"""The published networks' flags with a base width of 32 (64 where it is halved)."""


def save(reference: Reference, folder: Path) -> Path:
    torch.save(reference.state, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("name", [*STRUCTURES, *RELEASED_NARROWED])
def test_every_block_equals_an_independent_forward(name: str, tmp_path: Path) -> None:
    structure = {**STRUCTURES, **RELEASED_NARROWED}[name]
    reference = Reference(structure)
    size = max(32, 2 ** (len(structure.mult) - 1))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 3]) if structure.classes else None
    expected = reference(x, torch.full((2,), 40), labels)
    flags: dict[str, Any] = structure.flags(size)
    taps = list(reference.blocks)
    teacher = open_teacher(save(reference, tmp_path), levels=taps, timesteps=[40], **flags)
    with torch.inference_mode():
        found = teacher.activations(x, 40, labels)
        output = teacher.denoise(x, 40, labels)
    for tap in taps:
        torch.testing.assert_close(found[tap], reference.blocks[tap], atol=EXACT, rtol=0, msg=tap)
    torch.testing.assert_close(output, expected, atol=EXACT, rtol=0)


def test_flags_in_the_weights_may_be_left_out_and_are_checked(tmp_path: Path) -> None:
    path = save(Reference(Structure(head_channels=16)), tmp_path)
    needed: dict[str, Any] = {"image_size": 16, "num_head_channels": 16, **UNTOLD}
    assert open_teacher(path, **needed).levels[0].tap == "output_blocks.3"
    wrong = {
        "num_channels": 64, "num_res_blocks": 3, "channel_mult": "1,2,3", "learn_sigma": False,
        "class_cond": True, "use_scale_shift_norm": False, "resblock_updown": False,
        "attention_resolutions": "16",
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"settings\.{name}: .*the weights say so"):
            open_teacher(path, **{**needed, name: value})


def test_what_weights_cannot_tell_is_asked_for_by_name(tmp_path: Path) -> None:
    path = save(Reference(Structure()), tmp_path)
    with pytest.raises(ConfigError, match=r"settings\.image_size: got nothing"):
        open_teacher(path, num_heads=4)
    with pytest.raises(ConfigError, match=r"num_heads or settings\.num_head_channels: got nothing"):
        open_teacher(path, image_size=16)
    with pytest.raises(ConfigError, match="a divisor of 64"):
        open_teacher(path, image_size=16, num_heads=5)
    with pytest.raises(ConfigError, match=r"linear \| cosine"):
        open_teacher(path, image_size=16, num_heads=4, noise_schedule="quadratic")
    with pytest.raises(ConfigError, match="Did you mean num_heads"):
        open_teacher(path, image_size=16, num_head=4)
    with pytest.raises(ConfigError, match="multiples of 2"):
        open_teacher(path, image_size=17, num_heads=4, dropout=0.1)


def test_flags_decide_the_fingerprint(tmp_path: Path) -> None:
    path = save(Reference(Structure()), tmp_path)
    base: dict[str, Any] = {"image_size": 16, "num_heads": 4, "use_scale_shift_norm": True}
    first = open_teacher(path, **base).fingerprint
    assert open_teacher(path, **base, dropout=0.3, use_fp16=True).fingerprint == first
    for flag in ({"num_heads": 2}, {"use_new_attention_order": True}, {"noise_schedule": "cosine"}):
        assert open_teacher(path, **{**base, **flag}).fingerprint != first


def test_schedule_flags(tmp_path: Path) -> None:
    path = save(Reference(Structure()), tmp_path)
    base: dict[str, Any] = {"image_size": 16, "num_heads": 4, "use_scale_shift_norm": True}
    cosine = open_teacher(path, **base, noise_schedule="cosine").schedule
    assert cosine.signal[500] ** 2 == pytest.approx(0.4923, abs=1e-3)
    short = open_teacher(path, **base, diffusion_steps=100, rescale_timesteps=True).schedule
    assert len(short) == 100 and short.time[50] == 500
    assert open_teacher(path, **base, predict_xstart=True).schedule.prediction == "sample"


def layout_of(**changes: Any) -> AdmLayout:
    values: dict[str, Any] = {
        "model_channels": 256, "widths": (256, 256, 512, 512, 1024, 1024), "num_res_blocks": 2,
        "attention": (False, False, False, True, True, True), "learn_sigma": True, "classes": 0,
        "scale_shift": True, "resblock_updown": True,
    }  # fmt: skip
    return AdmLayout(**{**values, **changes})


def test_default_levels_of_the_256_network_are_blocks_1_4_7_10() -> None:
    found = {tap.stride: (tap.name, tap.channels) for tap in default_taps(layout_of())}
    assert found == {
        32: ("output_blocks.1", 1024), 16: ("output_blocks.4", 1024), 8: ("output_blocks.7", 512),
        4: ("output_blocks.10", 512), 2: ("output_blocks.13", 256), 1: ("output_blocks.17", 256),
    }  # fmt: skip


def test_published_block_sizes() -> None:
    taps = {tap.name: (tap.channels, 256 // tap.stride) for tap in block_taps(layout_of())}
    for name, expected in {
        "output_blocks.0": (1024, 8), "output_blocks.2": (1024, 16), "output_blocks.5": (1024, 32),
        "output_blocks.8": (512, 64), "output_blocks.11": (512, 128),
        "output_blocks.14": (256, 256),
        "input_blocks.3": (256, 128), "input_blocks.9": (512, 32), "middle_block": (1024, 8),
        "up.0": (1024, 8), "up.2": (512, 32),
    }.items():  # fmt: skip
        assert taps[name] == expected, name


def test_released_networks_need_no_flags() -> None:
    flags = complete(dict(SETTINGS), layout_of())[0]
    assert flags["image_size"] == 256 and flags["num_head_channels"] == 64
    small = layout_of(
        model_channels=192, widths=(192, 384, 576, 768), num_res_blocks=3, classes=1000,
        attention=(False, True, True, True),
    )  # fmt: skip
    flags = complete(dict(SETTINGS), small)[0]
    assert flags["use_new_attention_order"] is True and flags["noise_schedule"] == "cosine"
    middle = layout_of(
        widths=(256, 256, 512, 768, 1024), attention=(False, False, True, True, True), classes=1000
    )
    flags = complete(dict(SETTINGS), middle)[0]
    assert flags["num_heads"] == 4 and flags["num_head_channels"] is None
    assert len(RELEASED) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alien.weight": torch.zeros(1)}, "1 keys surplus: alien.weight"),
        ({"out.2.bias": None}, "1 keys missing: conv_out.bias"),
        ({"out.2.bias": torch.full((6,), float("nan"))}, "not finite"),
        ({"input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)}, "4 input and 6 output channels"),
        ({"time_embed.0.weight": None}, "not a guided-diffusion network"),
    ],
)
def test_bad_checkpoints_are_one_line(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    reference = Reference(Structure())
    for name, value in change.items():
        reference.state.pop(name, None)
        if value is not None:
            reference.state[name] = value
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(save(reference, tmp_path), image_size=16, num_heads=4, dropout=0.1)
    assert "\n" not in str(caught.value)


def test_safetensors_checkpoints_work_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    reference = Reference(Structure())
    save_file(reference.state, tmp_path / "model.safetensors")
    teacher = open_teacher(tmp_path / "model.safetensors", image_size=16, num_heads=4, dropout=0.1)
    batch = teacher.encode(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2))
    assert batch.levels["output_blocks.3.t150"].shape == (2, 32, 16, 16)


def test_half_precision_is_close(tmp_path: Path) -> None:
    path = save(Reference(Structure(head_channels=16)), tmp_path)
    flags: dict[str, Any] = {"image_size": 16, "num_head_channels": 16, **UNTOLD}
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    maps = [
        open_teacher(path, **flags, compute_dtype=kind).encode(images, np.arange(2)).levels
        for kind in ("float32", "bfloat16")
    ]
    for name, value in maps[0].items():
        difference = np.abs(value.astype(np.float32) - maps[1][name].astype(np.float32))
        assert difference.mean() < 0.03 * value.astype(np.float32).std()


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity fixture is not beside this checkout")
def test_parity_with_the_official_code() -> None:
    expected = dict(np.load(PARITY / "expected.npz"))
    blocks = [name.partition("/")[2] for name in expected if name.startswith("t250/")]
    blocks = [name for name in blocks if "block" in name]
    teacher = open_teacher(PARITY / "model.pt", levels=blocks, timesteps=[250], **PARITY_FLAGS)
    schedule = teacher.schedule
    x0, noise = torch.from_numpy(expected["x0"]), torch.from_numpy(expected["noise"])
    found: dict[str, Any] = {"alphas_cumprod": schedule.signal**2}
    level = [schedule.level(t) for t in range(len(schedule))]
    with torch.inference_mode():
        for t in (50, 250, 999):
            x_t = schedule.add_noise(x0, noise, t)
            output = teacher.denoise(x_t, t)
            start = schedule.predict(x_t, output[:, :3], level[t])[0].clip(-1, 1)
            mean, variance = posterior(
                expected["betas"], t, x_t=x_t, x0=start, variance=output[:, 3:]
            )
            step = sampling.ddim_step(schedule, x_t, output[:, :3], now=level[t], then=level[t - 1])
            found |= {
                f"t{t}/x_t": x_t, f"t{t}/model_out": output, f"t{t}/pred_xstart": start,
                f"t{t}/mean": mean, f"t{t}/log_variance": variance, f"t{t}/ddim_prev": step,
            }  # fmt: skip
        maps = teacher.activations(schedule.add_noise(x0, noise, 250), 250)
        found |= {f"t250/{name}": value for name, value in maps.items()}
        for respacing in ("ddim25", "50"):
            kept = expected.pop(f"respace_{respacing}/timestep_map")
            found[f"respace_{respacing}/alphas_cumprod"] = schedule.signal[kept] ** 2
        assert sampling.leading_timesteps(1000, 25) == list(range(0, 1000, 40))
        grid = sampling.leading_timesteps(1000, 25)[:6]
        found["respace_ddim25/inverted_5_steps"] = sampling.invert(
            schedule, lambda x, t: teacher.denoise(x, t)[:, :3], x0, grid, lambda _x, _t: None
        )
    assert set(found) == set(expected) - {"x0", "noise", "betas"}
    worst = {name: float(np.abs(np.asarray(v) - expected[name]).max()) for name, v in found.items()}
    bounds = dict.fromkeys(worst, EXACT)
    if worst["t999/model_out"] > 0:
        # x_0 = (x_t - noise eps) / signal: at the last timestep it is eps's last bits times 157.
        # They are those of the official run only on a processor that takes the same kernels.
        assert worst["t999/model_out"] < 2e-5, "of values up to 3.6"
        bounds["t999/pred_xstart"] = 2e-5 * level[999][1] / level[999][0]
    assert {name: gap for name, gap in worst.items() if gap > bounds[name]} == {}
