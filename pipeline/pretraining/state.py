"""What pretraining keeps: averaged weights, checkpoints, and the finished teacher's folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.config import to_dict
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.permissions import apply_umask
from dreamshard.runfolder import write_text
from dreamshard.versions import package_versions
from pipeline.pretrain_config import PretrainConfig
from pipeline.teachers.families import CARD
from storage.schema import canonical_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
NOT_THE_WEIGHTS = (
    *("out", "run_dir", "overwrite", "licence", "device", "threads"),
    *("checkpoint_every", "sample_every", "num_samples", "sample_steps"),
    *("distance_every", "distance_samples", "distance_extractor"),
    "compile",
)
"""Settings that do not change the trained weights (threads and devices: but for rounding)."""


def recipe_key(config: PretrainConfig, source: Mapping[str, object]) -> str:
    """Return the SHA-256 that two pretrainings share if they would train the same teacher.

    Args:
        source: fingerprint of the images; it stands for `config.source`.
    """
    settings = {name: v for name, v in to_dict(config).items() if name not in NOT_THE_WEIGHTS}
    image = settings["image"]
    if config.minutes is None:
        settings.pop("minutes")
    else:
        settings.pop("steps")
    if config.draws == "host":
        settings.pop("draws")
    if not config.crop:  # teachers trained before there was one keep their key
        settings.pop("crop")
    if isinstance(image, dict) and not config.image.width:
        image.pop("width")
    unet = settings["unet"]
    if isinstance(unet, dict) and unet.get("config"):  # the file counts, not its name
        text = Path(str(unet["config"])).read_text(encoding="utf-8")
        settings["unet"] = json.loads(text)
    settings["source"] = dict(source)
    text = canonical_json({"algorithm": ALGORITHM, **settings})
    return hashlib.sha256(text.encode()).hexdigest()


def find_teacher(config: PretrainConfig, key: str) -> dict[str, Any] | None:
    """Return the card of the finished teacher in `out` if it is the one asked for.

    Raises: ConfigError if another teacher is there and `overwrite` is off.
    """
    folder = Path(config.out)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        if (folder / WEIGHTS).exists() and not config.overwrite:
            raise _occupied(folder, "weights without a card") from None
        return None
    if card.get("recipe_key") == key and (folder / WEIGHTS).is_file():
        return None if config.overwrite else card
    if not config.overwrite:
        raise _occupied(folder, "a teacher trained with other settings or images")
    return None


def save_teacher(
    config: PretrainConfig,
    module: nn.Module,
    *,
    scheduler: Mapping[str, Any],
    card: Mapping[str, object],
) -> Path:
    """Write the teacher's folder; its card comes last and marks it as whole.

    Args:
        module: a `UNet2DModel` with the averaged weights.
        scheduler: config of the scheduler that goes with it.
        card: where the weights come from; the recipe key among it.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(config.out)
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    dtype = getattr(torch, config.weights_dtype)
    state = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    part = folder / f".{WEIGHTS}.{os.getpid()}.partial"
    save_file(state, part, metadata={"format": "pt"})
    apply_umask(part)
    _flush(part)
    part.replace(folder / WEIGHTS)
    write_text(folder / "config.json", module.to_json_string())  # type: ignore[operator]
    scheduler_text = json.dumps(dict(scheduler), indent=2) + "\n"
    write_text(folder / "scheduler" / "scheduler_config.json", scheduler_text)
    head = {"licence": config.licence, "parameters": sum(t.numel() for t in state.values())}
    versions = package_versions(("torch", "diffusers", "numpy"))
    whole = {**head, **card, "settings": to_dict(config), "made_with": versions}
    write_text(folder / CARD, json.dumps(whole, indent=2) + "\n")
    return folder


class Average:
    """Keep an exponential moving average of a module's weights, warmed up.

    Args:
        module: whose weights are averaged; `self.module` is the copy that holds the average.
        decay: final decay, 0 .. 1; at step s it is min(decay, (1 + s) / (10 + s)).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        import copy

        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._decay = decay
        self._theirs: list[Tensor] = list(module.parameters())
        self._ours: list[Tensor] = list(self.module.parameters())

    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 0)."""
        import torch

        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)  # pyright: ignore


def save_checkpoint(path: Path, *, step: int, key: str, parts: Mapping[str, Any]) -> None:
    """Write everything a run needs to go on, whole or not at all."""
    import torch

    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    torch.save({"step": step, "key": key, "parts": dict(parts)}, part)
    _flush(part)
    part.replace(path)


def read_checkpoint(path: Path, key: str) -> tuple[int, dict[str, Any]] | None:
    """Return (steps done, parts) of a checkpoint of the same recipe, or None if there is none.

    Raises:
        DataError: it is damaged.
        ConfigError: it belongs to other settings.
    """
    import pickle

    import torch

    if not path.exists():
        return None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        step, theirs, parts = int(value["step"]), str(value["key"]), dict(value["parts"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: damaged. Delete it to start again.") from error
    if theirs != key:
        got = "of a run with other settings or images"
        raise ConfigError(Problem(str(path), got, "this run's", "Delete it, or set run_dir."))
    return step, parts


def save_grid(images: np.ndarray, path: Path, *, enlarge_to: int = 48) -> None:
    """Write images uint8 (N, H, W, 3) as one PNG, a square grid with small ones enlarged."""
    import numpy as np
    from PIL import Image

    count, height, width, _ = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    times = max(1, enlarge_to // max(height, width))
    grid = np.full((rows, columns, height + 1, width + 1, 3), 255, np.uint8)
    for place, image in enumerate(images):
        grid[place // columns, place % columns, :height, :width] = image
    flat = grid.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), 3)
    flat = flat.repeat(times, 0).repeat(times, 1)
    part = path.with_name(f".{path.stem}.{os.getpid()}.png")
    Image.fromarray(flat).save(part)
    part.replace(path)


def restore(parts: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Load each part of a checkpoint into the object of the same name."""
    for name, target in targets.items():
        target.load_state_dict(parts[name])


def _occupied(folder: Path, what: str) -> ConfigError:
    hint = "Choose another --out, or replace it with --overwrite true."
    return ConfigError(Problem("out", f"{folder}, which holds {what}", "a folder of its own", hint))


def _flush(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def cpu_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
