from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from dreamshard.errors import TeacherError
from pipeline.teachers.diffusion import schedulers, schedules


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_alphas_are_those_of_diffusers(name: str) -> None:
    theirs = DDPMScheduler(beta_schedule=name)
    ours = schedulers.from_config(json.loads(theirs.to_json_string()))
    np.testing.assert_allclose(ours.signal**2, theirs.alphas_cumprod.numpy(), rtol=5e-5)


def test_linear_schedule_ends_where_the_paper_says() -> None:
    schedule = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    assert schedule.signal[-1] ** 2 == pytest.approx(4.0358e-5, rel=1e-3)
    assert (schedule.signal**2)[0] == 1 - 1e-4


def test_zero_snr_ends_in_pure_noise() -> None:
    theirs = DDPMScheduler(rescale_betas_zero_snr=True)
    ours = schedulers.from_config(json.loads(theirs.to_json_string()))
    assert ours.signal[-1] == 0 and ours.noise[-1] == 1
    np.testing.assert_allclose(ours.signal**2, theirs.alphas_cumprod.numpy(), atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_noise_and_prediction_undo_each_other(prediction: str) -> None:
    config = {"prediction_type": prediction, "beta_schedule": "linear"}
    _check_round_trip(schedulers.from_config(config), prediction, timestep=300)


@pytest.mark.parametrize("prediction", ["flow_prediction", "edm"])
def test_flow_and_edm_undo_each_other(prediction: str) -> None:
    schedule = schedules.flow() if prediction == "flow_prediction" else schedules.edm()
    _check_round_trip(schedule, prediction, timestep=300)


def _check_round_trip(schedule: schedules.Schedule, prediction: str, *, timestep: int) -> None:
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    a, s = schedule.signal[timestep], schedule.noise[timestep]
    x_t = schedule.add_noise(x0, eps, timestep)
    total = s**2 + schedule.sigma_data**2
    output = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": a * eps - s * x0,
        "flow_prediction": eps - x0,
        "edm": (x0 - schedule.sigma_data**2 / total * x_t)
        * (total**0.5 / (s * schedule.sigma_data)),
    }[prediction]
    found_x0, found_eps = schedule.predict(x_t, output, schedule.level(timestep))
    torch.testing.assert_close(found_x0, x0, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found_eps, eps, atol=2e-4, rtol=1e-4)


def test_edm_is_preconditioned_as_in_diffusers() -> None:
    theirs = EDMEulerScheduler(num_train_timesteps=10)
    schedule = schedulers.from_config(json.loads(theirs.to_json_string()))
    x, output = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    sigma = float(schedule.noise[7])
    expected = theirs.precondition_inputs(x, torch.tensor(sigma))
    torch.testing.assert_close(schedule.model_input(x, 7), expected)
    expected = theirs.precondition_outputs(x, output, torch.tensor(sigma))
    torch.testing.assert_close(schedule.predict(x, output, schedule.level(7))[0], expected)
    assert schedule.time[7] == pytest.approx(float(theirs.precondition_noise(sigma)))
    assert (schedule.noise[0], schedule.noise[-1]) == pytest.approx((0.002, 80.0))


def test_flow_mixes_as_in_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    schedule = schedulers.from_config(json.loads(theirs.to_json_string()))
    x0, eps = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    expected = theirs.scale_noise(x0, torch.tensor([250.0]), eps)
    torch.testing.assert_close(schedule.add_noise(x0, eps, 250), expected)
    assert schedule.time[250] == 250


@pytest.mark.parametrize("config", [{"beta_schedule": "quartic"}, {"prediction_type": "velocity"}])
def test_unknown_schedules_are_named(config: dict[str, str]) -> None:
    with pytest.raises(TeacherError, match=r"(beta_schedule|prediction_type): got .* allowed "):
        schedulers.from_config(config)
