"""Latent UNets and transformers: features equal those of hooks on the same diffusers classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from dreamshard import rng
from dreamshard.errors import ConfigError, TeacherError
from tests.unit.pipeline.teachers.conftest import make_images, open_teacher, randomize

ROWS = np.arange(2)
SIZE = 32
STRIDE = 4  # of the tiny VAE


def save_vae(folder: Path, channels: int, **changes: object) -> None:
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoencoderKL(**{**settings, **changes}).save_pretrained(folder / "vae")


def save_prompt(folder: Path, width: int, pooled: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {"prompt_embeds": torch.randn(1, 5, width, generator=generator)}
    if pooled:
        state["pooled"] = torch.randn(1, pooled, generator=generator)
    save_file(state, folder / "empty_prompt.safetensors")
    return state


def sd(folder: Path, **changes: object) -> Any:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": SIZE // STRIDE, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "cross_attention_dim": 12, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    module = UNet2DConditionModel(**{**settings, **changes})
    randomize(module)
    module.save_pretrained(folder / "unet")
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
        prediction_type="v_prediction",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    save_vae(folder, 4)
    return UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True).eval()


def latents_of(folder: Path, images: np.ndarray) -> Tensor:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()  # type: ignore[union-attr]
    config = vae.config
    return (z - (config["shift_factor"] or 0)) * config["scaling_factor"]


def noise_of(x0: Tensor) -> Tensor:
    return torch.from_numpy(rng.normal(0, ROWS, 0, "noise", tuple(x0.shape[1:])))


def hooked(
    module: Any, paths: dict[str, str], item: int, call: Callable[[], Any]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_m: Any, _i: Any, output: Any) -> None:
            found[name] = output[item] if isinstance(output, tuple) else output

        return hook

    for name, path in paths.items():
        module.get_submodule(path).register_forward_hook(keep(name))
    with torch.no_grad():
        call()
    return found


def to_map(tokens: Tensor, side: int) -> np.ndarray:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side).half().numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(
        found.astype(np.float32), expected.astype(np.float32), atol=6e-3, rtol=4e-3
    )


UNET_TAPS = {
    "up.1": "up_blocks.1.attentions.1",
    "up.0": "up_blocks.0.resnets.1",
    "mid": "mid_block",
    "down.0": "down_blocks.0.attentions.0",
}


def test_stable_diffusion(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    module, prompt = sd(tmp_path), save_prompt(tmp_path, 12)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    times = torch.full((2,), 300)
    x_t = DDPMScheduler.from_pretrained(tmp_path / "scheduler").add_noise(x0, noise_of(x0), times)  # type: ignore[arg-type]
    embeds = prompt["prompt_embeds"].expand(2, -1, -1)
    expected = hooked(
        module, UNET_TAPS, 0, lambda: module(x_t, times, encoder_hidden_states=embeds)
    )
    teacher = open_teacher(tmp_path, levels=list(UNET_TAPS), timesteps=[300])
    found = teacher.encode(images, ROWS)
    for name, value in expected.items():
        close(found.levels[f"{name}.t300"], value.half().numpy())
    assert {level.tap: level.stride for level in teacher.levels} == {
        "up.1": 4, "up.0": 8, "mid": 8, "down.0": 4,
    }  # fmt: skip
    assert teacher.description.aliases == {"s4": "up.1", "s8": "up.0"}


def test_sdxl(tmp_path: Path) -> None:
    module = sd(
        tmp_path, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    prompt = save_prompt(tmp_path, 12, pooled=10)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    teacher = open_teacher(tmp_path, levels=list(UNET_TAPS), timesteps=[40])
    x_t = teacher.schedule.add_noise(x0, noise_of(x0), 40)
    added = {
        "text_embeds": prompt["pooled"].expand(2, -1),
        "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1),
    }
    embeds = prompt["prompt_embeds"].expand(2, -1, -1)
    expected = hooked(
        module, UNET_TAPS, 0,
        lambda: module(
            x_t, torch.full((2,), 40), encoder_hidden_states=embeds, added_cond_kwargs=added
        ),
    )  # fmt: skip
    found = teacher.encode(images, ROWS)
    for name, value in expected.items():
        close(found.levels[f"{name}.t40"], value.half().numpy())


def test_dit(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=4, sample_size=8, out_channels=8,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    randomize(module)
    module.save_pretrained(tmp_path / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    save_vae(tmp_path, 4)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    teacher = open_teacher(tmp_path, levels=["d25", "s8", "d100"], timesteps=[200])
    assert [level.tap for level in teacher.levels] == [f"block.{k}.norm" for k in (0, 1, 3)]
    assert teacher.request.warnings() == ()
    x_t = teacher.schedule.add_noise(x0, noise_of(x0), 200)
    module = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    times, null = torch.full((2,), 200), torch.full((2,), 10)
    paths = {
        "block.0.norm": "transformer_blocks.1.norm1", "block.1.norm": "transformer_blocks.2.norm1",
        "block.3.norm": "norm_out",
    }  # fmt: skip
    expected = hooked(module, paths, 0, lambda: module(x_t, times, class_labels=null))
    found = teacher.encode(images, ROWS)
    for name, value in expected.items():
        close(found.levels[f"{name}.t200"], to_map(value, 4))
    drawn = open_teacher(tmp_path, levels=["d50"], timesteps=[200], mode="synthesize", steps=2)
    batch = drawn.synthesize(ROWS)
    assert batch.image is not None and batch.image.shape == (2, SIZE, SIZE, 3)
    assert batch.label is not None and batch.label.max() < 10


def test_sd3(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
        pooled_projection_dim=10, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    randomize(module)
    module.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    save_vae(tmp_path, 4, scaling_factor=1.5305, shift_factor=0.0609)
    prompt = save_prompt(tmp_path, 12, pooled=10)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    x_t = 0.7 * x0 + 0.3 * noise_of(x0)
    module = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    paths = {f"block.{k}": f"transformer_blocks.{k}" for k in range(3)}
    expected = hooked(
        module, paths, 1,
        lambda: module(
            x_t, encoder_hidden_states=prompt["prompt_embeds"].expand(2, -1, -1),
            pooled_projections=prompt["pooled"].expand(2, -1), timestep=torch.full((2,), 300.0),
        ),
    )  # fmt: skip
    teacher = open_teacher(tmp_path, levels=list(paths), timesteps=[300])
    assert "block.0.norm, what the next block sees" in teacher.request.warnings()[0]
    found = teacher.encode(images, ROWS)
    for name, value in expected.items():
        close(found.levels[f"{name}.t300"], to_map(value, 4))
    assert len(teacher.schedule) == 1001
    drawn = open_teacher(tmp_path, levels=["d50"], timesteps=[300], mode="synthesize", steps=2)
    assert drawn.synthesize(ROWS).levels["block.1.norm.t300"].shape == (2, 16, 4, 4)


@pytest.mark.parametrize("guided", [True, False])
def test_flux(tmp_path: Path, guided: bool) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    module = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
        guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    randomize(module)
    module.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    save_vae(tmp_path, 4)
    prompt = save_prompt(tmp_path, 12, pooled=10)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    x_t = 0.5 * x0 + 0.5 * noise_of(x0)
    module = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    paths = {
        "block.0": "transformer_blocks.0", "block.1": "single_transformer_blocks.0",
        "block.2": "single_transformer_blocks.1",
    }  # fmt: skip
    # FluxPipeline's packing: a token is a 2x2 patch, channels first; ids are (0, row, column).
    packed = F.unfold(x_t, 2, stride=2).transpose(1, 2)
    steps = torch.arange(4.0)
    places = torch.cartesian_prod(torch.zeros(1), steps, steps)
    outputs: list[Tensor] = []
    expected = hooked(
        module, paths, 1,
        lambda: outputs.append(module(
            packed, encoder_hidden_states=prompt["prompt_embeds"].expand(2, -1, -1),
            pooled_projections=prompt["pooled"].expand(2, -1), timestep=torch.full((2,), 0.5),
            img_ids=places, txt_ids=torch.zeros(5, 3),
            guidance=torch.full((2,), 3.5) if guided else None,
        ).sample),
    )  # fmt: skip
    teacher = open_teacher(
        tmp_path, levels=list(paths), timesteps=[500], image_size=SIZE, guidance=3.5
    )
    found = teacher.encode(images, ROWS)
    for name, value in expected.items():
        close(found.levels[f"{name}.t500"], to_map(value[:, -16:], 4))
    with torch.inference_mode():
        output = teacher.denoise(x_t, 500)
    unpacked = F.fold(outputs[0].transpose(1, 2), (8, 8), 2, stride=2)
    torch.testing.assert_close(output, unpacked, atol=1e-4, rtol=1e-4)


def test_a_stride_that_a_latent_model_lacks(tmp_path: Path) -> None:
    sd(tmp_path)
    save_prompt(tmp_path, 12)
    with pytest.raises(ConfigError, match=r"levels: got s2, .*strides 4 to 8\. A latent model"):
        open_teacher(tmp_path, levels=["s2"], timesteps=[1])
    with pytest.raises(ConfigError, match="multiples of 8"):
        open_teacher(tmp_path, levels=["s4"], timesteps=[1], image_size=36)


def test_missing_parts_say_what_to_do(tmp_path: Path) -> None:
    sd(tmp_path)
    with pytest.raises(TeacherError, match=r"empty_prompt\.safetensors: not found.*text_encoder"):
        open_teacher(tmp_path)
    save_prompt(tmp_path, 9)
    with pytest.raises(TeacherError, match="prompt_embeds: got .*allowed 12"):
        open_teacher(tmp_path)
    (tmp_path / "vae" / "config.json").rename(tmp_path / "vae" / "other.json")
    with pytest.raises(TeacherError, match="A latent teacher needs its VAE"):
        open_teacher(tmp_path)


def test_the_prompt_and_the_vae_are_in_the_fingerprint(tmp_path: Path) -> None:
    sd(tmp_path)
    state = save_prompt(tmp_path, 12)
    first = open_teacher(tmp_path, timesteps=[5]).fingerprint
    save_file({"prompt_embeds": state["prompt_embeds"] + 1}, tmp_path / "empty_prompt.safetensors")
    second = open_teacher(tmp_path, timesteps=[5]).fingerprint
    assert first["weights"] != second["weights"]
    vae = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(vae).items()}, vae)
    assert open_teacher(tmp_path, timesteps=[5]).fingerprint["weights"] != second["weights"]
