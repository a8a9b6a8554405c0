"""Schedules out of diffusers' scheduler configs: the classes that have a rule, key by key.

A scheduler's class says which forward process its network was trained on. A class without a rule is
refused: taken for another, it would give other noise at every timestep, and other features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamshard.errors import TeacherError
from pipeline.teachers.diffusion import keys, schedules
from pipeline.teachers.diffusion.keys import Rule
from pipeline.teachers.diffusion.schedules import Schedule

MAX_STEPS = 100_000
DDPM_BETAS = ("linear", 1e-4, 0.02)
STABLE_BETAS = ("scaled_linear", 0.00085, 0.012)
STABLE_LINEAR = ("linear", 0.00085, 0.012)

VARIANCE_PRESERVING: dict[str, tuple[str, float, float]] = {
    **dict.fromkeys(
        (
            "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
            "DDIMInverseScheduler", "PNDMScheduler", "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
            "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
            "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler",
            "RePaintScheduler",
        ),
        DDPM_BETAS,
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), STABLE_BETAS),
    **dict.fromkeys(
        (
            "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
            "DPMSolverSDEScheduler",
        ),
        STABLE_LINEAR,
    ),
}  # fmt: skip
"""Classes whose networks were trained on `x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps` -> the betas a
class takes where its config is silent: schedule, first, last."""
KARRAS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOWS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
KNOWN = (*VARIANCE_PRESERVING, *KARRAS, *FLOWS)
OTHERS = {
    "CMStochasticIterativeScheduler": "a consistency model has noise levels of its own; take the "
    "diffusion network it was distilled from",
    "ScoreSdeVeScheduler": "a score SDE adds noise without fading the image; take a DDPM network",
    "ScoreSdeVpScheduler": "a score SDE is told a continuous time; take a DDPM network",
    "KarrasVeScheduler": "a score SDE adds noise without fading the image; take a DDPM network",
    "IPNDMScheduler": "its networks have a cosine process of their own; take a DDPM network",
    "DDPMWuerstchenScheduler": "it belongs to Wuerstchen's own networks; take Stable Diffusion",
    "UnCLIPScheduler": "it belongs to unCLIP's own networks; take Stable Diffusion",
    "SCMScheduler": "its networks predict a trigonometric flow; take the flow-matching one",
}
"""Classes without a rule -> why, and the nearest network that works."""

_SAMPLING = (
    "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
    "sample_max_value", "variance_type", "set_alpha_to_one", "skip_prk_steps", "timestep_spacing",
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
    "interpolation_type", "final_sigmas_type", "euler_at_final", "lower_order_final",
    "solver_order", "solver_type", "solver_p", "algorithm_type", "lambda_min_clipped", "predict_x0",
    "disable_corrector", "predictor_order", "corrector_order", "tau_func", "eta",
    "noise_sampler_seed",
    "original_inference_steps", "timestep_scaling", "flow_shift", "use_dynamic_shifting",
    "time_shift_type", "shift_terminal", "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "stochastic_sampling", "scale_factors", "upscale_mode", "tensor_format",
)  # fmt: skip
"""Keys of the sampler alone; ours has settings of its own."""

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine", "sigmoid")
SCHEDULER_KEYS: dict[str, Rule] = {
    **dict.fromkeys(_SAMPLING, keys.idle),
    "num_train_timesteps": keys.whole(1, MAX_STEPS),
    "beta_start": keys.number(0, 0.999),
    "beta_end": keys.number(0, 0.999),
    "beta_schedule": keys.words(*_BETAS),
    "trained_betas": keys.either(
        keys.words(None), keys.several(keys.number(0, 0.9999), most=MAX_STEPS)
    ),
    "prediction_type": keys.words("epsilon", "sample", "v_prediction"),
    "predict_epsilon": keys.flag,
    "rescale_betas_zero_snr": keys.flag,
    "steps_offset": keys.whole(0, MAX_STEPS),
    "timestep_values": keys.words(None),
    # another process under the same name
    "timestep_type": keys.words("discrete"),
    "sigma_min": keys.words(None),
    "sigma_max": keys.words(None),
    "use_flow_sigmas": keys.words(False),
}
"""What a variance-preserving scheduler's config may say; samplers pass each other's keys on."""
KARRAS_KEYS: dict[str, Rule] = {
    **dict.fromkeys(_SAMPLING, keys.idle),
    "num_train_timesteps": keys.whole(2, MAX_STEPS),
    "sigma_min": keys.number(1e-9, 1e6),
    "sigma_max": keys.number(1e-9, 1e6),
    "sigma_data": keys.number(1e-9, 1e6),
    "rho": keys.number(0.1, 1000),
    "sigma_schedule": keys.words("karras"),
    "prediction_type": keys.words("epsilon"),
}
FLOW_KEYS: dict[str, Rule] = {
    **dict.fromkeys(_SAMPLING, keys.idle),
    "use_karras_sigmas": keys.idle,
    "num_train_timesteps": keys.whole(1, MAX_STEPS),
    "shift": keys.number(1e-6, 1e6),
    "invert_sigmas": keys.words(False),
    "prediction_type": keys.words("flow_prediction"),
}


def keys_of(kind: str) -> dict[str, Rule]:
    """Return the table of a class in `KNOWN`."""
    if kind in FLOWS:
        return FLOW_KEYS
    return KARRAS_KEYS if kind in KARRAS else SCHEDULER_KEYS


def from_config(
    config: Mapping[str, Any],
    *,
    where: str = "scheduler_config.json",
    allowed: tuple[str, ...] = KNOWN,
    time_scale: float = 1000.0,
) -> Schedule:
    """Build the schedule that a diffusers scheduler config describes.

    Args:
        config: the parsed scheduler_config.json; fields that are missing take their class's
            defaults, and a config without a class is DDPMScheduler's.
        where: the file, for messages.
        allowed: classes that fit the network.
        time_scale: flow only, what a network is told of pure noise.

    Raises: TeacherError for a class without a rule, or one that does not fit the network; for a
        key that nobody reads, and a value that is not known.
    """
    kind = str(config.get("_class_name", "DDPMScheduler"))
    if kind not in allowed:
        why = OTHERS.get(kind, "no rule tells how its networks were trained")
        if kind in KNOWN:
            why = "the network is trained another way"
        raise TeacherError(
            f"{where}: _class_name: got {kind:.80}, allowed {', '.join(allowed)} ({why})."
        )
    keys.check(config, keys_of(kind), where=where, what=kind)
    if kind in FLOWS:
        steps, shift = config.get("num_train_timesteps", 1000), config.get("shift", 1.0)
        return schedules.flow(steps, shift=float(shift), time_scale=time_scale)
    if kind in KARRAS:
        names = ("sigma_min", "sigma_max", "rho", "sigma_data")
        steps = config.get("num_train_timesteps", 1000)
        told = {name: float(config[name]) for name in names if name in config}
        if told.get("sigma_min", 0.002) >= told.get("sigma_max", 80.0):
            raise TeacherError(f"{where}: sigma_min: got one not below sigma_max.")
        return schedules.edm(steps, **told)
    return _variance_preserving(config, VARIANCE_PRESERVING[kind], where=where)


def _variance_preserving(
    config: Mapping[str, Any], usual: tuple[str, float, float], *, where: str
) -> Schedule:
    name, start, end = (
        config.get(key, default)
        for key, default in zip(("beta_schedule", "beta_start", "beta_end"), usual, strict=True)
    )
    steps = int(config.get("num_train_timesteps", 1000))
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif name == "linear":
        betas = np.linspace(start, end, steps)
    elif name == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2
    elif name == "sigmoid":
        betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    else:
        betas = schedules.cosine_betas(steps)
    # Configs before prediction_type existed said it with a flag.
    legacy = "sample" if config.get("predict_epsilon") is False else "epsilon"
    schedule = schedules.from_betas(
        betas,
        prediction=str(config.get("prediction_type", legacy)),
        zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        offset=int(config.get("steps_offset", 0)),
    )
    if not (np.isfinite(schedule.signal).all() and np.isfinite(schedule.noise).all()):
        raise TeacherError(f"{where}: its betas give noise that is not finite. Correct the file.")
    return schedule
