"""What a config.json of each diffusers class may say: key by key, read, idle, or refused.

Keys that diffusers reads as it builds a network are passed on to it once their values are among
those that our forward pass computes and that can be built at all; the rest is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamshard.errors import TeacherError
from pipeline.teachers.diffusion import keys
from pipeline.teachers.diffusion.keys import Rule

MAX_CHANNELS, MAX_LAYERS, MAX_SIDE = 1 << 16, 512, 1 << 14
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

_AVERAGES = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
             "use_ema_warmup")  # fmt: skip
"""What diffusers keeps of averaging weights: says how they were trained."""
_channels = keys.whole(1, MAX_CHANNELS)
_layers = keys.whole(1, 64)
_positive = keys.number(0, 1)
_side = keys.whole(1, MAX_SIDE)
_size = keys.either(keys.words(None), _side, keys.several(_side, least=2, most=2))
_nothing = keys.words(None)
_per_level = keys.either(_layers, keys.several(_layers))
_heads = keys.either(keys.words(None), _channels, keys.several(_channels))
_transformers = keys.either(_layers, keys.several(keys.either(_layers, keys.several(_layers))))

COMMON: dict[str, Rule] = {**dict.fromkeys(_AVERAGES, keys.idle), "dropout": keys.idle}
_UNET: dict[str, Rule] = {
    **COMMON,
    "sample_size": _size,
    "center_input_sample": keys.flag,
    "freq_shift": keys.number(0, 16),
    "flip_sin_to_cos": keys.flag,
    "block_out_channels": keys.several(_channels, most=16),
    "downsample_padding": keys.whole(0, 1),
    "mid_block_scale_factor": keys.number(1e-6, 1e6),
    "act_fn": keys.words(*ACTIVATIONS),
    "norm_num_groups": _channels,
    "norm_eps": _positive,
    "time_embedding_dim": keys.whole(1, MAX_CHANNELS, none=True),
    "attention_head_dim": _heads,
    "resnet_time_scale_shift": keys.words("default", "scale_shift"),
    # told by labels that nobody gives here
    "class_embed_type": _nothing,
}
UNET: dict[str, Rule] = {
    **_UNET,
    "in_channels": keys.words(3),
    "out_channels": keys.words(3, 6),
    "time_embedding_type": keys.words("positional", "learned"),
    "down_block_types": keys.several(
        keys.words(
            "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D",
            "AttnSkipDownBlock2D",
        ),
        most=16,
    ),
    "mid_block_type": keys.words("UNetMidBlock2D", None),
    "up_block_types": keys.several(
        keys.words(
            "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D",
            "AttnSkipUpBlock2D",
        ),
        most=16,
    ),
    "layers_per_block": _layers,
    "downsample_type": keys.words("conv", "resnet"),
    "upsample_type": keys.words("conv", "resnet"),
    "attention_head_dim": keys.whole(1, MAX_CHANNELS, none=True),
    "attn_norm_num_groups": keys.whole(1, MAX_CHANNELS, none=True),
    "add_attention": keys.flag,
    "clean": keys.flag,  # ours: see unet.CLEAN
    "num_class_embeds": keys.whole(1, 1 << 24, none=True),
    "num_train_timesteps": keys.whole(1, 100_000, none=True),
}  # fmt: skip
CONDITION_UNET: dict[str, Rule] = {
    **_UNET,
    "in_channels": _channels,
    "out_channels": _channels,
    "down_block_types": keys.several(
        keys.words(
            "CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
        ),
        most=16,
    ),
    "mid_block_type": keys.words("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": keys.several(
        keys.words("CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        most=16,
    ),
    "layers_per_block": _per_level,
    "only_cross_attention": keys.either(keys.flag, keys.several(keys.flag)),
    "cross_attention_dim": _channels,
    "transformer_layers_per_block": _transformers,
    "reverse_transformer_layers_per_block": keys.either(_nothing, _transformers),
    "use_linear_projection": keys.flag,
    "upcast_attention": keys.flag,
    "addition_embed_type": keys.words(None, "text_time"),
    "addition_time_embed_dim": keys.whole(1, MAX_CHANNELS, none=True),
    "addition_embed_type_num_heads": keys.idle,
    "resnet_skip_time_act": keys.flag,
    "resnet_out_scale_factor": keys.number(1e-6, 1e6),
    "time_embedding_type": keys.words("positional"),
    "time_embedding_act_fn": keys.words(None, *ACTIVATIONS),
    "timestep_post_act": keys.words(None, *ACTIVATIONS),
    "conv_in_kernel": keys.words(1, 3, 5, 7),
    "conv_out_kernel": keys.words(1, 3, 5, 7),
    "projection_class_embeddings_input_dim": keys.whole(1, 1 << 20, none=True),
    "mid_block_only_cross_attention": keys.either(_nothing, keys.flag),
    "cross_attention_norm": keys.words(None, "layer_norm", "group_norm"),
    # told by inputs that nobody gives here: images, boxes, guidance, labels, a second text
    "encoder_hid_dim": _nothing,
    "encoder_hid_dim_type": _nothing,
    "num_attention_heads": _nothing,
    "dual_cross_attention": keys.words(False),
    "num_class_embeds": _nothing,
    "time_cond_proj_dim": _nothing,
    "attention_type": keys.words("default"),
    "class_embeddings_concat": keys.words(False),
}  # fmt: skip
_TRANSFORMER: dict[str, Rule] = {
    **COMMON,
    "num_attention_heads": keys.whole(1, 1024),
    "attention_head_dim": keys.whole(1, 4096),
    "in_channels": _channels,
    "out_channels": keys.whole(1, MAX_CHANNELS, none=True),
    "num_layers": keys.whole(1, MAX_LAYERS),
}
DIT: dict[str, Rule] = {
    **_TRANSFORMER,
    "norm_num_groups": keys.idle,
    "attention_bias": keys.flag,
    "sample_size": _side,
    "patch_size": keys.whole(1, 64),
    "activation_fn": keys.words(
        "gelu", "gelu-approximate", "geglu", "geglu-approximate", "swiglu", "linear-silu"
    ),
    "num_embeds_ada_norm": keys.whole(1, 1 << 24),
    "upcast_attention": keys.flag,
    "norm_type": keys.words("ada_norm_zero"),
    "norm_elementwise_affine": keys.flag,
    "norm_eps": _positive,
}
SD3: dict[str, Rule] = {
    **_TRANSFORMER,
    "sample_size": _side,
    "patch_size": keys.whole(1, 64),
    "joint_attention_dim": _channels,
    "caption_projection_dim": _channels,
    "pooled_projection_dim": _channels,
    "pos_embed_max_size": keys.whole(1, 4096),
    "dual_attention_layers": keys.several(keys.whole(0, MAX_LAYERS), least=0, most=MAX_LAYERS),
    "qk_norm": keys.words(None, "rms_norm"),
}
FLUX: dict[str, Rule] = {
    **_TRANSFORMER,
    "patch_size": keys.words(1),
    "num_single_layers": keys.whole(0, MAX_LAYERS),
    "joint_attention_dim": _channels,
    "pooled_projection_dim": _channels,
    "guidance_embeds": keys.flag,
    "axes_dims_rope": keys.several(keys.whole(2, 4096), least=3, most=3),
}
VAE: dict[str, Rule] = {
    **COMMON,
    "in_channels": keys.words(3),
    "out_channels": keys.words(3),
    "down_block_types": keys.several(
        keys.words("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), most=16
    ),
    "up_block_types": keys.several(
        keys.words("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), most=16
    ),
    "block_out_channels": keys.several(_channels, most=16),
    "layers_per_block": _layers,
    "act_fn": keys.words(*ACTIVATIONS),
    "latent_channels": keys.whole(1, 4096),
    "norm_num_groups": _channels,
    "sample_size": keys.idle,
    "scaling_factor": keys.number(1e-9, 1e9),
    "shift_factor": keys.number(-1e6, 1e6, none=True),
    "latents_mean": _nothing,
    "latents_std": _nothing,
    "force_upcast": keys.idle,
    "use_quant_conv": keys.flag,
    "use_post_quant_conv": keys.flag,
    "mid_block_add_attention": keys.flag,
}  # fmt: skip
TABLES: dict[str, Mapping[str, Rule]] = {
    "UNet2DModel": UNET,
    "SelfConditionedUNet2DModel": {**UNET, "mid_block_type": keys.words("UNetMidBlock2D")},
    "UNet2DConditionModel": CONDITION_UNET,
    "DiTTransformer2DModel": DIT,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
    "AutoencoderKL": VAE,
}
"""Class of diffusers, or ours that extends one -> what its config may say."""


def check_network(config: Mapping[str, Any], kind: str, *, where: str) -> None:
    """Refuse a config that nothing here computes.

    Args:
        config: of a network of class `kind`.
        where: the file, for messages.

    Raises: TeacherError naming the key.
    """
    keys.check(config, TABLES[kind], where=where, what=kind)


def check_size(config: Mapping[str, Any], stored: int, *, where: str) -> None:
    """Refuse a config that describes more than its weights hold, before anything is built.

    Args:
        config: one that `check_network` let pass.
        stored: numbers in the weights (count).
        where: the weights, for messages.

    Raises: TeacherError with both counts.
    """
    least = least_parameters(config)
    if least > stored:
        raise TeacherError(
            f"{where}: the weights do not fit the architecture: the config describes {least:,} "
            f"numbers or more, the weights hold {stored:,}. Is it of another network?"
        )


def least_parameters(config: Mapping[str, Any]) -> int:
    """Count parameters that a network of a checked config has at least, without building it."""
    if "num_layers" in config:
        width = config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1)
        depth = config["num_layers"] + config.get("num_single_layers", 0)
        return 4 * depth * width**2  # queries, keys, values and the projection
    channels = config.get("block_out_channels") or []
    layers = config.get("layers_per_block", 1)
    layers = layers if isinstance(layers, list | tuple) else [layers] * len(channels)
    # A layer has at least one 3x3 convolution of its level's width on each way.
    return sum(2 * 9 * n * width**2 for n, width in zip(layers, channels, strict=False))
