"""What helps a diffusion teacher learn: it begins as nothing, and nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamshard.errors import ConfigError, TeacherError
from pipeline import pretrain as script
from pipeline.learning.pretraining import geometry, state
from pipeline.learning.pretraining.config import ObjectiveConfig, UNetConfig
from pipeline.learning.pretraining.diffusion import Told, dispersion
from pipeline.learning.pretraining.network import build_network
from pipeline.teachers.door import open_teacher
from tests.unit.pipeline.test_pretrain import tiny

SMALL = UNetConfig(block_out_channels=[8, 8], norm_num_groups=4)
CONDITIONED = UNetConfig(block_out_channels=[8, 8], norm_num_groups=4, self_conditioning=True)
HELPED = ObjectiveConfig(augment=0.5, dispersive=0.5)


def test_a_spread_batch_has_less_dispersion_than_a_lump() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 3, 2, 2)
    assert float(dispersion(rows[:1].expand(6, -1, -1, -1), temperature=0.5)) == pytest.approx(0)
    pairs = torch.cdist(rows.flatten(1), rows.flatten(1)).square() / 12
    expected = torch.log(torch.exp(-pairs / 0.5).mean())
    found = dispersion(rows, temperature=0.5)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(dispersion(3 * rows, temperature=0.5)) < float(found) < 0
    rows.requires_grad_()
    dispersion(rows, temperature=0.5).backward()
    assert rows.grad is not None and bool(rows.grad.isfinite().all())


def test_changes_depend_on_their_positions_and_none_is_told_as_none() -> None:
    images = torch.rand(6, 3, 8, 8)
    same, told = geometry.change(images, seed=0, positions=range(6), probability=0.0)
    assert torch.equal(same, images) and not told.any()
    moved, told = geometry.change(images, seed=0, positions=range(6), probability=1.0)
    assert told.shape == (6, geometry.LABELS) and bool((told[:, 1:] != 0).all())
    part, told_part = geometry.change(images[4:], seed=0, positions=range(4, 6), probability=1.0)
    torch.testing.assert_close(part, moved[4:], rtol=0, atol=1e-6)
    assert torch.equal(told_part, told[4:])
    assert float(moved.min()) > -1e-6 and float(moved.max()) < 1 + 1e-6, "borders are reflected"


def test_turning_an_image_over_alone_mirrors_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = {"pretrain-changes": [0.0, 1, 1, 1, 1], "pretrain-change-turn": [0.5, 0.5, 0.9]}
    monkeypatch.setattr(
        geometry.rng, "uniform", lambda seed, rows, draw, what, shape: np.array([chances[what]])
    )
    images = torch.rand(1, 3, 8, 8)
    moved, told = geometry.change(images, seed=0, positions=[0], probability=0.5)
    torch.testing.assert_close(moved, images.flip(2), rtol=0, atol=1e-5)
    assert told[0].tolist() == [1.0] + [0.0] * 7


def test_additions_begin_as_nothing() -> None:
    plain, own = (
        build_network(unet, sample_size=16, classes=0, seed=0) for unet in (SMALL, CONDITIONED)
    )
    own.load_state_dict(plain.state_dict(), strict=False)
    x, time = torch.randn(2, 3, 16, 16), torch.tensor([3, 40])
    with torch.no_grad():
        expected = plain(x, time, return_dict=False)[0]
        assert torch.equal(own(x, time, return_dict=False)[0], expected)
        output, middle = Told(plain, 8)(x, time, None, torch.rand(2, 8))
        assert torch.equal(output, expected) and middle.shape == (2, 8, 8, 8)
        torch.nn.init.normal_(own.mid_condition.weight)
        assert not torch.allclose(own(x, time, return_dict=False)[0], expected)


def test_a_teacher_trained_with_all_of_it_is_a_teacher(tmp_path: Path) -> None:
    folder = script.pretrain(tiny(tmp_path / "t", unet=CONDITIONED, objective=HELPED))
    kept = load_file(folder / state.WEIGHTS)
    assert not any(name.startswith(("network.", "tell.")) for name in kept)
    assert bool(kept["mid_condition.weight"].any()), "it has learnt"
    line = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(line["denoising"] + 0.5 * line["dispersion"], rel=1e-5)
    teacher = open_teacher(folder, levels=["mid", "up.1"], timesteps=[5], micro_batch=2)
    found = teacher.encode(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2))
    assert found.levels["mid.t5"].shape == (2, 8, 8, 8)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mid_block_type": None}))
    with pytest.raises(TeacherError, match="mid_block_type"):
        open_teacher(folder, levels=["up.1"], timesteps=[5])


def test_a_run_begins_with_a_teacher_of_the_same_architecture(tmp_path: Path) -> None:
    first = script.pretrain(tiny(tmp_path / "first"))
    begun = UNetConfig(
        block_out_channels=[8, 8], norm_num_groups=4, self_conditioning=True, weights=str(first)
    )
    network = build_network(begun, sample_size=16, classes=0, seed=0)
    state_dict = network.state_dict()
    assert all(torch.equal(state_dict[k], v) for k, v in load_file(first / state.WEIGHTS).items())
    script.pretrain(tiny(tmp_path / "second", unet=begun))
    wider = UNetConfig(block_out_channels=[8, 16], norm_num_groups=4, weights=str(first))
    with pytest.raises(ConfigError, match=r"unet\.weights: got .* whose .* is \(8,\), here \(16"):
        script.pretrain(tiny(tmp_path / "third", unet=wider))


def test_keys_of_before_stay(tmp_path: Path) -> None:
    from dreamshard.config import to_dict

    new = to_dict(tiny(tmp_path))
    old = json.loads(json.dumps(new))
    for section, names in {
        "unet": ["self_conditioning", "weights"],
        "objective": ["augment", "dispersive", "dispersive_temperature"],
    }.items():
        for name in names:
            del old[section][name]
    del old["minutes"], old["compile"]
    assert state.recipe_key(new, {}) == state.recipe_key(old, {})
