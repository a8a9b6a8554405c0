"""`dreamshard publish`: of a dataset, a student or a teacher, a folder for the Hub."""

from __future__ import annotations

import argparse
import shlex
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.shown import plain
from dreamshard.foreign.text import read_json
from dreamshard.owner.parts import part_of, put_in_place
from dreamshard.owner.urls import local_folder

TEACHER_CARD = "teacher_card.json"
TEACHER_KINDS = (".json", ".safetensors", ".png")
"""Endings of what a teacher's folder consists of; nothing else of it is published."""
LEFT_OUT = ("run",)
"""Folders of a teacher's that are records of its training."""


def main(argv: Sequence[str]) -> int | None:
    """Publish what a folder holds: a dataset, a teacher, a student or (--student) a run's."""
    if not argv or argv[0].startswith("-"):
        from distill.publish import main as publish_student

        return publish_student(argv)
    place = Path(argv[0])
    if any((place / name).is_file() for name in ("student.json", "student/student.json")):
        from distill.publish import main as publish_student

        return publish_student(["--student", *argv])
    if (place / TEACHER_CARD).is_file():
        return _teacher(argv)
    from storage.verbs.publish import main as publish_dataset

    return publish_dataset(argv)


def _teacher(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dreamshard publish",
        description="Copy a teacher that `dreamshard pretrain` made into a folder for the Hub.",
    )
    parser.add_argument("teacher", help="the teacher's folder")
    parser.add_argument(
        "--out", required=True, type=local_folder, help="folder to write; it must not exist yet"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    out = publish_teacher(Path(options.teacher), options.out)
    print(f"{out}\nnext: hf upload {shlex.quote(f'USER/{out.name}')} {shlex.quote(str(out))}")
    return 0


def publish_teacher(source: Path, out: Path) -> Path:
    """Copy a teacher's network, scheduler and card, with a model card; whole or not at all.

    Raises:
        ConfigError: a folder that is there already, or cannot be written.
        DataError: no teacher's card, or a link or pipe where there should be a file.
    """
    if out.exists():
        hint = "Choose another folder, or remove that one."
        raise ConfigError(Problem("out", str(out), "a folder that does not exist yet", hint))
    card = read_json(source / TEACHER_CARD)
    if not isinstance(card, dict):
        raise DataError(f"{source / TEACHER_CARD}: got no object, allowed a teacher's card.")
    part = part_of(out)
    try:
        for path in _files(source):
            target = part / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # with the permissions of the umask, not its own
        (part / "README.md").write_text(_card(card, out.name), encoding="utf-8")
        put_in_place(part, out)
    except OSError as error:
        got = f"{out} ({error.strerror or error})"
        raise ConfigError(Problem("out", got, "a folder that can be written")) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that a teacher consists of; a folder may have come from anywhere."""
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            if path.name not in LEFT_OUT and not path.name.startswith("."):
                yield from _files(path)
        elif path.suffix in TEACHER_KINDS:
            if not stat.S_ISREG(mode):
                hint = "nothing else is published. Put the real one in its place, or remove it."
                raise DataError(f"{path}: got a link, a pipe or a device, allowed a file: {hint}")
            yield path


def _card(card: dict[str, object], name: str) -> str:
    import yaml

    from storage.verbs.publish import HUB_LICENCES

    licence = plain(str(card.get("licence", "unknown")))
    known = HUB_LICENCES.get(licence.lower())
    front: dict[str, object] = {"license": known or "other"}
    if known is None:
        front["license_name"] = licence[:100]
    front |= {"library_name": "diffusers", "tags": ["dreamshard", "unconditional-image-generation"]}
    facts = [
        f"- {key.replace('_', ' ')}: {plain(str(card[key])).replace('<', '&lt;')}"
        for key in ("kind", "licence", "steps", "images_seen", "seed", "recipe_key")
        if key in card
    ]
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# {plain(name)}\n\n"
        "A diffusion model trained with dreamshard, as a teacher of features.\n\n"
        + "\n".join(facts)
        + "\n\n```bash\ndreamshard encode --teacher.path FOLDER --source.path IMAGES\n```\n"
    )
