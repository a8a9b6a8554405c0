"""What pretraining keeps: where a run goes on, and the finished teacher's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.config import flatten
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign import trusted
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.text import parse_json, read_json
from dreamshard.owner.folders import is_owner
from dreamshard.owner.parts import part_of, sweep
from dreamshard.permissions import apply_umask
from dreamshard.redact import redact
from dreamshard.runfolder import write_text
from dreamshard.versions import package_versions
from pipeline.learning.checkpoint import checkpoints, damaged, flush, forget, read_state
from pipeline.learning.pretraining.config import ENCODER, KINDS
from pipeline.teachers.weights import CARD, digest, find_weights
from storage.schema import canonical_json

if TYPE_CHECKING:
    from torch import nn

ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
GIVE_BACK = "Give that back, or take a way out that is named above."
AT_MOST = 5
"""Settings that are named of those that differ (count)."""
BEGUN = ".begun.json"
"""Beside weights that have no card yet: the recipe of the run that is putting them there."""
NOT_THE_WEIGHTS = (
    *("out", "run_dir", "overwrite", "licence", "device", "threads"),
    *("checkpoint_every", "sample_every", "num_samples", "sample_steps"),
    *("distance_every", "distance_samples", "distance_extractor"),
    *("minutes", "compile"),  # the steps they bought count
)
"""Settings that do not change the trained weights (threads and devices: but for rounding)."""
NOT_OF_DIFFUSION = ("kind", "teacher", "generator", *KINDS, ENCODER)
"""Settings that came with the other kinds: diffusion teachers of before keep their key."""


def recipe_key(
    settings: Mapping[str, Any],
    source: Mapping[str, object],
    *,
    extended: Sequence[Sequence[int]] = (),
) -> str:
    """Return the SHA-256 that two pretrainings share if they would train the same teacher.

    Args:
        settings: the whole configuration as plain values.
        source: fingerprint of the images; it stands for the settings of their source.
        extended: [steps of the whole run before, step it was at] of every time it was extended:
            its learning rate fell, and rose again.
    """
    ruled = (*NOT_THE_WEIGHTS, *NOT_OF_DIFFUSION)
    settings = {name: v for name, v in settings.items() if name not in ruled}
    if not settings["crop"]:  # teachers trained before there was one keep their key
        settings.pop("crop")
    if not settings["image"]["width"]:
        settings["image"] = {k: v for k, v in settings["image"].items() if k != "width"}
    unet = _but_unused(settings["unet"], self_conditioning=False, weights="")
    unused = {"augment": 0.0, "dispersive": 0.0}
    if not settings["objective"].get("dispersive"):
        unused["dispersive_temperature"] = settings["objective"].get("dispersive_temperature")
    settings["objective"] = _but_unused(settings["objective"], **unused)
    if start := unet.pop("weights", ""):  # files count, not their names
        settings["start"] = digest(find_weights(Path(start)))
    settings["unet"] = read_json(Path(unet["config"])) if unet["config"] else unet
    if extended:
        settings["extended"] = [list(times) for times in extended]
    text = canonical_json({"algorithm": ALGORITHM, **settings, "source": dict(source)})
    return hashlib.sha256(text.encode()).hexdigest()


def _but_unused(settings: Mapping[str, Any], **unused: Any) -> dict[str, Any]:
    """Leave out settings that are new and unused: teachers of before keep their key."""
    return {k: v for k, v in settings.items() if k not in unused or v != unused[k]}


def find_teacher(
    folder: Path, run_dir: Path, *, settings: Mapping[str, Any], source: Mapping[str, object]
) -> dict[str, Any] | None:
    """Return the card of the finished teacher in a folder; None if there is something to train.

    Args:
        folder: the teacher's.
        run_dir: where its checkpoints are; without one, a finished teacher cannot be extended.
        settings, source: as in `recipe_key`.

    Weights that a run of the same recipe was putting there when it was killed are nothing.

    Raises:
        ConfigError: another teacher is there, or this one, which cannot be extended.
    """
    try:
        card = read_json(folder / CARD, infinite=True)
        if not isinstance(card, dict):
            raise ValueError("no object")
    except (CannotReadError, ValueError):
        if (folder / WEIGHTS).exists() and not _begun(folder, settings=settings, source=source):
            raise occupied(folder, "weights without a card") from None
        return None
    if not is_same_run(card, settings=settings, source=source):
        what = "a teacher trained with other settings or images"
        other = differences(card, settings=settings, source=source, where=folder / CARD)
        raise ConfigError([*occupied(folder, what).problems, *other])
    if not (folder / WEIGHTS).is_file():
        raise occupied(folder, "a card without its weights")
    before = card.get("steps", settings["steps"])
    if before == settings["steps"]:
        return card
    if not checkpoints(run_dir):
        got = f"{settings['steps']}, and in {run_dir} no checkpoint of the {before} before"
        hint = "Choose another --out, or train it anew with --overwrite true."
        raise ConfigError(Problem("steps", got, str(before), hint))
    return None


def is_same_run(
    record: Mapping[str, Any], *, settings: Mapping[str, Any], source: Mapping[str, object]
) -> bool:
    """Tell whether a card or a checkpoint's state is of this run, which may have more steps now."""
    steps = record.get("steps", settings["steps"])  # older checkpoints do not say
    if not isinstance(steps, int) or steps > settings["steps"]:
        return False
    then, key = {**settings, "steps": steps}, record.get("recipe_key", record.get("key"))
    try:
        return key == recipe_key(then, source, extended=record.get("extended", ()))
    except TypeError:  # no list of lists
        return False


def differences(
    record: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    source: Mapping[str, object],
    where: Path,
) -> list[Problem]:
    """Name what a run is asked for otherwise than a card or a checkpoint of another says.

    Args:
        record: of the other; one without `settings`, an earlier version's, names nothing.
        settings, source: as in `recipe_key`.
        where: names the record.
    """
    told = record.get("settings")
    if not isinstance(told, dict):
        return []
    ruled = {*NOT_THE_WEIGHTS, *NOT_OF_DIFFUSION, "source"}  # images count, not their paths
    if settings["ema"] == "fitted":  # to the minutes: no number that was asked for
        ruled.add("ema")
    had = record.get("steps", told.get("steps"))
    if isinstance(had, int) and had <= settings["steps"]:
        ruled.add("steps")  # a run may be extended
    asked = {name: redact(v, name=name) for name, v in settings.items() if name not in ruled}
    now, then = flatten(asked), flatten(told)
    both = now.keys() & then.keys()  # others came or went with a version
    now, then = ({name: of[name] for name in both} for of in (now, then))
    named = differing(now, then, where=where, hint=GIVE_BACK)
    if record.get("data", source) != source:
        named.append(Problem("source", "other images", f"those of {where}", GIVE_BACK))
    return named


def differing(
    now: Mapping[str, Any], then: Mapping[str, Any], *, where: object, hint: str
) -> list[Problem]:
    """List the settings that differ, the first few.

    Args:
        now: settings asked for, by dotted key.
        then: those of what is there; a key that one of the two lacks differs from None.
        where: names what is there.
        hint: the ways out.
    """
    return [
        Problem(key, repr(now.get(key)), f"{then.get(key)!r}, as in {where}", hint)
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
    ][:AT_MOST]


def first_key(
    settings: Mapping[str, Any],
    source: Mapping[str, object],
    *,
    extended: Sequence[Sequence[int]],
) -> str:
    """Return the key of a run before it was extended, under which its folder is known."""
    steps = extended[0][0] if extended else settings["steps"]
    return recipe_key({**settings, "steps": steps}, source)


def _begun(folder: Path, *, settings: Mapping[str, Any], source: Mapping[str, object]) -> bool:
    """Tell whether what lies in a folder is what a run of a recipe had begun to put there."""
    try:
        return is_same_run(read_json(folder / BEGUN), settings=settings, source=source)
    except (CannotReadError, ValueError, AttributeError):
        key = recipe_key(settings, source)
        return is_owner(folder / "run", "pretrain", {"recipe": key})


def save_network(
    folder: Path,
    module: nn.Module,
    *,
    scheduler: Mapping[str, Any],
    run: Mapping[str, object],
    dtype: str,
    config: Mapping[str, Any] | None = None,
) -> int:
    """Write a teacher's folder but for its card; return how many weights there are.

    Args:
        folder: laid out as diffusers does.
        module: a `UNet2DModel` with the averaged weights.
        scheduler: config of the scheduler that goes with it.
        run: what `is_same_run` knows it by.
        dtype: number format of the weights, as torch names it.
        config: further members of config.json.
    """
    import torch
    from safetensors.torch import save_file

    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_text(folder / BEGUN, json.dumps(dict(run)) + "\n")
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
    whole = {**parse_json(module.to_json_string(), where="config.json"), **(config or {})}  # type: ignore[operator]
    write_text(folder / "config.json", json.dumps(whole, indent=2, sort_keys=True) + "\n")
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
    """Remove what a run that was killed after its teacher's card has left half written.

    Args:
        folder: the teacher's.
        run_dir: of the run.
        key: its first one.
    """
    (folder / BEGUN).unlink(missing_ok=True)
    for place in (folder, folder / "scheduler"):
        for name in (WEIGHTS, CARD, BEGUN, "config.json", "scheduler_config.json"):
            sweep(place, name=name)
    if is_owner(run_dir, "pretrain", {"recipe": key}):
        sweep(run_dir)


@dataclass(frozen=True)
class Start:
    """Say where a pretraining goes on.

    Args:
        step: steps done.
        checkpoint: to load; None at the start.
        extended: as in `recipe_key`.
    """

    step: int = 0
    checkpoint: Path | None = None
    extended: list[list[int]] = field(default_factory=list)


def resume_point(
    run_dir: Path, *, settings: Mapping[str, Any], source: Mapping[str, object]
) -> Start:
    """Find where a run goes on: at its last checkpoint, or at the start.

    Args:
        run_dir: the run's folder.
        settings, source: as in `recipe_key`; told to overwrite, a run goes on with its own
            checkpoint only, and throws any other away.

    Raises:
        DataError: the checkpoint is damaged, or an older version's.
        ConfigError: it belongs to other settings.
    """
    if (old := run_dir / "checkpoint.pt").exists():
        raise DataError(f"{old}: of an older version of dreamshard. Delete it to start again.")
    if not (known := checkpoints(run_dir)):
        return Start()
    state = read_state(known[-1])
    step, steps = int(state["step"]), state.get("steps", settings["steps"])
    if settings["overwrite"] and (
        step >= steps or state.get("key") != recipe_key(settings, source)
    ):
        forget(run_dir)
        return Start()
    if not is_same_run(state, settings=settings, source=source):
        got = "of a run with other settings or images"
        problem = Problem(str(known[-1]), got, "this run's", "Delete it, or set run_dir.")
        other = differences(state, settings=settings, source=source, where=known[-1])
        raise ConfigError([problem, *other])
    if step > steps:
        raise damaged(known[-1], f"{step} steps done of {steps}")
    extended = [list(times) for times in state.get("extended", ())]
    if steps != settings["steps"]:
        extended.append([steps, step])
    return Start(step, known[-1], extended)


def occupied(folder: Path, what: str) -> ConfigError:
    """Word that a folder is another's, and the ways out."""
    hint = "Choose another --out, or replace it with --overwrite true."
    return ConfigError(Problem("out", f"{folder}, which holds {what}", "a folder of its own", hint))
