"""Make the paths of a config absolute: actors run elsewhere, in folders of their own."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TypeVar

from pipeline.images.source import SourceConfig
from pipeline.request.config import PipelineConfig

HOME_VARIABLE = "DREAMSHARD_HOME"

log = logging.getLogger(__name__)
C = TypeVar("C", bound=PipelineConfig)


def settle_paths(config: C) -> C:
    """Return the config with every local path absolute.

    Relative paths count from the working directory. A job submitted with `--working-dir` runs in a
    copy of it that Ray deletes later: there, they count from $DREAMSHARD_HOME; where that is not
    set, from the checkout in which `ray start` was typed, or else from ~/dreamshard. Inputs may lie
    in the copy, too.
    """
    home = _job_home()
    base = home or Path.cwd()
    run_dir = config.run_dir or f"runs/{config.name}"
    changes: dict[str, object] = {
        "root": _output(config.root, base),
        "run_dir": _output(run_dir, base),
        "teacher": dataclasses.replace(
            config.teacher,
            path=_input(config.teacher.path, base),
            interpreter=_input(config.teacher.interpreter, base),
        ),
    }
    source = getattr(config, "source", None)
    if isinstance(source, SourceConfig):
        changes["source"] = dataclasses.replace(source, path=_input(source.path, base))
    if home is not None and not Path(config.root).is_absolute() and "://" not in config.root:
        log.warning("root: %s is relative and this is a Ray job: %s", config.root, changes["root"])
    return dataclasses.replace(config, **changes)


def _job_home() -> Path | None:
    """Return where a Ray job's relative paths count from; None where the working folder stays."""
    if not any(part.startswith("_ray_pkg_") for part in Path.cwd().parts):
        return None
    if os.environ.get(HOME_VARIABLE):
        return Path(os.environ[HOME_VARIABLE]).expanduser().absolute()
    # The shell that starts a job inherits from `ray start`, and has just changed the folder.
    started_in = Path(os.environ.get("OLDPWD") or "/")
    if (started_in / "pipeline" / "request" / Path(__file__).name).exists():
        return started_in
    return Path("~/dreamshard").expanduser()


def _output(path: str, base: Path) -> str:
    return path if "://" in path else str(base / Path(path).expanduser())


def _input(path: str, base: Path) -> str:
    """Find a path here or below `base`; names that are neither (a repository, a URL) stay."""
    if not path or "://" in path:
        return path
    for folder in (Path.cwd(), base):
        candidate = folder / Path(path).expanduser()
        if candidate.exists() or _has_match(candidate):
            return str(candidate)
    return path


def _has_match(path: Path) -> bool:
    return any(mark in path.name for mark in "*?[") and any(path.parent.glob(path.name))
