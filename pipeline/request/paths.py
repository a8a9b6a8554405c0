"""Make paths absolute: actors run elsewhere, in folders of their own.

Relative paths count from the working directory. A job submitted with `--working-dir` runs in a copy
of it that Ray deletes later: there, they count from $DREAMSHARD_HOME; where that is not set, from
the checkout in which `ray start` was typed, or else from ~/dreamshard. Inputs may lie in the copy,
too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dreamshard.owner.home import expanded

HOME_VARIABLE = "DREAMSHARD_HOME"

log = logging.getLogger(__name__)


def output_path(path: str, *, key: str = "") -> str:
    """Return where to write.

    Args:
        path: a path, or a URL, which stays.
        key: setting to name in a warning where the path leaves a job's folder; empty for none.
    """
    if "://" in path:
        return path
    home, given = _job_home(), expanded(path)
    settled = str((home or Path.cwd()) / given)
    if home is not None and key and not given.is_absolute():
        log.warning("%s: %s is relative and this is a Ray job: %s", key, path, settled)
    return settled


def input_path(path: str) -> str:
    """Find a path here, in a job's home, or (`recipes/...`) among what came with the package.

    Names that are none of these (a repository, a URL) stay.
    """
    if not path or "://" in path:
        return path
    for folder in (Path.cwd(), _job_home() or Path.cwd()):
        candidate = folder / expanded(path)
        if candidate.exists() or _has_match(candidate):
            return str(candidate)
    installed = Path(__file__).resolve().parents[2] / path
    return str(installed) if Path(path).parts[:1] == ("recipes",) and installed.exists() else path


def _job_home() -> Path | None:
    """Return where a Ray job's relative paths count from; None where the working folder stays."""
    if not any(part.startswith("_ray_pkg_") for part in Path.cwd().parts):
        return None
    if os.environ.get(HOME_VARIABLE):
        return expanded(os.environ[HOME_VARIABLE]).absolute()
    # The shell that starts a job inherits from `ray start`, and has just changed the folder.
    started_in = Path(os.environ.get("OLDPWD") or "/")
    if (started_in / "pipeline" / "request" / Path(__file__).name).exists():
        return started_in
    return expanded("~/dreamshard")


def _has_match(path: Path) -> bool:
    return any(mark in path.name for mark in "*?[") and any(path.parent.glob(path.name))
