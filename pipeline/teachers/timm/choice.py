"""Which network of timm a request names, and where its weights lie: small files only, no network.

A folder of timm's layout (`config.json` beside `model.safetensors`, as `save_for_hf` and
`local-dir:` have it) says all of it. A single file says only its weights: `settings.name` says the
network. Names in a folder are data: they are looked up in timm's own list, never imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dreamshard.errors import ConfigError, DataError, Problem, TeacherError
from dreamshard.foreign.text import read_json
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar

LOCAL = "local-dir:"
CONFIG, STUDENT, README = "config.json", "student.json", "README.md"
STEMS = ("model", "pytorch_model")
SETTINGS: Mapping[str, Scalar] = {
    "name": "",
    "random_weights": False,
    "seed": 0,
    "input_size": 0,
    "mean": "",
    "std": "",
}
"""name: timm's, where no folder says it. random_weights: draw them, by `seed`. input_size: side in
pixels that the network sees, 0 for the image's own. mean, std: of pixels in 0..1, three numbers."""
ARGUMENTS = (
    "features_only", "out_indices", "feature_cls", "pretrained", "checkpoint_path", "cache_dir",
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
    "exportable", "no_jit", "pretrained_model_args", "device", "dtype",
)  # fmt: skip
"""Arguments that are decided here, or by which timm would read further files."""
SETTLED = ("num_classes", "in_chans")
"""Arguments that the weights themselves say."""
FACTS = (
    "input_size", "mean", "std", "num_classes", "classifier", "first_conv", "fixed_input_size",
    "interpolation", "crop_pct", "license", "pool_size",
)  # fmt: skip
"""What is taken of a folder's `pretrained_cfg`; nothing that leads to another file."""
MAX_NUMBER, MAX_DEPTH, MAX_ENTRIES = 1 << 14, 512, 64
SAVE = (
    "Nothing is fetched at run time. Where the network can be reached, save it once: "
    "python -c \"import timm; timm.models.save_for_hf(timm.create_model('{name}', "
    "pretrained=True), 'FOLDER', safe_serialization=True)\", and give --teacher.path FOLDER; or "
    "--teacher.settings '{{name: {name}, random_weights: true}}' for random ones."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Say which network it is.

    Args:
        name: timm's, with its tag where one was given.
        arguments: of its constructor.
        facts: `pretrained_cfg` as far as it is known: mean, std, input_size, classifier ...
        files: the weights; none for random ones.
        told: where the facts come from: file, user (a tag was named), default (timm's first tag).
        seed: of random weights.
        licence: of the weights.
        untrained: names of weights in the file that no training touched.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    told: str = "default"
    seed: int = 0
    licence: str = "unknown"
    untrained: tuple[str, ...] = ()


def choose(path: Path, settings: Mapping[str, Scalar]) -> Choice:
    """Find the network that a path and settings name.

    Raises:
        ConfigError: nothing there, an unknown name, or no weights and none asked to be random.
        TeacherError: damaged files.
    """
    path = Path(str(path).removeprefix(LOCAL))
    name, random = str(settings["name"]), bool(settings["random_weights"])
    if path == Path() and not (path / CONFIG).is_file():
        return _without_file(name, random=random, seed=cast(int, settings["seed"]))
    if random:
        hint = "Leave one of them out."
        raise ConfigError(Problem("settings.random_weights", "true", "false with a path", hint))
    if not path.exists():
        hint = SAVE.format(name=name or "NAME")
        raise ConfigError(Problem("path", str(path), "a folder or file that is there", hint))
    if path.is_file():
        beside = path.parent / CONFIG
        if name or not beside.is_file():
            return _of_file(path, name)
        path = path.parent
    return of_folder(path, name)


def _without_file(name: str, *, random: bool, seed: int) -> Choice:
    if not name:
        hint = "Or --teacher.settings '{name: NAME, random_weights: true}'."
        allowed = "a folder of timm's layout, or a file of weights with settings.name"
        raise ConfigError(Problem("path", "nothing", allowed, hint))
    facts = known_facts(name)
    if not random:
        hint = SAVE.format(name=name)
        raise ConfigError(Problem("path", "nothing", f"the weights of {name} on a disk", hint))
    return Choice(name=name, facts=facts, seed=seed, told=_told(name), licence="none needed")


def _of_file(path: Path, name: str) -> Choice:
    suffixes = (*weights.SAFE, *weights.PICKLED)
    if path.suffix not in suffixes:
        raise ConfigError(
            Problem("path", str(path), f"a folder, or a file of {', '.join(suffixes)}")
        )
    if not name:
        hint = "Or put the network's config.json beside it."
        allowed = "the network's name in timm, as a file of weights does not say it"
        raise ConfigError(Problem("settings.name", "nothing", allowed, hint))
    facts = known_facts(name)
    licence = weights.licence(path.parent)
    if licence == "unknown" and "." in name:  # the tag names the published weights
        licence = str(facts.get("license") or "unknown")
    return Choice(name=name, facts=facts, files=(path,), told=_told(name), licence=licence)


def of_folder(folder: Path, name: str = "") -> Choice:
    """Find the network in a folder of timm's layout; errors as `choose`.

    Args:
        name: as the user says it; "" for what the folder says.
    """
    config = weights.read_json(folder / CONFIG)
    own, where = config.get("architecture"), str(folder / CONFIG)
    if not isinstance(own, str):
        raise TeacherError(
            f"{where}: architecture: got {str(own)[:80]}, allowed the name of a network of timm. "
            "Is it a folder saved by timm's save_for_hf or by `dreamshard train`?"
        )
    try:
        known_facts(own)
    except ConfigError as error:
        raise TeacherError(f"{where}: architecture: {error}") from error
    if name and name.partition(".")[0] != own.partition(".")[0]:
        hint = "Leave it out."
        raise ConfigError(Problem("settings.name", name, f"{own}, as {where} says", hint))
    facts = config.get("pretrained_cfg", config)
    if not isinstance(facts, dict):
        raise TeacherError(f"{where}: pretrained_cfg: got {str(facts)[:80]}, allowed an object.")
    facts = {key: facts[key] for key in FACTS if facts.get(key) is not None}
    facts = {"num_classes": config.get("num_classes", 1000), **facts}
    return Choice(
        name=own,
        arguments=checked_arguments(config.get("model_args") or {}, where=where),
        facts=checked_facts(facts, where=where),
        files=_weights(folder),
        told="file",
        licence=licence_of(folder, facts),
        untrained=_untrained(folder),
    )


def known_facts(name: str) -> dict[str, Any]:
    """Return what timm knows of a network, by its name with or without a tag.

    Raises: ConfigError for a name, or a tag, that timm has not.
    """
    import timm

    base, _, tag = name.partition(".")
    plain = re.fullmatch(r"[A-Za-z0-9_]{1,100}", base)
    if not plain or not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models()."
        raise ConfigError(Problem("settings.name", f"{name!r:.120}", "a network of timm", hint))
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ConfigError(Problem("settings.name", name, f"{base}, or a tag of {', '.join(tags)}"))
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if cfg is None else {k: v for k, v in cfg.to_dict().items() if v is not None}


def _told(name: str) -> str:
    return "user" if "." in name else "default"


def _weights(folder: Path) -> tuple[Path, ...]:
    """Find a folder's weights: safetensors (whole or in parts), else a .bin of torch."""
    problems = []
    for stem in STEMS:
        try:
            return weights.find_weights(folder, stem)
        except TeacherError as error:
            problems.append(str(error))
    raise TeacherError(problems[0])


def checked_arguments(told: object, *, where: str) -> dict[str, Any]:
    """Check the constructor's arguments that a folder gives: plain, bounded, none of our own.

    Raises: TeacherError naming the argument.
    """
    if not isinstance(told, dict):
        raise TeacherError(f"{where}: model_args: got {str(told)[:80]}, allowed an object.")
    for key, value in told.items():
        if key in ARGUMENTS or (key == "in_chans" and value != 3):
            raise TeacherError(
                f"{where}: model_args.{key}: got {str(value)[:80]}, allowed arguments of the "
                "network itself. Take it out."
            )
        most = MAX_DEPTH if "depth" in key or "layers" in key else MAX_NUMBER
        if not _bounded(value, most):
            raise TeacherError(
                f"{where}: model_args.{key}: got {str(value)[:80]}, allowed plain values, numbers "
                f"up to {most}, lists of up to {MAX_ENTRIES}."
            )
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in told.items()
        if key not in SETTLED
    }


def _bounded(value: object, most: int) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_ENTRIES and all(_bounded(item, most) for item in value)
    if isinstance(value, bool | str) or value is None:
        return True
    return isinstance(value, int | float) and abs(value) <= most


def checked_facts(facts: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Check the facts that decide a computation: sizes and the normalisation.

    Raises: TeacherError naming the fact.
    """
    for key in ("mean", "std", "input_size"):
        value = facts.get(key)
        if value is None:
            continue
        positive = key != "mean"
        fits = (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(type(each) in (int, float) and abs(each) <= MAX_NUMBER for each in value)
            and (not positive or all(each > 0 for each in value))
        )
        if not fits:
            raise TeacherError(
                f"{where}: pretrained_cfg.{key}: got {str(value)[:80]}, allowed three numbers"
                f"{' above 0' if positive else ''}."
            )
    channels, *sides = facts.get("input_size", (3, 224, 224))
    if channels != 3 or any(type(side) is not int for side in sides):
        raise TeacherError(
            f"{where}: pretrained_cfg.input_size: got {facts['input_size']}, allowed 3 channels, "
            "height and width in pixels: images are in colour here."
        )
    if type(facts.get("num_classes", 0)) is not int:
        raise TeacherError(f"{where}: num_classes: got {facts['num_classes']!r:.80}, not a count.")
    return facts


def licence_of(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return a folder's licence: our card's, the student's, timm's config's, else the README's."""
    licence = weights.licence(folder)
    if licence == "unknown" and (folder / STUDENT).is_file():
        provenance = weights.read_json(folder / STUDENT).get("provenance")
        licence = str((provenance if isinstance(provenance, dict) else {}).get("licence", licence))
    if licence == "unknown":
        licence = str(facts.get("license") or "unknown")
    readme = folder / README
    if licence == "unknown" and readme.is_file():
        with readme.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(4096)
        match = re.match(r"---\n(?:.*\n)*?license:\s*([\w.-]{1,60})\s*\n", head)
        licence = match[1] if match else licence
    return licence


def _untrained(folder: Path) -> tuple[str, ...]:
    """Return the weights that a student's folder names as never trained."""
    if not (folder / STUDENT).is_file():
        return ()
    try:
        names = read_json(folder / STUDENT, infinite=True).get("untrained", [])
    except (DataError, AttributeError) as error:
        raise TeacherError(f"{folder / STUDENT}: cannot be read ({error}).") from error
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
