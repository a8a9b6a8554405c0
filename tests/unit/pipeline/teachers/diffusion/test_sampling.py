from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from pipeline.teachers.diffusion import sampling, schedules

LINEAR = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))


def network(x: Tensor, timestep: int) -> Tensor:
    """A made-up denoiser: smooth in both arguments."""
    return torch.tanh(x * 0.8 + timestep / 1000)


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_walks_as_diffusers_does(clip: bool) -> None:
    theirs = DDIMScheduler(
        beta_schedule="linear", clip_sample=clip, set_alpha_to_one=True, steps_offset=0
    )
    theirs.set_timesteps(20)
    x = start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in theirs.timesteps:
        output = network(x, int(timestep))
        x = theirs.step(output, timestep, x, use_clipped_model_output=clip).prev_sample  # type: ignore[arg-type]
    steps = sampling.leading_timesteps(1000, 20)
    assert steps[::-1] == theirs.timesteps.tolist()
    settings = sampling.SamplerSettings(clip=clip)
    found = sampling.sample(LINEAR, network, start, steps, settings)
    torch.testing.assert_close(found, x, atol=2e-4, rtol=1e-4)


def test_dpm_solver_walks_as_diffusers_does() -> None:
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="linear", timestep_spacing="leading", final_sigmas_type="zero"
    )
    theirs.set_timesteps(20)
    x = start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in theirs.timesteps:
        x = theirs.step(network(x, int(timestep)), timestep, x).prev_sample  # type: ignore[arg-type]
    settings = sampling.SamplerSettings(name="dpm", clip=False)
    steps = theirs.timesteps.tolist()[::-1]
    found = sampling.sample(LINEAR, network, start, steps, settings)
    torch.testing.assert_close(found, x, atol=2e-3, rtol=1e-3)


def test_both_solvers_find_the_data_of_a_perfect_denoiser() -> None:
    target = torch.linspace(-0.9, 0.9, 48).reshape(1, 3, 4, 4)
    for schedule in (LINEAR, schedules.flow(), schedules.edm()):

        def perfect(x: Tensor, timestep: int, schedule: schedules.Schedule = schedule) -> Tensor:
            a, s = float(schedule.signal[timestep]), float(schedule.noise[timestep])
            if schedule.prediction == "epsilon":
                return (x - a * target) / s
            if schedule.prediction == "flow_prediction":
                return (x - target) / s
            total = s**2 + 0.25
            return (target - 0.25 / total * x) * (total**0.5 / (s * 0.5))

        for name in ("ddim", "dpm"):
            steps = [99, 399, 699, 999]
            x = torch.randn(1, 3, 4, 4)
            settings = sampling.SamplerSettings(name=name)
            found = sampling.sample(schedule, perfect, x, steps, settings)
            torch.testing.assert_close(found, target, atol=1e-3, rtol=1e-3)


def test_inversion_goes_up_the_way_ddim_comes_down() -> None:
    x0 = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = list(range(0, 400, 2))

    def smooth(x: Tensor, timestep: int) -> Tensor:
        return 0.5 * x

    visited: list[int] = []
    up = sampling.invert(LINEAR, smooth, x0, steps, lambda _x, t: visited.append(t))
    assert visited == steps
    settings = sampling.SamplerSettings(clip=False)
    down = sampling.sample(LINEAR, smooth, up, steps, settings)
    torch.testing.assert_close(down, x0, atol=0.02, rtol=0.02)


def test_inversion_asks_at_the_level_it_leaves() -> None:
    asked: list[int] = []

    def note(x: Tensor, timestep: int) -> Tensor:
        asked.append(timestep)
        return torch.zeros_like(x)

    x0 = torch.ones(1, 3, 2, 2)
    found = sampling.invert(LINEAR, note, x0, [0, 40, 80], lambda _x, _t: None)
    assert asked == [0, 40]
    # No noise predicted: x only scales, and x0 enters as the level of timestep 0.
    expected = LINEAR.signal[80] / LINEAR.signal[0]
    assert float(found[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5)


def test_eta_adds_the_noise_of_ancestral_sampling() -> None:
    theirs = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    theirs.set_timesteps(10)
    x, fresh = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    expected = theirs.step(network(x, 500), 500, x, eta=1.0, variance_noise=fresh).prev_sample  # type: ignore[union-attr]
    level = {t: (float(LINEAR.signal[t]), float(LINEAR.noise[t])) for t in (400, 500)}
    found = sampling.ddim_step(
        LINEAR,
        x,
        network(x, 500),
        now=level[500],
        then=level[400],
        eta=1.0,
        fresh=fresh,
        clip=False,
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
