"""BigGAN, BigGAN-deep, BigBiGAN's generator and IC-GAN: `G_ema*.pth` of the official codes.

    teacher:
      kind: biggan
      path: checkpoints/biggan-256/G_ema.pth   # or the folder
      levels: [s32, s16, s8, s4]

Taps are the outputs of the blocks by their official numbers, after attention where there is one
(`blocks.2`; before it, `blocks.2.0`), and the first map, `linear`.

The weights do not tell two small numbers: `settings.BN_eps` and `settings.SN_eps`. Left at 0 they
are read from the `state_dict*.pth` that the official code writes beside the weights; without one,
they are those of its ImageNet scripts. Weights converted from TensorFlow and BigBiGAN's need 1e-4.
BigBiGAN was trained without classes: give `settings.class_label: 0`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import taps, weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.biggan_layout import BigGANLayout, read_layout
from pipeline.teachers.families import licence
from pipeline.teachers.generator import GeneratorDescription, GeneratorTeacher
from pipeline.teachers.taps import Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

EPS = {"BN_eps": 1e-5, "SN_eps": 1e-6}
"""Of the official ImageNet scripts."""
ACTIVATIONS = ("relu", "inplace_relu")
WEIGHTS = "G_ema"


class BigGANTeacher(GeneratorTeacher):
    """Run a BigGAN generator; see the module's text."""

    SETTINGS: Mapping[str, Scalar] = dict.fromkeys(EPS, 0.0)

    @classmethod
    def describe_network(cls, path: Path, settings: Mapping[str, Scalar]) -> GeneratorDescription:
        """Describe the generator in a checkpoint; see `GeneratorTeacher.describe_network`."""
        file = find_file(path)
        layout = read_layout(weights.shapes(file), where=str(file))
        eps, notes = _eps(file, settings)
        found = tuple(block_taps(layout))
        side = layout.image_size
        return GeneratorDescription(
            family="biggan",
            image_size=(side, side),
            taps=found,
            aliases=taps.stride_aliases(tap for tap in found if tap.name.count(".") < 2),
            weights=(file,),
            architecture={**dataclasses.asdict(layout), **eps},
            latent=layout.latent,
            load=lambda dtype: _Loaded(file, layout, eps, dtype),
            classes=layout.classes,
            features=layout.features,
            licence=licence(file.parent),
            notes=notes,
        )


class _Loaded:
    """The network, read and ready."""

    def __init__(
        self, file: Path, layout: BigGANLayout, eps: Mapping[str, float], dtype: torch.dtype
    ) -> None:
        import torch
        from accelerate import init_empty_weights

        from pipeline.teachers.biggan_net import Attention, BigGANGenerator, plain_weights

        with init_empty_weights():
            module = BigGANGenerator(layout, eps=eps["BN_eps"])
        state = plain_weights(weights.read((file,)), layout, eps=eps["SN_eps"])
        weights.load_into(module, state, where=str(file))
        for part in module.modules():  # conditions are told in float32: they are cheap and add up
            if isinstance(part, torch.nn.Conv2d | Attention):
                part.to(dtype)
        self.module: nn.Module = module.eval().requires_grad_(False)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, z: Tensor, labels: Tensor | None, features: Tensor | None) -> Tensor:
        return self.module(z, labels, features)


def find_file(path: Path) -> Path:
    """Return the checkpoint file of a path; a folder holds one `G_ema*.pth`.

    Raises: ConfigError if there is none, or more than one.
    """
    if path.is_file():
        allowed = (*weights.SAFE, *weights.PICKLED)
        if path.suffix not in allowed:
            raise ConfigError(Problem("path", str(path), f"a file of {', '.join(allowed)}"))
        return path
    if not path.is_dir():
        hint = f"Give {WEIGHTS}.pth of BigGAN-PyTorch, or its folder."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    found = sorted(
        p
        for p in path.iterdir()
        if p.name.startswith(WEIGHTS) and p.suffix in weights.PICKLED + weights.SAFE
    )
    found = [p for p in found if not p.name.startswith(f"{WEIGHTS}_optim")]
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or f"no {WEIGHTS}*.pth in {path}"
        raise ConfigError(Problem("path", got, f"one {WEIGHTS}*.pth", "Name the file."))
    return found[0]


def block_taps(layout: BigGANLayout) -> list[Tap]:
    """List what can be recorded, in the order it is computed."""
    side, stride = layout.bottom, layout.image_size // layout.bottom
    found = [Tap("linear", "first", layout.blocks[0].inputs, stride)]
    for number, block in enumerate(layout.blocks):
        side, stride = (2 * side, stride // 2) if block.upsample else (side, stride)
        name = f"blocks.{number}"
        if block.attention:
            found.append(Tap(f"{name}.0", f"{name}.0", block.outputs, stride))
        found.append(Tap(name, f"{name}.{int(block.attention)}", block.outputs, stride))
    return found


def _eps(file: Path, settings: Mapping[str, Scalar]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Choose BN_eps and SN_eps; say where they come from."""
    wrong = {
        name: settings[name]
        for name in EPS
        if isinstance(settings[name], int | float) and not 0 <= float(settings[name]) < 1  # type: ignore[arg-type]
    }
    if wrong:
        raise ConfigError(
            [
                Problem(f"settings.{n}", str(v), "0 (find out) .. 1, such as 1e-4")
                for n, v in wrong.items()
            ]
        )
    given = {name: float(settings[name]) for name in EPS if settings[name]}  # type: ignore[arg-type]
    if len(given) == len(EPS):
        return given, ()
    record = _training_record(file)
    if record is None:
        shown = ", ".join(f"{name} {value:g}" for name, value in {**EPS, **given}.items())
        note = f"{shown}: those of the official ImageNet scripts (weights from TensorFlow: 1e-4)"
        return {**EPS, **given}, (note,)
    told = {name: float(record.get(name, EPS[name])) for name in EPS}
    return {**told, **given}, ()


def _training_record(file: Path) -> dict[str, Any] | None:
    """Read the flags that the official code keeps beside the weights; None if there are none."""
    beside = file.with_name(file.name.replace(WEIGHTS, "state_dict"))
    if not file.name.startswith(WEIGHTS) or not beside.is_file():
        return None
    import pickle

    import torch

    try:
        # The flags hold activation modules; a ReLU holds no more than its flags.
        with torch.serialization.safe_globals([torch.nn.ReLU]):
            config = torch.load(beside, map_location="cpu", weights_only=True)["config"]
        activation = str(config.get("G_nl", "relu"))
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise TeacherError(
            f"{beside}: not the record of a training ({str(error).splitlines()[0][:120]}); nothing "
            "in it was run. Give settings.BN_eps and settings.SN_eps."
        ) from error
    if activation not in ACTIVATIONS:
        raise TeacherError(f"{beside}: G_nl: got {activation}, allowed {', '.join(ACTIVATIONS)}.")
    return config
