"""Copy a trained student into a folder to publish or deploy: timm and Hub layout, ONNX.

dreamshard publish --student runs/train --out my-backbone --formats [timm, onnx]
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.configs.student import OwnClassConfig
from dreamshard.config import FolderName, load_config
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.files import MAX_BYTES
from dreamshard.owner.parts import part_of, put_in_place
from dreamshard.progress import begin, stage

DESCRIPTION = "Copy a trained student into a folder that timm, the Hugging Face Hub or ONNX reads."


@dataclass(kw_only=True)
class PublishConfig:
    """Copy a trained student into a folder to publish."""

    student: str = "runs/train"
    """Run folder of `dreamshard train`, or the folder of an exported student."""
    own_class: OwnClassConfig = field(default_factory=OwnClassConfig)
    """The student's class, where it is one of your own."""
    out: FolderName = "exported"
    """Folder to write; it must not exist yet."""
    formats: list[Literal["timm", "onnx"]] = field(default_factory=lambda: ["timm"])
    """What to write: timm (safetensors under timm's and torchvision's names, timm's config.json and
    the model card: what the Hugging Face Hub shows) and onnx (model.onnx, images of 0..1)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        if not self.formats:
            problems.append(Problem("formats", "[]", "timm, onnx or both"))
        if Path(self.out).exists():
            hint = "Choose another folder, or remove that one."
            problems.append(Problem("out", self.out, "a folder that does not exist yet", hint))
        return problems


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard publish --help`."""
    config = load_config(PublishConfig, argv, prog="dreamshard publish", description=DESCRIPTION)
    begin(f"publish: {config.student}; loading PyTorch")
    publish(config)
    return None


def publish(config: PublishConfig) -> Path:
    """Write the formats asked for into a new folder, whole or not at all.

    Raises:
        DataError: no trained student, or one that cannot be read.
        ConfigError: packages for ONNX are missing, or the folder cannot be written.
    """
    from distill.students.card import read_card
    from distill.students.export import load_student
    from distill.students.onnx import export_onnx

    card, source = read_card(Path(config.student), own=config.own_class)
    out = Path(config.out)
    part = part_of(out)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        got = f"{config.out} ({error.strerror})"
        raise ConfigError(Problem("out", got, "a folder that can be written")) from error
    try:
        if "timm" in config.formats:
            _copy(source, part)
        student, _ = load_student(source, own=config.own_class)  # what fails here would elsewhere
        if "onnx" in config.formats:
            export_onnx(student, part / "model.onnx", image_size=card.size)
        put_in_place(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    stage(f"publish: {card.config.name} as {' and '.join(config.formats)} in {out}")
    return out


def _copy(source: Path, part: Path) -> None:
    """Copy the files that a student's folder is of, each what it should be.

    A folder may have come from anywhere: a link in it may lead to what nobody means to publish.
    """
    from distill.students.card import CARD
    from distill.students.export import PYRAMID, WEIGHTS
    from dreamshard.foreign.arrays import safetensors_shapes
    from storage.fs.beneath import kind_of

    names = (WEIGHTS, PYRAMID, CARD, "config.json", "README.md")
    for name in filter(lambda name: os.path.lexists(source / name), names):
        path = source / name
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            hint = "nothing else is published. Put the real one in its place, or remove it."
            raise DataError(f"{path}: got {kind_of(status.st_mode)}, allowed a file: {hint}")
        if path.suffix == ".safetensors":
            safetensors_shapes(path)  # its header, against its size
        elif status.st_size > MAX_BYTES:
            raise DataError(f"{path}: got {status.st_size:,} bytes, allowed {MAX_BYTES:,}.")
        shutil.copyfile(path, part / name)  # with the permissions of the umask, not its own
    others = sorted(path.name for path in source.iterdir() if path.name not in names)
    if others:
        more = ", ..." if len(others) > 5 else ""
        stage(f"publish: not of a student, and left out: {', '.join(others[:5])}{more}")
