"""Where this user's own files are; a container may run as a user that has no home."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced; one of a user that is not known stays as it is.

    `Path.expanduser` raises a RuntimeError there, which says nothing of the path.
    """
    return Path(os.path.expanduser(path))


def user_home() -> Path | None:
    """Return this user's home; None where there is none, or one that is no absolute path."""
    home = expanded("~")
    is_named = os.environ.get("HOME") != ""  # an empty one would be the root of all
    return home if is_named and home.is_absolute() else None


def user_cache() -> Path | None:
    """Return our folder among this user's caches; None where the user has no place for them."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(told):  # the standard has others ignored: they would mean any folder
        return Path(told) / "dreamshard"
    home = user_home()
    return home and home / ".cache" / "dreamshard"
