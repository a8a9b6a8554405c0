"""A student that we trained as the teacher of the next one: a chain.

    teacher:
      kind: student
      path: runs/first      # the run folder, or its student/
      levels: [s4, s8]

Its levels are the maps that it was trained to give, `map.s<stride>`, and the mean of the deepest,
`pooled`. What no training touched (stages behind the deepest map) is not recorded. The folder is
read as data: a network of timm's or one of ours by name, never a class that the folder names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import trusted
from dreamshard.foreign.text import read_json
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.recording.taps import Tap, vector
from pipeline.teachers.recording.teacher import PlainNetwork
from pipeline.teachers.timm import choice as choices
from pipeline.teachers.timm.choice import MAX_NUMBER, STUDENT, Choice
from pipeline.teachers.timm.outline import POOLED, Outline, outline, point
from pipeline.teachers.timm.teacher import TimmDescription, TimmTeacher, description, seen_size

if TYPE_CHECKING:
    import torch
    from torch import nn

FOLDER, PYRAMID, WEIGHTS = "student", "pyramid.safetensors", "model.safetensors"
FORMAT_VERSION = 2
OURS = {
    "cifar_resnet": "pipeline.teachers.timm.small_resnet:CifarResNet",
    "cifar_resnet18": "pipeline.teachers.timm.small_resnet:cifar_resnet18",
}
"""Networks that timm does not have."""
SETTINGS: Mapping[str, Scalar] = {"input_size": 0, "mean": "", "std": ""}
MAX_MAPS = 64


@dataclass(frozen=True)
class Card:
    """What a student's folder says of it.

    Args:
        folder: that holds it.
        name: of its network.
        arguments: of the network's constructor.
        facts: mean, std and input_size.
        strides, channels: of its maps, finest first.
    """

    folder: Path
    name: str
    arguments: Mapping[str, Any]
    facts: Mapping[str, Any]
    strides: tuple[int, ...]
    channels: tuple[int, ...]


class StudentTeacher(TimmTeacher):
    """Run a student of `dreamshard train`; see the module's text."""

    SETTINGS = SETTINGS
    LOWEST: Mapping[str, float] = {"input_size": 0}

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return what describes a path; see `NetworkTeacher.find`."""
        return {}, functools.partial(describe, path)


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None
) -> TimmDescription:
    """Describe the student of a folder.

    Raises:
        ConfigError: none there, or a size that it does not take.
        TeacherError: damaged files, or a network of somebody's own class.
    """
    card = read_card(path)
    if card.name in OURS:
        known, choice = None, _of_ours(card)
    else:
        choice = replace(choices.of_folder(card.folder), untrained=())
        known = None
    size = image_size or choices_size(card)
    asked = settings["input_size"]
    assert isinstance(asked, int)
    seen = seen_size(size, asked)
    if card.name not in OURS:
        known = outline(choice, seen)
        if known.plain:
            choice = replace(choice, files=(*choice.files, card.folder / PYRAMID))
    return description(
        choice,
        known,
        settings,
        size=size,
        seen=seen,
        taps=_taps(card, known, size=size, seen=seen),
        aliases={f"s{_scaled(s, size, seen)}": f"map.s{s}" for s in card.strides},
        family="student",
        load=lambda dtype: PlainNetwork(load(card, choice, known, seen, dtype)),
    )


def read_card(path: Path) -> Card:
    """Read the description in a student's folder, or in the run folder that holds it.

    Raises:
        ConfigError: there is none.
        TeacherError: it is damaged, or of a class of somebody's own.
    """
    folder = next((f for f in (path, path / FOLDER) if (f / STUDENT).is_file()), None)
    if folder is None:
        hint = "Is the training finished?"
        allowed = "a run folder of `dreamshard train`, or the folder of a student"
        raise ConfigError(Problem("path", str(path), allowed, hint))
    where = folder / STUDENT
    raw = read_json(where, error=TeacherError, infinite=True, hint="Fetch it again.")
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        got = raw.get("format_version") if isinstance(raw, dict) else type(raw).__name__
        raise TeacherError(f"{where}: format_version: got {got!r:.80}, allowed {FORMAT_VERSION}.")
    student = raw.get("student")
    if not isinstance(student, dict):
        raise TeacherError(f"{where}: student: got {student!r:.80}, allowed an object.")
    name = str(student.get("name")).removeprefix("torchvision/")
    if trusted.is_import_path(name):
        raise TeacherError(
            f"{where}: student.name: got {name!r:.80}, allowed a network of timm's or ours: no "
            "class that a file names is imported. Make it a teacher of your own: teacher.kind "
            "module:Class."
        )
    strides, channels = (_counts(raw.get(key), where, key) for key in ("strides", "channels"))
    if len(strides) != len(channels):
        raise TeacherError(f"{where}: strides and channels: got {strides} and {channels}.")
    size = _counts(raw.get("image_size"), where, "image_size")
    facts = {key: student.get(key) for key in ("mean", "std")} | {"input_size": [3, *size]}
    return Card(
        folder=folder,
        name=name,
        arguments=choices.checked_arguments(student.get("settings") or {}, where=str(where)),
        facts=choices.checked_facts(facts, where=str(where)),
        strides=strides,
        channels=channels,
    )


def choices_size(card: Card) -> tuple[int, int]:
    """Return the (height, width) that a student was trained at, in pixels."""
    _, height, width = card.facts["input_size"]
    return int(height), int(width)


def load(
    card: Card,
    choice: Choice,
    known: Outline | None,
    seen: tuple[int, int],
    dtype: torch.dtype,
) -> nn.Module:
    """Build a student with its weights, frozen.

    Raises: TeacherError for weights that are damaged or of another network.
    """
    from pipeline.teachers.timm import network
    from pipeline.teachers.timm.vit_pyramid import SimpleFeaturePyramid

    if known is None:
        stages = [_stage(stride) for stride in card.strides]
        build = trusted.listed(card.name, table=OURS)
        backbone = build(out_indices=stages, **choice.arguments)
        state = weights.read(choice.files)
        weights.load_into(backbone, state, where=str(choice.files[0]))
        return network.StudentModule(backbone, card.strides).eval().to(dtype)
    if not known.plain:
        whole = network.load(choice, known, seen, dtype).model
        deepest = {stride: index for index, (*_, stride) in enumerate(known.maps)}
        indices = [deepest[stride] for stride in card.strides]
        return network.StudentModule(whole, card.strides, indices=indices)
    pyramid, own = choice.files[-1], replace(choice, files=choice.files[:-1])
    whole = network.load(own, known, seen, dtype).model
    width, _, _, patch = known.maps[-1]
    neck = SimpleFeaturePyramid(width, patch=patch, strides=card.strides)
    weights.load_into(neck, weights.read([pyramid]), where=str(pyramid), dtype=dtype)
    last = [len(known.maps) - 1]
    return network.StudentModule(whole, card.strides, indices=last, neck=neck).eval()


def _taps(
    card: Card, known: Outline | None, *, size: tuple[int, int], seen: tuple[int, int]
) -> list[Tap]:
    """List a student's maps and their pooled vector; refuse strides that its network has not."""
    from pipeline.teachers.timm.vit_pyramid import pyramid_strides

    offered = {1, 2, 4, 8} if known is None else {stride for *_, stride in known.maps}
    if known is not None and known.plain:
        offered = set(pyramid_strides(known.maps[-1][-1]))
    if missing := [stride for stride in card.strides if stride not in offered]:
        raise TeacherError(
            f"{card.folder / STUDENT}: strides: got {missing}, allowed those of {card.name}: "
            f"{sorted(offered)}."
        )
    listed = []
    for stride, channels in zip(card.strides, card.channels, strict=True):
        cells = tuple(-(-side // stride) for side in seen)
        tap = f"map.s{stride}"
        listed.append(
            Tap(tap, point(tap), channels, _scaled(stride, size, seen), form=(channels, *cells))
        )
    return [*listed, vector(POOLED, point(POOLED), card.channels[-1])]


def _scaled(stride: int, size: tuple[int, int], seen: tuple[int, int]) -> int:
    return max(1, round(stride * size[0] / seen[0]))


def _stage(stride: int) -> int:
    return stride.bit_length() - 1


def _of_ours(card: Card) -> Choice:
    file = card.folder / WEIGHTS
    if not file.is_file():
        raise TeacherError(f"{file}: not found. Fetch the student's whole folder again.")
    return Choice(
        name=card.name,
        arguments=card.arguments,
        facts=card.facts,
        files=(file,),
        told="file",
        licence=choices.licence_of(card.folder, {}),
    )


def _counts(value: object, where: Path, key: str) -> tuple[int, ...]:
    fits = (
        isinstance(value, Sequence)
        and 0 < len(value) <= MAX_MAPS
        and all(type(each) is int and 0 < each <= MAX_NUMBER for each in value)
    )
    if not fits or isinstance(value, str):
        raise TeacherError(
            f"{where}: {key}: got {str(value)[:80]}, allowed 1..{MAX_MAPS} whole numbers of "
            f"1..{MAX_NUMBER}."
        )
    assert isinstance(value, Sequence)
    return tuple(value)
