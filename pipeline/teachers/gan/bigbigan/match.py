"""Find the place of an encoder's variables by their order and their shapes; see `convert.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import TeacherError
from pipeline.teachers.gan.bigbigan.layout import BOTTLENECK, RESNET, REVNET

Arrays = dict[str, np.ndarray]
AVERAGE = re.compile(r"/(ExponentialMovingAverage|ema_?[\w.]*)$")
ROLES = {
    "mean": re.compile(r"mean"),
    "var": re.compile(r"var"),
    "weight": re.compile(r"gamma|scale|(^|_)w$"),
    "bias": re.compile(r"beta|offset|bias|(^|_)b$"),
}
"""Part of a norm -> what the last part of its variable's name looks like, tried in this order."""


@dataclass(frozen=True)
class Layers:
    """An encoder's layers by kind, each in the order in which the graph was built.

    Args:
        convolutions: (scope, kernel (h, w, in, out)).
        norms: (scope, arrays by role).
        linears: (scope, kernel (in, out), bias (out,)).
    """

    convolutions: list[tuple[str, np.ndarray]]
    norms: list[tuple[str, Arrays]]
    linears: list[tuple[str, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Told:
    """What no variable says.

    Args:
        units: number of units per stage.
        latent: numbers of z.
        shortcut: whether a shortcut's layer was built first or last in its block.
    """

    units: tuple[int, ...] = (3, 4, 6, 3)
    latent: int = 120
    shortcut: str = "first"


def sort_layers(variables: Mapping[str, np.ndarray], *, scope: str, where: str) -> Layers:
    """Group an encoder's variables into layers.

    Args:
        variables: name -> value, in the order in which the graph was built.
        scope: part of the names of the encoder's variables, whatever its case.
        where: names the file in errors.

    Raises: TeacherError for an array that is part of no layer.
    """
    groups: dict[str, Arrays] = {}
    for name in sorted(variables, key=lambda name: bool(AVERAGE.search(name))):  # averages win
        own, value = AVERAGE.sub("", name.removesuffix(":0")), variables[name]
        if scope.lower() in own.lower() and value.ndim and value.dtype.kind == "f":
            at, _, last = own.rpartition("/")
            groups.setdefault(at, {})[last] = value.astype(np.float32)
    if not groups:
        raise TeacherError(
            f"{where}: no variable has {scope!r} in its name; it has "
            f"{', '.join(list(variables)[:5])}. Say what the encoder's have with --scope."
        )
    layers = Layers([], [], [])
    for at, arrays in groups.items():
        kernels = [value for value in arrays.values() if value.ndim in (2, 4)]
        others = [value for value in arrays.values() if value.ndim == 1]
        if len(kernels) + len(others) < len(arrays) or len(kernels) > 1:
            shapes = {name: value.shape for name, value in arrays.items()}
            raise TeacherError(f"{where}: {at}: got {shapes}, allowed one kernel or one norm.")
        if kernels and kernels[0].ndim == 4 and not others:
            layers.convolutions.append((at, kernels[0]))
        elif kernels and kernels[0].ndim == 2 and len(others) == 1:
            layers.linears.append((at, kernels[0], others[0]))
        elif not kernels:
            layers.norms.append((at, _norm(at, arrays, where=where)))
        else:
            raise TeacherError(
                f"{where}: {at}: got a kernel of shape {kernels[0].shape} with {len(others)} "
                "vectors, allowed none for a convolution and one for a linear layer."
            )
    return layers


def _norm(at: str, arrays: Arrays, *, where: str) -> Arrays:
    by_role: Arrays = {}
    for name, value in arrays.items():
        role = next((role for role, looks in ROLES.items() if looks.search(name)), None)
        if role is None or role in by_role:
            raise TeacherError(
                f"{where}: {at}/{name}: it is no mean, variance, scale or offset, or the second."
            )
        by_role[role] = value
    if not {"mean", "var"} <= set(by_role):
        raise TeacherError(f"{where}: {at}: a norm of {', '.join(arrays)}, without statistics.")
    return by_role


def arrange(layers: Layers, told: Told, *, where: str) -> tuple[Arrays, str]:
    """Give layers the names and shapes of our file.

    Returns:
        name -> float32 array, and the architecture.

    Raises: TeacherError for the first layer that does not fit its place.
    """
    count = sum(told.units)
    architectures = {1 + 3 * count + len(told.units): RESNET, 1 + 3 * count: REVNET}
    architecture = architectures.get(len(layers.convolutions), "")
    if not architecture:
        allowed = " or ".join(f"{number} ({name})" for number, name in architectures.items())
        raise TeacherError(
            f"{where}: got {len(layers.convolutions)} convolutions, allowed {allowed}. Are "
            "--scope and --units right?"
        )
    if len(layers.norms) < 3 * count + 1:
        raise TeacherError(
            f"{where}: got {len(layers.norms)} norms, allowed at least {3 * count + 1}."
        )
    tensors: Arrays = {}
    convolutions, norms = iter(layers.convolutions), iter(layers.norms)
    for name, shape in _convolutions(layers, told, architecture):
        at, kernel = next(convolutions)
        _fits(at, kernel.shape, name, shape, where=where)
        tensors[name] = kernel.transpose(3, 2, 0, 1)
    for name, channels in _norms(tensors, told):
        at, arrays = next(norms)
        _fits(at, arrays["mean"].shape, name, (channels,), where=where)
        tensors |= _named(name, arrays)
    width = len(tensors["norm.mean"])
    rest = list(norms)
    plain = [
        each for each in rest if set(each[1]) == {"mean", "var"} and len(each[1]["mean"]) == width
    ]
    if len(plain) == 1:
        tensors |= {f"crelu.{role}": value for role, value in plain[0][1].items()}
        rest.remove(plain[0])
    tensors |= _head(layers, told, width, rest, where=where)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}, architecture


def _convolutions(
    layers: Layers, told: Told, architecture: str
) -> list[tuple[str, tuple[int, ...]]]:
    """List our names of the convolutions, with the shapes (h, w, in, out) that they must have."""
    stem = layers.convolutions[0][1].shape[-1]
    filters = stem // BOTTLENECK if architecture == REVNET else stem
    listed: list[tuple[str, tuple[int, ...]]] = [("stem.weight", (7, 7, 3, stem))]
    into = stem
    for stage, count in enumerate(told.units):
        out = BOTTLENECK * filters * 2**stage
        half = out // 2 if architecture == REVNET else out
        inner = half // BOTTLENECK
        for unit in range(count):
            at = f"stages.{stage}.{unit}"
            seen = half if architecture == REVNET else into
            own = [
                (f"{at}.conv1.weight", (1, 1, seen, inner)),
                (f"{at}.conv2.weight", (3, 3, inner, inner)),
                (f"{at}.conv3.weight", (1, 1, inner, half)),
            ]
            if architecture == RESNET and not unit:
                place = 0 if told.shortcut == "first" else len(own)
                own.insert(place, (f"{at}.shortcut.weight", (1, 1, into, out)))
            listed += own
            into = out
    return listed


def _norms(tensors: Mapping[str, np.ndarray], told: Told) -> list[tuple[str, int]]:
    """List our names of the norms, with their channels, which the convolutions tell."""
    listed = []
    for stage, count in enumerate(told.units):
        for unit in range(count):
            at = f"stages.{stage}.{unit}"
            for number in range(1, 4):
                channels = tensors[f"{at}.conv{number}.weight"].shape[1]
                listed.append((f"{at}.norm{number}", channels))
    last = tensors["stem.weight"].shape[0] * 2 ** (len(told.units) - 1)
    resnet = "stages.0.0.shortcut.weight" in tensors
    return [*listed, ("norm", last * (BOTTLENECK if resnet else 1))]


def _head(
    layers: Layers, told: Told, width: int, norms: list[tuple[str, Arrays]], *, where: str
) -> Arrays:
    """Name the multilayer perceptron's layers and the last one."""
    linears = list(layers.linears)
    ends = [kernel.shape[1] for _, kernel, _ in linears]
    if ends[-1:] == [2 * told.latent]:
        last = [linears.pop()]
    elif ends[-2:] == [told.latent, told.latent]:  # mean and standard deviation apart
        last, linears = linears[-2:], linears[:-2]
    else:
        raise TeacherError(
            f"{where}: linear layers to {ends}, which do not end with the {told.latent} means and "
            "standard deviations of z. Is --latent right?"
        )
    tensors: Arrays = {}
    number, now = 0, width
    while linears:
        whole = [kernel.shape for _, kernel, _ in linears[:2]]
        plain = len(whole) == 2 and whole[0][0] == now and whole[1] == (whole[0][1], now)
        names = ["fc1", "fc2"]
        if not plain:
            names.insert(0 if told.shortcut == "first" else 2, "shortcut")
        taken, linears = linears[: len(names)], linears[len(names) :]
        if len(taken) < len(names):
            raise TeacherError(f"{where}: {taken[0][0]}: the last block lacks layers.")
        by_name = dict(zip(names, taken, strict=True))
        hidden, out = by_name["fc1"][1].shape[1], by_name["fc2"][1].shape[1]
        for name, shape in (
            ("fc1", (now, hidden)),
            ("fc2", (hidden, out)),
            ("shortcut", (now, out)),
        ):
            if name in by_name:
                at, kernel, bias = by_name[name]
                _fits(at, kernel.shape, f"head.{number}.{name}", shape, where=where)
                tensors |= _linear(f"head.{number}.{name}", kernel, bias)
        for name, channels in (("norm1", now), ("norm2", hidden)) if norms else ():
            at, arrays = norms.pop(0) if norms else ("nothing", {"mean": np.empty(0)})
            _fits(at, arrays["mean"].shape, f"head.{number}.{name}", (channels,), where=where)
            tensors |= _named(f"head.{number}.{name}", arrays)
        number, now = number + 1, out
    if norms:
        raise TeacherError(f"{where}: {norms[0][0]}: a norm that has no place.")
    for at, kernel, _ in last:
        _fits(at, kernel.shape, "out", (now, kernel.shape[1]), where=where)
    kernel = np.concatenate([kernel for _, kernel, _ in last], axis=1)
    return tensors | _linear("out", kernel, np.concatenate([bias for *_, bias in last]))


def _linear(name: str, kernel: np.ndarray, bias: np.ndarray) -> Arrays:
    return {f"{name}.weight": kernel.T, f"{name}.bias": bias}


def _named(name: str, arrays: Arrays) -> Arrays:
    """Name a norm's arrays; one built without scale or offset has those that change nothing."""
    still = {"weight": np.ones_like(arrays["mean"]), "bias": np.zeros_like(arrays["mean"])}
    return {f"{name}.{role}": value for role, value in {**still, **arrays}.items()}


def _fits(
    at: str, got: tuple[int, ...], name: str, allowed: tuple[int, ...], *, where: str
) -> None:
    if tuple(got) != tuple(allowed):
        raise TeacherError(
            f"{where}: {at}: got shape {tuple(got)}, allowed {tuple(allowed)}, that of {name}. "
            "Were the variables saved in the order of the graph? --shortcut last may help."
        )
