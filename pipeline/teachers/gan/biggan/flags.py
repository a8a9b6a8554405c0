"""What a BigGAN generator's weights do not tell: flags of the official code, and where they are.

Given as settings they win. Otherwise they are read from the `state_dict*.pth` that the official
code writes beside the weights. Without one, what the file shows decides: BigBiGAN in its name or
its folder's (epsilons 1e-4, no classes), no log of the spectral norms (`sv0`: converted from
TensorFlow, 1e-4), or a name of the official code's (its ImageNet scripts'). Others are asked about:
BigBiGAN's tensors have BigGAN's names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Scalar

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
NAME = re.compile(r"(G(_ema)?|D)(?P<suffix>(_.*)?)\.[a-z]+$")
DISCRIMINATOR: dict[str, Scalar] = {"SN_eps": 0.0}
"""Official flags of a discriminator that may be given; 0: find out."""


def find_flags(
    file: Path, names: Mapping[str, Any], settings: Mapping[str, Scalar]
) -> tuple[dict[str, Any], tuple[Flag, ...]]:
    """Gather the flags of a checkpoint.

    Args:
        file: the weights.
        names: those of the tensors in it.
        settings: as `SETTINGS`, with the request's class_label.

    Returns:
        BN_eps, SN_eps and z_var, with what else is known, and the source of each.

    Raises:
        ConfigError: settings out of range, or needed and missing.
        TeacherError: a record beside the weights that cannot be used.
    """
    given = _given(settings)
    record = {} if set(EPS) <= set(given) else _record(file)
    assumed, whose, source = _assumed(file, names)
    if not record and not assumed and (problems := _asked(file, given, settings)):
        raise ConfigError(problems)
    known = {"z_var": 1.0, **assumed, **record, **given}
    flags = []
    for name, value in known.items():
        if name in given:
            flags.append(Flag(name=name, value=value, source="user"))
        elif name in record:
            flags.append(Flag(name=name, value=value, source="file", whose=_beside(file).name))
        elif name in assumed:
            flags.append(Flag(name=name, value=value, source=source, whose=whose))
        else:
            flags.append(official(name, value, record=_beside(file).name if record else ""))
    return known, tuple(flags)


def find_discriminator_flags(
    file: Path, settings: Mapping[str, Scalar]
) -> tuple[float, tuple[Flag, ...]]:
    """Find the one flag of a discriminator that its weights do not tell: SN_eps.

    Returns and raises as `find_flags`.
    """
    given = _given({"SN_eps": settings["SN_eps"]})
    if given:
        flag = Flag(name="SN_eps", value=given["SN_eps"], source="user")
    elif record := _record(file):
        if "SN_eps" not in record:
            raise TeacherError(f"{_beside(file)}: holds no SN_eps. Give settings.SN_eps.")
        whose = _beside(file).name
        flag = Flag(name="SN_eps", value=record["SN_eps"], source="file", whose=whose)
    else:
        flag = Flag(
            name="SN_eps",
            value=EPS["SN_eps"],
            source="default",
            whose="the official ImageNet scripts'",
        )
    return float(flag.value or 0.0), (flag,)


def official(name: str, value: Scalar, *, record: str) -> Flag:
    """Say that a flag is the official code's default; it is no guess where its record is there.

    Args:
        record: name of the file that the official code kept beside the weights, "" for none.
    """
    if record:
        return Flag(name=name, value=value, source="file", whose=f"{record}, which does not say it")
    return Flag(name=name, value=value, source="default", whose="BigGAN-PyTorch's")


def _assumed(
    file: Path, names: Mapping[str, Any]
) -> tuple[dict[str, Any], str, Literal["file", "default"]]:
    """Return flags by what the file itself shows, whose they are, and how sure that is."""
    tensorflow = dict.fromkeys(EPS, TENSORFLOW_EPS)
    if any("bigbigan" in part.lower() for part in (file.name, file.parent.name)):
        return {**tensorflow, "class_cond": False}, "BigBiGAN's, by its name", "file"
    if not any(name.endswith(".sv0") for name in names):
        return tensorflow, "weights converted from TensorFlow", "default"
    if NAME.match(file.name):
        return dict(EPS), "the official ImageNet scripts'", "default"
    return {}, "", "default"


def _asked(file: Path, given: Mapping[str, Any], settings: Mapping[str, Scalar]) -> list[Problem]:
    """List what a file of an unknown origin has to be told with."""
    hint = (
        f"{file.name} has no state_dict*.pth beside it and no name of an official code's. BigGAN: "
        "1e-5, 1e-6 and true; BigBiGAN: 1e-4, 1e-4 and false."
    )
    problems = [
        Problem(f"settings.{name}", "nothing", "a number such as 1e-4", hint)
        for name in EPS
        if name not in given
    ]
    if "class_cond" not in given and settings.get("class_label") is None:
        allowed = "true | false (whether it was trained with classes)"
        problems.append(Problem("settings.class_cond", "nothing", allowed, hint))
    return problems


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


def _beside(file: Path) -> Path:
    """Return where the official code keeps the flags of a file."""
    match = NAME.match(file.name)
    return file.with_name(f"state_dict{(match['suffix'] or '') if match else ''}.pth")


def _record(file: Path) -> dict[str, Any]:
    """Read the flags that the official code keeps beside the weights; {} if there are none."""
    beside = _beside(file)
    if not beside.is_file():
        return {}
    value = weights.read_plain(beside, passive=("torch.nn.modules.activation.ReLU",))
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
