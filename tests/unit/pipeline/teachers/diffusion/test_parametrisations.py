"""Every parametrisation, timesteps and draws at once: as diffusers' scheduler and hooks.

Also: what a batch's size may change, and bad input at the public door.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamshard import rng
from dreamshard.errors import ConfigError, DataError, DreamshardError, TeacherError
from tests.unit.pipeline.teachers.conftest import make_images, make_teacher, open_teacher

TIMESTEPS, DRAWS, ROWS = [900, 3, 250], 2, np.arange(4)
TAPS = {"up.1": "up_blocks.1.attentions.1", "mid": "mid_block", "down.0": "down_blocks.0.resnets.0"}
WEIGHTS = "diffusion_pytorch_model.safetensors"

Noised = tuple[Tensor, Tensor]


def ddpm(prediction: str) -> tuple[Any, Callable[[Tensor, Tensor, int], Noised]]:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")

    def noised(x0: Tensor, eps: Tensor, timestep: int) -> Noised:
        times = torch.full((len(x0),), timestep)
        return scheduler.add_noise(x0, eps, times), times  # type: ignore[arg-type]

    return scheduler, noised


def flow() -> tuple[Any, Callable[[Tensor, Tensor, int], Noised]]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()

    def noised(x0: Tensor, eps: Tensor, timestep: int) -> Noised:
        times = torch.full((len(x0),), float(timestep))
        return scheduler.scale_noise(x0, times, eps), times  # type: ignore[arg-type]

    return scheduler, noised


def edm() -> tuple[Any, Callable[[Tensor, Tensor, int], Noised]]:
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(num_train_timesteps=1000)
    sigmas = scheduler.sigmas[:-1].flip(0)  # theirs fall, timesteps rise

    def noised(x0: Tensor, eps: Tensor, timestep: int) -> Noised:
        sigma = sigmas[timestep]
        x = scheduler.precondition_inputs(x0 + sigma * eps, sigma)
        return x, scheduler.precondition_noise(sigma).reshape(1).expand(len(x0))

    return scheduler, noised


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow", "edm"])
def test_features_are_those_of_hooks(unet_folder: Path, tmp_path: Path, kind: str) -> None:
    from diffusers import UNet2DModel

    folder = tmp_path / "unet"
    shutil.copytree(unet_folder, folder)
    shutil.rmtree(folder / "scheduler")
    scheduler, noised = {"flow": flow, "edm": edm}.get(kind, lambda: ddpm(kind))()
    scheduler.save_pretrained(folder / "scheduler")
    module = UNet2DModel.from_pretrained(folder, use_safetensors=True).eval()
    seen: dict[str, Tensor] = {}
    for name, path in TAPS.items():
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, name=name: seen.__setitem__(name, output)
        )
    images = make_images()
    teacher = make_teacher(folder, levels=list(TAPS), timesteps=TIMESTEPS, draws=DRAWS)
    found = teacher.encode(images, ROWS).levels
    assert len(found) == len(TAPS) * len(TIMESTEPS) * DRAWS
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    for draw in range(DRAWS):
        eps = torch.from_numpy(rng.normal(0, ROWS, draw, "noise", (3, 16, 16)))
        for timestep in TIMESTEPS:
            x, times = noised(x0, eps, timestep)
            with torch.no_grad():
                module(x, times)
            for name, value in seen.items():
                full = f"{name}.t{timestep}" + (f".d{draw}" if draw else "")
                np.testing.assert_allclose(
                    found[full].astype(np.float32), value.numpy(), atol=6e-3, rtol=4e-3
                )


def test_another_micro_batch_changes_the_last_digits_only(unet_folder: Path) -> None:
    images, rows = make_images(8), np.arange(8)
    teacher = make_teacher(unet_folder, levels=["up.2", "mid"], timesteps=[50])
    whole = teacher.encode(images, rows).levels
    for size in (4, 1):
        parts = [
            teacher.encode(images[k : k + size], rows[k : k + size]).levels
            for k in range(0, 8, size)
        ]
        for name, value in whole.items():
            joined = np.concatenate([part[name] for part in parts])
            # Other kernels sum in another order: one step of float16 at the most.
            np.testing.assert_allclose(joined, value, rtol=2e-3, atol=1e-4)
    again = make_teacher(unet_folder, levels=["up.2", "mid"], timesteps=[50])
    assert all(np.array_equal(again.encode(images, rows).levels[n], whole[n]) for n in whole)


def test_levels_in_another_order_or_company_are_the_same_bytes(unet_folder: Path) -> None:
    images = make_images()
    both = make_teacher(unet_folder, levels=["up.2", "mid"], timesteps=[7, 50])
    alone = make_teacher(unet_folder, levels=["mid"], timesteps=[50])
    first, second = both.encode(images, ROWS).levels, alone.encode(images, ROWS).levels
    assert np.array_equal(first["mid.t50"], second["mid.t50"])


def test_compiled_blocks_are_the_outermost(
    unet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def fake(function: Any, **_: object) -> Any:
        compiled.append(type(function.__self__).__name__)
        return function

    monkeypatch.setattr(torch, "compile", fake)
    plain = make_teacher(unet_folder, levels=["up.1"], timesteps=[7])
    assert not compiled
    teacher = make_teacher(unet_folder, levels=["up.1"], timesteps=[7], compile=True)
    assert {"ResnetBlock2D", "Attention"} == set(compiled)
    images = make_images()
    expected = plain.encode(images, ROWS).levels["up.1.t7"]
    assert np.array_equal(teacher.encode(images, ROWS).levels["up.1.t7"], expected)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def spoil(folder: Path, how: str) -> Path:
    """Damage a teacher in one way; return the path to load."""
    file = folder / WEIGHTS
    state = load_file(file)
    if how == "pickle":
        file.unlink()
        torch.save({"weight": Evil(folder / "ran")}, folder / "diffusion_pytorch_model.bin")
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "nan":
        state["conv_in.weight"][0, 0, 0, 0] = float("nan")
        save_file(state, file)
    elif how == "missing":
        for name in [name for name in state if name.startswith("mid_block")]:
            del state[name]
        save_file(state, file)
    elif how == "surplus":
        save_file({**state, **{f"alien.{k}": torch.zeros(1) for k in range(12)}}, file)
    elif how == "channels":
        state["conv_in.weight"] = torch.zeros(8, 4, 3, 3)
        save_file(state, file)
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "refused: loading it would run code.*Convert it to safetensors"),
        ("truncated", "damaged or truncated.*Fetch it again"),
        ("nan", r"conv_in\.weight has values that are not finite"),
        ("missing", "keys missing: mid_block.*and .* more"),
        ("surplus", r"12 keys surplus: alien\.0.*and 2 more"),
        ("channels", r"conv_in\.weight \(8, 4, 3, 3\) not \(8, 3, 3, 3\)"),
    ],
)
def test_damaged_weights_are_one_line(
    unet_folder: Path, tmp_path: Path, how: str, message: str
) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(unet_folder, folder)
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(spoil(folder, how))
    assert "\n" not in str(caught.value) and not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"timesteps": [1000]}, r"timesteps: got 1000, allowed 0\.\.999"),
        ({"timesteps": [-1]}, r"timesteps: got -1, allowed 0\.\.999"),
        ({"levels": ["s32"]}, r"levels: got s32, .*strides 1 to 4"),
        ({"levels": ["up.9"]}, r"levels: got up\.9, allowed in, down\.0"),
        ({"image_size": 18}, "multiples of 4"),
    ],
)
def test_requests_that_cannot_be_met(
    unet_folder: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_teacher(unet_folder, **request_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 16, 16, 1), np.uint8), np.zeros((4, 16, 16, 4), np.uint8),
        np.zeros((4, 16, 16), np.uint8), np.zeros((4, 8, 16, 3), np.uint8),
        np.zeros((4, 16, 16, 3), np.float32),
    ],
    ids=["grey", "RGBA", "no channels", "other size", "floats"],
)  # fmt: skip
def test_images_of_other_sizes_and_modes(unet_folder: Path, images: np.ndarray) -> None:
    teacher = make_teacher(unet_folder, levels=["mid"], timesteps=[7])
    with pytest.raises(DataError, match=r"allowed \(16, 16, 3\) of uint8 RGB") as caught:
        teacher.encode(images, ROWS)
    assert isinstance(caught.value, DreamshardError) and "\n" not in str(caught.value)
