"""BigGAN-deep in Hugging Face's layout: the official layout's network, told otherwise.

A random network in BigGAN-PyTorch's layout is rewritten as pytorch_pretrained_biggan would save it;
that library's own modules gave the same maps within 2e-6 when this was written.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import describe_teacher, load_teacher
from storage.schema import Pins
from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference

ROWS, STEPS = 2, 51
EPS = 1e-5  # that of the reference's last norm, so that one number serves the whole network
PARTS = {"theta": "snconv1x1_theta", "phi": "snconv1x1_phi", "g": "snconv1x1_g"}
PARTS |= {"o": "snconv1x1_o_conv", "gain": "scale", "bias": "offset"}
PARTS |= {f"conv{number}": f"conv_{number - 1}" for number in range(1, 5)}
PARTS |= {f"bn{number}": f"bn_{number - 1}" for number in range(1, 5)}


def reference() -> Reference:
    return Reference(
        deep=True, attention=(1,), widths=(32, 16, 16), latent=6, shared=6, bn_eps=EPS, sn_eps=EPS
    )


def rewritten(own: Reference, at: float) -> dict[str, Tensor]:
    """Return the state dict that Hugging Face's code would save; statistics are right at `at`."""
    numbers = {"blocks.0.0": 0, "blocks.1.0": 1, "blocks.1.1": 2, "blocks.2.0": 3, "blocks.3.0": 4}
    state: dict[str, Tensor] = {"embeddings.weight": own.state["shared.weight"].T.clone()}
    for name, value in own.state.items():
        parts = name.split(".")
        if name == "shared.weight" or parts[-1] in ("u0", "sv0"):
            continue
        if parts[0] == "blocks":
            at_layer = f"layers.{numbers['.'.join(parts[:3])]}"
            new = ".".join([at_layer, *(PARTS.get(part, part) for part in parts[3:-1])])
        else:
            new = {"linear": "gen_z", "output_layer.0": "bn"}.get(
                ".".join(parts[:-1]), "conv_to_rgb"
            )
        last = parts[-1]
        if last in ("stored_mean", "stored_var"):
            state[f"generator.{new}.running_{last[7:]}s"] = spread(value, at)
            continue
        if f"{name.removesuffix('.weight')}.u0" in own.state:
            value = own._weight(name.removesuffix(".weight"))
            if parts[0] == "linear" or parts[-2] in ("gain", "bias"):
                value = value.roll(own.latent, dims=1)  # told [z, class]
        if parts[0] == "linear":
            value = by_cell(value)
        if new == "conv_to_rgb":
            value = torch.cat([value, torch.ones_like(value)])
        if last == "gamma":
            value = value.view(1)
        plain = value if last in ("gamma", "bias", "gain") else 3 * value
        if last in ("gamma", "bias", "gain"):
            state[f"generator.{new}.{'weight' if last == 'gain' else last}"] = plain
        else:  # vectors whose product with the weight is 3
            matrix = plain.flatten(1)
            u, v = torch.zeros(len(matrix)), torch.zeros(matrix.shape[1])
            u[0], v[0] = 1.0, 3 / matrix[0, 0]
            state |= {
                f"generator.{new}.weight_orig": plain,
                f"generator.{new}.weight_u": u,
                f"generator.{new}.weight_v": v,
            }
    return state


def by_cell(value: Tensor) -> Tensor:
    return value.view(-1, 16, *value.shape[1:]).transpose(0, 1).reshape(value.shape)


def spread(value: Tensor, at: float) -> Tensor:
    """Return statistics of 51 truncations, which the official code reads as `value` at `at`."""
    rows = torch.arange(1.0, STEPS + 1)[:, None].repeat(1, len(value))
    above, lower = math.modf(at / (1 / (STEPS - 1)))
    low = int(lower)
    rows[low] = value
    if above:  # the lower one weighs by how far it is below
        rows[low + 1] = value - 0.1
        rows[low] = value + 0.1 * (1 - above) / above
    return rows


def write(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def config_of(path: Path, **settings: Any) -> TeacherConfig:
    levels = ["gen_z", *(f"layers.{number}" for number in range(5))]
    return TeacherConfig(kind="biggan", path=str(path), levels=levels, settings=settings)


def load(config: TeacherConfig) -> Any:
    return load_teacher(config, mode="synthesize", seed=0, pins=Pins(ROWS, "float32", "cpu", 1))


@pytest.mark.parametrize("truncation", [0.0, 1.0, 0.4, 0.533])
def test_it_is_the_same_network(tmp_path: Path, truncation: float) -> None:
    own = reference()
    path = write(tmp_path, rewritten(own, truncation or 1.0), {"eps": EPS})
    teacher = load(config_of(path, truncation=truncation))
    z, labels, _ = teacher.inputs(np.arange(ROWS))
    assert labels is not None
    expected = own.forward(torch.from_numpy(z), torch.from_numpy(labels))
    maps, images = teacher.generate(z, labels, None)
    names = ["blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.3.0"]
    for number, name in enumerate(names):
        torch.testing.assert_close(maps[f"layers.{number}"], expected[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images, expected["image"], rtol=1e-4, atol=1e-4)
    assert not teacher.request.spec.notes


def test_the_config_says_which_layers_double(tmp_path: Path) -> None:
    state = rewritten(reference(), 1.0)
    layers = [[True, 2, 2], [False, 2, 1], [False, 1, 1], [True, 1, 1]]
    path = write(tmp_path, state, {"eps": EPS, "layers": layers})
    shapes = {lv.name: lv.shape[1] for lv in load(config_of(path)).levels}
    assert list(shapes.values()) == [4, 8, 8, 8, 8, 16]
    (tmp_path / "config.json").write_text(json.dumps({"layers": layers[:2]}))
    with pytest.raises(TeacherError, match="2 layers in the config, 4 in the file"):
        load(config_of(path))


def test_what_is_guessed_is_said_and_what_is_not_its_own_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, rewritten(reference(), 1.0))
    notes = describe_teacher(config_of(path), mode="synthesize").notes
    assert "BN_eps 0.0001 (pytorch_pretrained_biggan's)" in str(notes)
    for settings, message in (
        ({"SN_eps": 1e-4}, "SN_eps: got 0.0001, allowed none for Hugging Face"),
        ({"hier": True}, "hier: got True, allowed none"),
        ({"truncation": 1.5}, "truncation: got 1.5, allowed 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe_teacher(config_of(path, **settings), mode="synthesize")
    (tmp_path / "config.json").write_text('{"eps": "small"}')
    with pytest.raises(TeacherError, match="eps: got 'small', allowed a small number"):
        describe_teacher(config_of(path), mode="synthesize")


def test_damage_is_named(tmp_path: Path) -> None:
    state = rewritten(reference(), 1.0)
    state["generator.layers.0.conv_0.weight_u"] = torch.ones(3)
    path = write(tmp_path, state, {"eps": EPS})
    with pytest.raises(TeacherError, match=r"conv_0\.weight_orig: got singular vectors of 3"):
        load(config_of(path))
    del state["generator.layers.0.conv_3.weight_orig"]
    write(tmp_path, state)
    with pytest.raises(TeacherError, match="not a BigGAN-deep of Hugging Face's layout"):
        load(config_of(path))
