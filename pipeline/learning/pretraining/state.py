"""What pretraining keeps: where a run goes on, and the finished teacher's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign import trusted
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.text import read_json
from dreamshard.owner.folders import is_owner
from dreamshard.owner.parts import part_of, sweep
from dreamshard.permissions import apply_umask
from dreamshard.runfolder import write_text
from dreamshard.versions import package_versions
from pipeline.teachers.weights import CARD
from storage.schema import canonical_json

if TYPE_CHECKING:
    from torch import nn

ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
BEGUN = ".begun.json"
"""Beside weights that have no card yet: the recipe of the run that is putting them there."""
NOT_THE_WEIGHTS = (
    *("out", "run_dir", "overwrite", "licence", "device", "threads"),
    *("checkpoint_every", "sample_every", "num_samples", "sample_steps"),
    *("distance_every", "distance_samples", "distance_extractor"),
)
"""Settings that do not change the trained weights (threads and devices: but for rounding)."""


def recipe_key(settings: Mapping[str, Any], source: Mapping[str, object]) -> str:
    """Return the SHA-256 that two pretrainings share if they would train the same teacher.

    Args:
        settings: the whole configuration as plain values.
        source: fingerprint of the images; it stands for the settings of their source.
    """
    settings = {name: v for name, v in settings.items() if name not in NOT_THE_WEIGHTS}
    if not settings["crop"]:  # teachers trained before there was one keep their key
        settings.pop("crop")
    if not settings["image"]["width"]:
        settings["image"] = {k: v for k, v in settings["image"].items() if k != "width"}
    if path := settings["unet"]["config"]:  # the file counts, not its name
        settings["unet"] = read_json(Path(path))
    text = canonical_json({"algorithm": ALGORITHM, **settings, "source": dict(source)})
    return hashlib.sha256(text.encode()).hexdigest()


def find_teacher(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the card of the finished teacher in a folder; None if there is nothing.

    Weights that a run of the same recipe was putting there when it was killed are nothing.

    Raises:
        ConfigError: another teacher is there.
    """
    try:
        card = read_json(folder / CARD, infinite=True)
        if not isinstance(card, dict):
            raise ValueError("no object")
    except (CannotReadError, ValueError):
        if (folder / WEIGHTS).exists() and not _begun(folder, key):
            raise _occupied(folder, "weights without a card") from None
        return None
    if card.get("recipe_key") == key and (folder / WEIGHTS).is_file():
        return card
    raise _occupied(folder, "a teacher trained with other settings or images")


def _begun(folder: Path, key: str) -> bool:
    """Tell whether what lies in a folder is what a run of a recipe had begun to put there."""
    try:
        return read_json(folder / BEGUN).get("recipe_key") == key
    except (CannotReadError, ValueError, AttributeError):
        return is_owner(folder / "run", "pretrain", {"recipe": key})


def save_network(
    folder: Path, module: nn.Module, *, scheduler: Mapping[str, Any], key: str, dtype: str
) -> int:
    """Write a teacher's folder but for its card; return how many weights there are.

    Args:
        folder: laid out as diffusers does.
        module: a `UNet2DModel` with the averaged weights.
        scheduler: config of the scheduler that goes with it.
        key: of the recipe.
        dtype: number format of the weights, as torch names it.
    """
    import torch
    from safetensors.torch import save_file

    from pipeline.learning.checkpoint import flush

    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_text(folder / BEGUN, json.dumps({"recipe_key": key}) + "\n")
    (folder / CARD).unlink(missing_ok=True)
    kind = trusted.attribute(torch, dtype, allowed=("float32", "bfloat16", "float16"))
    weights = {
        name: tensor.to(kind if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    part = part_of(folder / WEIGHTS)
    save_file(weights, part, metadata={"format": "pt"})
    apply_umask(part)
    flush(part)
    part.replace(folder / WEIGHTS)
    write_text(folder / "config.json", module.to_json_string())  # type: ignore[operator]
    scheduler_text = json.dumps(dict(scheduler), indent=2) + "\n"
    write_text(folder / "scheduler" / "scheduler_config.json", scheduler_text)
    return sum(tensor.numel() for tensor in weights.values())


def save_card(folder: Path, card: Mapping[str, object]) -> None:
    """Write a teacher's card, which comes last and marks all the run has made as whole.

    Args:
        folder: the teacher's.
        card: licence, settings, where the weights come from; the recipe key among it.
    """
    whole = {**card, "made_with": package_versions(("torch", "diffusers", "numpy"))}
    write_text(folder / CARD, json.dumps(whole, indent=2) + "\n")
    (folder / BEGUN).unlink(missing_ok=True)


def clear(folder: Path, run_dir: Path, key: str) -> None:
    """Remove what a run that was killed after its teacher's card has left."""
    from pipeline.learning.checkpoint import forget

    (folder / BEGUN).unlink(missing_ok=True)
    for place in (folder, folder / "scheduler"):
        for name in (WEIGHTS, CARD, BEGUN, "config.json", "scheduler_config.json"):
            sweep(place, name=name)
    if is_owner(run_dir, "pretrain", {"recipe": key}):
        sweep(run_dir)
        forget(run_dir)


def resume_point(run_dir: Path, key: str, steps: int) -> tuple[int, Path | None]:
    """Return the steps done and the checkpoint of a run; 0 and None at its start.

    Raises:
        DataError: the checkpoint is damaged, or an older version's.
        ConfigError: it belongs to other settings.
    """
    from pipeline.learning.checkpoint import checkpoints, damaged, read_state

    if (old := run_dir / "checkpoint.pt").exists():
        raise DataError(f"{old}: of an older version of dreamshard. Delete it to start again.")
    if not (known := checkpoints(run_dir)):
        return 0, None
    state = read_state(known[-1])
    if state.get("key") != key:
        got = "of a run with other settings or images"
        problem = Problem(str(known[-1]), got, "this run's", "Delete it, or set run_dir.")
        raise ConfigError(problem)
    if state["step"] > steps:
        raise damaged(known[-1], f"{state['step']} steps done of {steps}")
    return int(state["step"]), known[-1]


def _occupied(folder: Path, what: str) -> ConfigError:
    hint = "Choose another --out, or replace it with --overwrite true."
    return ConfigError(Problem("out", f"{folder}, which holds {what}", "a folder of its own", hint))
