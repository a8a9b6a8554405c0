"""Taps inside a latent UNet's transformers, and the ones that SDXL's strides stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.teachers.diffusion.networks.attention import SDXL, attention_taps, sdxl_aliases
from pipeline.teachers.diffusion.networks.unet import unet_aliases, unet_taps
from tests.unit.pipeline.teachers.conftest import make_images, open_teacher
from tests.unit.pipeline.teachers.diffusion.networks.test_latent_families import (
    SIZE,
    close,
    hooked,
    latents_of,
    noise_of,
    save_prompt,
    sd,
    to_map,
)

XL = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}


def test_sdxls_strides_stand_for_better_taps() -> None:
    listed = unet_taps(XL, stride=8) + attention_taps(XL, stride=8, image_size=(1024, 512))
    by_name = {tap.name: tap for tap in listed}
    assert len(by_name) == len(listed)
    blocks = [name for name in by_name if ".block." in name]
    assert len(blocks) == 3 * 10 + 3 * 2, "ten blocks deep, two higher up, three layers each"
    chosen = sdxl_aliases(listed)
    assert chosen == {"s32": "up.0.0.block.5", "s16": "up.1.0.block.0", "s8": "up.1.up"}
    shapes = [by_name[name].shape((1024, 512)) for name in SDXL]
    assert shapes == [(1280, 32, 16), (640, 64, 32), (640, 128, 64)]
    plain = {
        "block_out_channels": [320, 640],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    plain |= {"layers_per_block": 2, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
    listed = unet_taps(plain, stride=8) + attention_taps(plain, stride=8, image_size=(512, 512))
    assert sdxl_aliases(listed) == {} and unet_aliases(listed)["s8"] == "up.1"


def test_they_are_what_hooks_find(tmp_path: Path) -> None:
    module = sd(
        tmp_path, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10, transformer_layers_per_block=(1, 1, 6),
        block_out_channels=(8, 8, 16), attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    prompt = save_prompt(tmp_path, 12, pooled=10)
    images = make_images(2, SIZE)
    x0 = latents_of(tmp_path, images)
    levels = ["s16", "s8", "s4", "up.0.1.q.3"]
    teacher = open_teacher(tmp_path, levels=levels, timesteps=[40])
    taps = [level.tap for level in teacher.levels]
    assert taps == [*SDXL, "up.0.1.q.3"] and "2410.03558" in teacher.description.notes[0]
    x_t = teacher.schedule.add_noise(x0, noise_of(x0), 40)
    added = {
        "text_embeds": prompt["pooled"].expand(2, -1),
        "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1),
    }
    embeds = prompt["prompt_embeds"].expand(2, -1, -1)
    places = {
        "up.0.0.block.5": "up_blocks.0.attentions.0.transformer_blocks.5",
        "up.1.0.block.0": "up_blocks.1.attentions.0.transformer_blocks.0",
        "up.1.up": "up_blocks.1.upsamplers.0",
        "up.0.1.q.3": "up_blocks.0.attentions.1.transformer_blocks.3.attn2.to_q",
    }
    expected = hooked(
        module, places, 0,
        lambda: module(
            x_t, torch.full((2,), 40), encoder_hidden_states=embeds, added_cond_kwargs=added
        ),
    )  # fmt: skip
    found = teacher.encode(images, np.arange(2))
    for name, value in expected.items():
        side = found.levels[f"{name}.t40"].shape[-1]
        close(
            found.levels[f"{name}.t40"],
            to_map(value, side) if value.ndim == 3 else value.half().numpy(),
        )
