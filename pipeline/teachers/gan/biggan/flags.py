"""What a BigGAN generator's weights do not tell: flags of the official code, and where they are.

Given as settings they win. Otherwise they are read from the `state_dict*.pth` that the official
code writes beside the weights. Without one, epsilons are those of the official ImageNet scripts, or
1e-4 for weights converted from TensorFlow, which keep no log of the spectral norms (`sv0`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar

EPS = {"BN_eps": 1e-5, "SN_eps": 1e-6}
"""Of the official ImageNet scripts."""
TENSORFLOW_EPS = 1e-4
SETTINGS: dict[str, Scalar] = {
    "BN_eps": 0.0,
    "SN_eps": 0.0,
    "z_var": 0.0,
    "hier": None,
    "class_cond": None,
    "cross_replica": None,
}
"""Official flags that may be given; 0 or nothing: find out.

`z_var` is, against its name, the standard deviation of z, as in the official code. `cross_replica:
false` multiplies gains where the official evaluation of such networks adds them (its issue 96).
"""
ACTIVATIONS = ("relu", "inplace_relu", "ir")
NAME = re.compile(r"G(_ema)?(?P<suffix>(_.*)?)\.[a-z]+$")


def find_flags(
    file: Path, names: Mapping[str, Any], settings: Mapping[str, Scalar]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Gather the flags of a checkpoint.

    Args:
        file: the weights.
        names: those of the tensors in it.
        settings: as `SETTINGS`.

    Returns:
        BN_eps, SN_eps and z_var, with what else is known, and sentences on what was guessed.

    Raises:
        ConfigError: settings out of range.
        TeacherError: a record beside the weights that cannot be used.
    """
    given = _given(settings)
    record = {} if set(EPS) <= set(given) else _record(file)
    known = {**record, **given}
    guessed = [name for name in EPS if name not in known]
    tensorflow = not any(name.endswith(".sv0") for name in names)
    eps = dict.fromkeys(EPS, TENSORFLOW_EPS) if tensorflow else EPS
    notes = ()
    if guessed:
        whose = (
            "weights converted from TensorFlow" if tensorflow else "the official ImageNet scripts"
        )
        shown = ", ".join(f"{name} {eps[name]:g}" for name in guessed)
        notes = (f"{shown}: guessed, as those of {whose} (no state_dict*.pth beside the weights)",)
    return {"z_var": 1.0, **eps, **known}, notes


def _given(settings: Mapping[str, Scalar]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    problems: list[Problem | str] = []
    for name, default in SETTINGS.items():
        value = settings.get(name, default)
        if default is None and type(value) is bool:
            given[name] = value
        elif default is None and value is not None:
            problems.append(Problem(f"settings.{name}", repr(value), "true | false"))
        elif type(value) in (int, float) and value:
            number = float(value)  # pyright: ignore[reportArgumentType]
            given[name] = number
            if not 0 < number < (math.inf if name == "z_var" else 1):
                allowed = "above 0" if name == "z_var" else "above 0, below 1, such as 1e-4"
                problems.append(Problem(f"settings.{name}", str(value), f"{allowed} (0: find out)"))
    if problems:
        raise ConfigError(problems)
    return given


def _record(file: Path) -> dict[str, Any]:
    """Read the flags that the official code keeps beside the weights; {} if there are none."""
    match = NAME.match(file.name)
    beside = file.with_name(f"state_dict{match['suffix']}.pth") if match else None
    if beside is None or not beside.is_file():
        return {}
    value = weights.read_plain(beside, allowed=_harmless())
    config = value.get("config") if isinstance(value, Mapping) else None
    if not isinstance(config, Mapping):
        raise TeacherError(
            f"{beside}: holds no `config`. Give settings.BN_eps and settings.SN_eps."
        )
    activation = config.get("G_nl", ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        raise TeacherError(f"{beside}: G_nl: got {activation}, allowed {', '.join(ACTIVATIONS)}.")
    known: dict[str, Any] = {}
    for name in ("BN_eps", "SN_eps", "z_var"):
        number = config.get(name)
        if name not in config:
            continue
        if not isinstance(number, int | float) or not 0 <= float(number) < math.inf:
            raise TeacherError(
                f"{beside}: {name}: got {number!r}, allowed a number. Give it as a setting."
            )
        known[name] = float(number)
    for name in ("hier", "class_cond", "constant_conditioning"):
        if type(config.get(name)) is bool:
            known[name] = config[name]
    return known


def _harmless() -> list[Any]:
    """List the classes that an official record may hold: activations, and numpy's numbers."""
    import torch

    scalar: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = (np.dtypes.Float32DType, np.dtypes.Float64DType, np.dtypes.Int64DType)
    return [torch.nn.ReLU, np.dtype, *dtypes, *((scalar, name) for name in names)]
