"""Every key of every config class of diffusers that is accepted: read, idle, or refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from dreamshard.errors import TeacherError
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.families import FAMILIES
from pipeline.teachers.diffusion.networks import accepted, conditioned

REFUSED: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "class_embed_type": "timestep", "time_embedding_type": "fourier", "in_channels": 4,
        "out_channels": 4, "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "tanh",
        "resnet_time_scale_shift": "spatial", "norm_num_groups": 0, "attention_head_dim": 0,
        "layers_per_block": 10**8, "sample_size": 2**40, "block_out_channels": [2**30, 2**30],
        "norm_eps": float("nan"), "down_block_types": ["KDownBlock2D"], "center_input_sample": 1,
    },
    "UNet2DConditionModel": {
        "class_embed_type": "projection", "addition_embed_type": "image_hint",
        "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 12, "time_cond_proj_dim": 256,
        "num_class_embeds": 7, "attention_type": "gated", "dual_cross_attention": True,
        "class_embeddings_concat": True, "cross_attention_dim": [1, 2], "num_attention_heads": 8,
        "time_embedding_type": "fourier", "layers_per_block": -5,
    },
    "DiTTransformer2DModel": {"norm_type": "ada_norm", "num_layers": 10**9, "patch_size": 0},
    "SD3Transformer2DModel": {"qk_norm": "layer_norm", "num_layers": 0},
    "FluxTransformer2DModel": {"patch_size": 2, "axes_dims_rope": [16, 56]},
    "AutoencoderKL": {
        "latents_mean": [0.0], "latents_std": [1.0], "in_channels": 4, "scaling_factor": 0.0,
        "down_block_types": ["KDownBlock2D"],
    },
}  # fmt: skip


def keys_of(cls: Any) -> list[str]:
    found = inspect.signature(cls.__init__).parameters
    return [name for name in found if name not in ("self", "args", "kwargs")]


REFUSED["SelfConditionedUNet2DModel"] = REFUSED["UNet2DModel"]


def test_every_family_has_a_table() -> None:
    assert set(FAMILIES) | {"AutoencoderKL"} == set(accepted.TABLES) == set(REFUSED)


@pytest.mark.parametrize("kind", accepted.TABLES)
def test_every_key_of_a_network_has_a_rule_and_defaults_are_read_or_refused(kind: str) -> None:
    cls = getattr(diffusers, kind, None) or getattr(conditioned, kind)
    table = accepted.TABLES[kind]
    assert set(keys_of(cls)) <= set(table), "a key that nobody reads"
    for name, item in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or item.default is inspect.Parameter.empty:
            continue
        config = {name: json.loads(json.dumps(item.default))}
        accepted.check_network(config, kind, where="config.json")
    with pytest.raises(TeacherError, match=r"config\.json: a_new_key: got 1, allowed the keys of"):
        accepted.check_network({"a_new_key": 1, "_private": 2}, kind, where="config.json")
    for name, value in REFUSED[kind].items():
        with pytest.raises(TeacherError, match=rf"config\.json: {name}: got .*allowed"):
            accepted.check_network({name: value}, kind, where="config.json")


SCHEDULERS = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and "Flax" not in name
)


@pytest.mark.parametrize("kind", schedulers.KNOWN)
def test_every_key_of_a_scheduler_has_a_rule(kind: str) -> None:
    cls = getattr(diffusers, kind)
    keys = keys_of(cls)
    if not keys:
        pytest.skip(f"{kind} needs a package that is not installed")
    assert set(keys) <= set(schedulers.keys_of(kind)), "a key that nobody reads"
    config = json.loads(cls().to_json_string())
    schedule = schedulers.from_config(config)
    total = len(schedule) - (schedule.prediction == "flow_prediction")
    assert total == config["num_train_timesteps"]
    bare = schedulers.from_config({"_class_name": kind})
    assert (bare.noise == schedule.noise).all(), "the class's own defaults"


@pytest.mark.parametrize("kind", [name for name in SCHEDULERS if name not in schedulers.KNOWN])
def test_schedulers_without_a_rule_are_refused(kind: str) -> None:
    with pytest.raises(TeacherError, match=rf"x\.json: _class_name: got {kind}, allowed DDPM"):
        schedulers.from_config({"_class_name": kind}, where="x.json")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("EulerDiscreteScheduler", "sigma_max", 700.0),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("EDMEulerScheduler", "prediction_type", "v_prediction"),
        ("EDMEulerScheduler", "sigma_schedule", "exponential"),
        ("FlowMatchEulerDiscreteScheduler", "invert_sigmas", True),
        ("DDPMScheduler", "beta_schedule", "laplace"),
        ("DDPMScheduler", "num_train_timesteps", 10**12),
        ("DDPMScheduler", "num_train_timesteps", -1),
        ("DDPMScheduler", "trained_betas", ["x"]),
        ("DDPMScheduler", "trained_betas", [float("nan")]),
        ("DDPMScheduler", "snr_shift_scale", 3.0),
        ("DDPMScheduler", "prediction_type", "trigflow"),
    ],
)
def test_another_process_under_a_known_name_is_refused(kind: str, key: str, value: Any) -> None:
    with pytest.raises(TeacherError, match=rf"x\.json: {key}: got .*allowed"):
        schedulers.from_config({"_class_name": kind, key: value}, where="x.json")


def test_configs_before_prediction_type_are_read() -> None:
    assert schedulers.from_config({"predict_epsilon": False}).prediction == "sample"
    assert schedulers.from_config({"predict_epsilon": True}).prediction == "epsilon"


def test_a_config_larger_than_its_weights_is_refused_before_it_is_built() -> None:
    config = {"block_out_channels": [60000, 60000], "layers_per_block": 64}
    with pytest.raises(TeacherError, match=r"describes [\d,]+ numbers or more, the weights hold 9"):
        accepted.check_size(config, 9, where="w")
    deep = {"num_layers": 512, "num_attention_heads": 64, "attention_head_dim": 128}
    with pytest.raises(TeacherError, match="the weights hold 1,000"):
        accepted.check_size(deep, 1000, where="w")


def test_where_is_the_file(tmp_path: Path) -> None:
    from tests.unit.pipeline.teachers.conftest import UNET, open_teacher

    diffusers.UNet2DModel(**UNET).save_pretrained(tmp_path)  # type: ignore[arg-type]
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}))
    with pytest.raises(TeacherError, match=f"{path}: beta_schedule: got 'laplace'"):
        open_teacher(tmp_path)
