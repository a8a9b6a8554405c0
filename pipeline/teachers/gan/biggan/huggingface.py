"""BigGAN-deep as Hugging Face converted it from TensorFlow Hub: `pytorch_model.bin`, `config.json`.

The network is that of `network.py`, told otherwise: z comes before the class embedding, the first
map's numbers are ordered by cell, attention has a number of its own among the layers, every norm
has the same epsilon, and there are statistics for 51 truncations, of which `settings.truncation`
selects (0: those of 1). Between two of them the official code weighs the lower one by how far the
truncation is above it, which is the wrong way round; so do we, because its samples are.

Source: pytorch_pretrained_biggan 0.1.1, `model.py` and `config.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar
from pipeline.teachers.gan import spectral
from pipeline.teachers.gan.biggan.layout import BigGANLayout, Block
from pipeline.teachers.recording.taps import Tap

MARK = "generator.gen_z.weight_orig"
"""A tensor that every such file has."""
EPS = 1e-4
BOTTOM, RGB = 4, 3
PAIR = 2  # layers per stage, of which the second doubles the size
NORMS = {"scale": "gain", "offset": "bias"}
CONVS = {
    "snconv1x1_theta": "theta",
    "snconv1x1_phi": "phi",
    "snconv1x1_g": "g",
    "snconv1x1_o_conv": "o",
    **{f"conv_{number}": f"conv{number + 1}" for number in range(4)},
}
Shapes = Mapping[str, tuple[int, ...]]


def read_layout(shapes: Shapes, config: Mapping[str, Any], *, where: str) -> BigGANLayout:
    """Read the architecture from tensor shapes, and which layers double the size from the config.

    Args:
        shapes: name -> shape, as stored.
        config: of `config.json`; {} for none: every second layer doubles the size.
        where: names the file in errors.

    Raises: TeacherError for shapes that are not such a network's, or a config that contradicts it.
    """
    plain = {own: shape for name, shape in shapes.items() if (own := spectral.plain_name(name))}
    try:
        return _read(plain, config)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise TeacherError(
            f"{where}: not a BigGAN-deep of Hugging Face's layout ({type(error).__name__}: "
            f"{error}). Is config.json that of these weights?"
        ) from error


def _read(plain: Shapes, config: Mapping[str, Any]) -> BigGANLayout:
    places = layers(plain)
    latent, classes = plain["embeddings.weight"]
    told = plain["generator.gen_z.weight"][1]
    doubled = [bool(layer[0]) for layer in config.get("layers") or ()]
    if not doubled:
        doubled = [number % PAIR == PAIR - 1 for number in range(len(places))]
    if len(doubled) != len(places):
        raise ValueError(f"{len(doubled)} layers in the config, {len(places)} in the file")
    blocks = []
    for (number, attention), upsample in zip(places, doubled, strict=True):
        at = f"generator.layers.{number}"
        hidden, inputs = plain[f"{at}.conv_0.weight"][:2]
        outputs = plain[f"{at}.conv_3.weight"][0]
        if outputs not in (inputs, inputs // 2):
            raise ValueError(f"layer {number} of {inputs} to {outputs} channels")
        blocks.append(Block(inputs, outputs, hidden, upsample, attention is not None))
    if plain["generator.gen_z.weight"][0] != blocks[0].inputs * BOTTOM**2:
        raise ValueError(f"a first map of {plain['generator.gen_z.weight'][0]} values")
    return BigGANLayout(
        blocks=tuple(blocks),
        deep=True,
        bottom=BOTTOM,
        latent=told - latent,
        chunk=told - latent,
        classes=classes,
        shared=latent,
        features=0,
        shared_features=0,
    )


def layers(names: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Return each block's number among the layers, with that of the attention after it.

    Raises: ValueError for numbers that do not begin at 0 or leave one out.
    """
    at = re.compile(r"generator\.layers\.(\d+)\.(conv_0|snconv1x1_theta)\.weight")
    kinds = {int(match[1]): match[2] for name in names if (match := at.match(name))}
    if sorted(kinds) != list(range(len(kinds))) or kinds.get(0) != "conv_0":
        raise ValueError(f"layers {sorted(kinds)}, not 0, 1, 2 ... beginning with a block")
    blocks: list[tuple[int, int | None]] = []
    for number in sorted(kinds):
        if kinds[number] == "conv_0":
            blocks.append((number, None))
        else:
            blocks[-1] = (blocks[-1][0], number)
    return blocks


def read_config(file: Path) -> tuple[dict[str, Any], str]:
    """Read the config beside the weights; {} and "" where there is none.

    Raises: TeacherError for one that is not a JSON object.
    """
    stem = file.name.removesuffix("pytorch_model.bin")  # biggan-deep-128-pytorch_model.bin
    for name in dict.fromkeys((f"{stem}config.json", "config.json")):
        if file.with_name(name).is_file():
            return weights.read_json(file.with_name(name)), name
    return {}, ""


def find_eps(
    config: Mapping[str, Any], name: str, settings: Mapping[str, Scalar], *, where: str
) -> tuple[float, Flag]:
    """Return the epsilon of the norms, and where it was found.

    Raises:
        ConfigError: settings that this layout does not have, or an epsilon out of range.
        TeacherError: a config whose epsilon is no number.
    """
    problems: list[Problem | str] = [
        Problem(f"settings.{key}", str(value), "none for Hugging Face's layout", "Leave it out.")
        for key in ("SN_eps", "z_var", "hier", "class_cond", "cross_replica")
        if (value := settings.get(key)) not in (None, 0)
    ]
    given = settings.get("BN_eps") or 0.0
    if not isinstance(given, int | float) or not 0 <= given < 1:
        problems.append(Problem("settings.BN_eps", str(given), "above 0, below 1 (0: find out)"))
    tau = settings.get("truncation") or 0.0
    if not isinstance(tau, int | float) or not 0 <= tau <= 1:
        allowed = "0 (none) .. 1: it has statistics of these truncations"
        problems.append(Problem("settings.truncation", str(tau), allowed))
    if problems:
        raise ConfigError(problems)
    if given:
        return float(given), Flag(name="BN_eps", value=float(given), source="user")
    if "eps" in config:
        value = config["eps"]
        if not isinstance(value, int | float) or not 0 < float(value) < 1:
            raise TeacherError(f"{where}: {name}: eps: got {value!r:.40}, allowed a small number.")
        return float(value), Flag(name="BN_eps", value=float(value), source="file", whose=name)
    whose = "pytorch_pretrained_biggan's"
    return EPS, Flag(name="BN_eps", value=EPS, source="default", whose=whose)


def block_taps(layout: BigGANLayout, names: Mapping[str, Any]) -> list[Tap]:
    """List what can be recorded, under the numbers that the layers have in the file."""
    stride = layout.image_size // layout.bottom
    listed = [Tap("gen_z", "first", layout.blocks[0].inputs, stride)]
    plain = {own: 0 for name in names if (own := spectral.plain_name(name))}
    for place, (block, numbers) in enumerate(zip(layout.blocks, layers(plain), strict=True)):
        stride //= 2 if block.upsample else 1
        for part, number in enumerate(numbers):
            if number is not None:
                tap = Tap(f"layers.{number}", f"blocks.{place}.{part}", block.outputs, stride)
                listed.append(tap)
    return listed


def rename(
    state: Mapping[str, Tensor], layout: BigGANLayout, *, truncation: float, where: str
) -> dict[str, Tensor]:
    """Divide spectral norms out, select the statistics and name tensors as our modules do.

    Args:
        state: of the file.
        layout: of the network.
        truncation: above 0, at most 1.
        where: names the file in errors.
    """
    plain = spectral.divide(state, where=where)
    latent = layout.latent
    blocks: dict[int, str] = {}
    for place, numbers in enumerate(layers(plain)):
        blocks |= {n: f"blocks.{place}.{part}" for part, n in enumerate(numbers) if n is not None}
    renamed = {"shared.weight": plain.pop("embeddings.weight").T.contiguous()}
    for name, value in plain.items():
        parts, value = name.removeprefix("generator.").split("."), value.float()
        last = parts[-1]
        if last in ("running_means", "running_vars"):
            value = _at_truncation(value, truncation)
            last = {"running_means": "stored_mean", "running_vars": "stored_var"}[last]
        if parts[0] == "gen_z":
            value = _by_channel(value, layout)
        if last == "weight" and (parts[0] == "gen_z" or parts[-2] in NORMS):
            value = _class_first(value, latent)  # told [class, z] instead of [z, class]
        if parts[0] == "gen_z":
            own = f"linear.{last}"
        elif parts[0] == "bn":
            own = f"output_layer.0.{'gain' if last == 'weight' else last}"
        elif parts[0] == "conv_to_rgb":
            own, value = f"output_layer.2.{last}", value[:RGB]
        elif parts[0] == "layers" and parts[1].isdigit() and int(parts[1]) in blocks:
            own = ".".join([blocks[int(parts[1])], *_within(parts[2:-1]), last])
            value = value.reshape(()) if last == "gamma" else value
        else:
            own = name
        renamed[own] = value.contiguous()
    return renamed


def _class_first(weight: Tensor, latent: int) -> Tensor:
    """Move the first `latent` columns of a weight (O, I) behind the others."""
    return weight.roll(-latent, dims=1)


def _within(parts: list[str]) -> list[str]:
    """Name a block's part: bn_0.scale is bn1.gain."""
    named = []
    for part in parts:
        norm = re.fullmatch(r"bn_(\d)", part)
        named.append(f"bn{int(norm[1]) + 1}" if norm else NORMS.get(part, CONVS.get(part, part)))
    return named


def _by_channel(value: Tensor, layout: BigGANLayout) -> Tensor:
    """Order the outputs of the first layer by channel, then cell; value (out, ...)."""
    cells, channels = layout.bottom**2, layout.blocks[0].inputs
    return value.reshape(cells, channels, -1).transpose(0, 1).reshape(value.shape)


def _at_truncation(stored: Tensor, truncation: float) -> Tensor:
    """Return the statistics (C,) of a truncation from those (S, C) of S truncations, 0 to 1."""
    above, lower = math.modf(truncation / (1 / (len(stored) - 1)))
    if not above:
        return stored[int(lower)]
    upper = min(int(lower) + 1, len(stored) - 1)
    return stored[int(lower)] * above + stored[upper] * (1 - above)
