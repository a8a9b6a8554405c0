"""A run folder belongs to one run: no other command, task list or teacher writes into it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.files import read_bytes
from dreamshard.foreign.text import parse_json
from dreamshard.owner.parts import part_of
from dreamshard.redact import redact

OWNER = "owner.json"
RECORDS = ("metrics.jsonl", "stats.json", "README.txt", "results.json")
"""What a run that replaces another must not mix with its own."""
COMMANDS = ("pretrain", "interpret", "encode", "synthesize", "serve", "train", "evaluate")
"""Those that keep run folders."""
MAX_SHOWN = 4
DIGEST = re.compile("[0-9a-f]{64}")


def check_owner(
    folder: Path,
    command: str,
    of: Mapping[str, object],
    *,
    key: str = "run_dir",
    settings: Callable[[], Sequence[str]] = list,
) -> None:
    """Find out whether a run may write into a folder.

    Args:
        folder: the run's.
        command: what runs, such as "encode".
        of: what the run is of, by name, JSON's values; another start of the same run has the same.
        key: dotted key of the folder's setting, for messages.
        settings: says which settings differ from those of the run that is there, in words; asked
            where a digest alone would tell two runs apart.

    Raises:
        ConfigError: the folder is another run's, or its owner cannot be read.
    """
    owner = _owner(folder)
    if owner is None:
        return
    theirs, told = owner
    hint = f"Choose a folder of its own, such as --{key} {_free(folder)}."
    if theirs != command:
        got = f"{folder}, which holds a run of `dreamshard {theirs}`"
        raise ConfigError(Problem(key, got, f"a folder of this `dreamshard {command}` alone", hint))
    mine = parse_json(json.dumps(redact(of), default=str), where="settings", infinite=True)
    if told is None or told == mine:
        return
    names = [name for name in {**told, **mine} if told.get(name) != mine.get(name)]
    by_digest = all(DIGEST.fullmatch(str(mine.get(name))) for name in names)
    unlike = list(settings()) if by_digest else []
    unlike = unlike or [there_and_asked(name, told.get(name), mine.get(name)) for name in names]
    differing = "; ".join(unlike[:MAX_SHOWN])
    more = f"; {len(unlike) - MAX_SHOWN} more" if len(unlike) > MAX_SHOWN else ""
    got = f"{folder}, which holds another run ({differing}{more})"
    raise ConfigError(Problem(key, got, "a folder of this run alone", hint))


def check_command(folder: Path, command: str, *, key: str) -> None:
    """Find out whether a folder that is no run's own holds the run of another command.

    Args:
        folder, command, key: as in `check_owner`.

    Raises: ConfigError, as `check_owner`.
    """
    owner = _owner(folder)
    check_owner(folder, command, (owner[1] if owner else None) or {}, key=key)


def is_owner(folder: Path, command: str, of: Mapping[str, object]) -> bool:
    """Tell whether a folder is of this very run, and says so."""
    try:
        owner = _owner(folder)
    except ConfigError:
        return False
    return owner is not None and owner == (command, parse_json(json.dumps(redact(of)), where=""))


def claim(
    folder: Path,
    command: str,
    of: Mapping[str, object],
    *,
    key: str = "run_dir",
    replace: bool,
    settings: Callable[[], Sequence[str]] = list,
) -> None:
    """Take a folder for a run, or find that it is its own already.

    Args:
        replace: whether another run of the same command is thrown out, its records with it.
        folder, command, of, key, settings: as in `check_owner`.

    Raises:
        ConfigError: as `check_owner`.
        OSError: the folder cannot be written.
    """
    owner, text = folder / OWNER, json.dumps({"command": command, "of": redact(of)}, default=str)
    part = part_of(owner)
    try:
        part.write_text(text + "\n", encoding="utf-8")
        if replace and _is_another(folder, command, of, key):
            for name in RECORDS:
                (folder / name).unlink(missing_ok=True)
            part.replace(owner)
        check_owner(folder, command, of, key=key, settings=settings)
        if part.exists():
            os.link(part, owner)  # of two runs that begin at once, one is first
    except FileExistsError:
        check_owner(folder, command, of, key=key, settings=settings)
    except (PermissionError, NotImplementedError):  # no hard links on this disk
        part.replace(owner)
    finally:
        part.unlink(missing_ok=True)


def _is_another(folder: Path, command: str, of: Mapping[str, object], key: str) -> bool:
    """Tell whether another run of the same command is there; raise for another command."""
    try:
        check_owner(folder, command, of, key=key)
    except ConfigError:
        check_command(folder, command, key=key)
        return True
    return False


def _owner(folder: Path) -> tuple[str, dict[str, object] | None] | None:
    """Return a folder's command, and what of; None where nobody owns it."""
    try:
        data = read_bytes(folder / OWNER)
        record = parse_json(data, where=str(folder / OWNER), infinite=True)
        return str(record["command"]), dict(record["of"])
    except FileNotFoundError:
        command = _recorded(folder)
        return None if command is None else (command, None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        hint = "Remove it to give the folder to the next run, or choose another folder."
        problem = Problem(str(folder / OWNER), str(error), "the record of a run", hint)
        raise ConfigError(problem) from error


def _recorded(folder: Path) -> str | None:
    """Return the command that an older version's folder is of."""
    try:
        lines = (folder / "command.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    for line in reversed(lines):
        if not line.startswith("#") and (
            match := re.search(r"\bdreamshard\s+(\w+)|/(\w+)\.py\b", line)
        ):
            command = match[1] or match[2]
            return command if command in COMMANDS else None
    return None


def _free(folder: Path) -> Path:
    """Return a folder beside it that is not there."""
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def there_and_asked(name: str, there: object, asked: object) -> str:
    """Say of one thing what a run has and what is asked for instead."""
    return f"{name} {_show(there)} there, {_show(asked)} asked for"


def _show(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
