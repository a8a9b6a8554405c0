"""Our packages have plain names (storage, pipeline, distill): see that a user's file hides none.

A command owns its process: there, ours are found beside `dreamshard`, whatever lies in the working
folder. In a notebook the user's own `import storage` must go on to mean their file: it is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from dreamshard.errors import DreamshardError

NAMES = ("storage", "pipeline", "distill", "recipes")
HOME = Path(__file__).resolve().parents[2]
"""Where `dreamshard` and its neighbours lie: a checkout, or site-packages."""


class OurPackages:
    """Find our top-level packages beside `dreamshard` first; an entry of `sys.meta_path`."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a package of ours is; None for any other."""
        return PathFinder.find_spec(name, [str(HOME)]) if name in NAMES else None


def prefer_ours() -> None:
    """Make every later import of our packages find ours; for processes that are ours."""
    if OurPackages not in sys.meta_path:
        sys.meta_path.insert(0, OurPackages)


def check_packages() -> None:
    """See that our packages are ours in a process that is the user's.

    Raises:
        DreamshardError: a file or folder of the user's hides one; it is named.
    """
    for name in NAMES[:3]:
        place = _place(name)
        if place is not None and not place.is_relative_to(HOME / name):
            raise DreamshardError(
                f"{place}: got a file or folder that hides dreamshard's own package `{name}`, "
                "allowed one of another name. Rename it, or start Python in another folder; the "
                "command line works here all the same."
            )


def _place(name: str) -> Path | None:
    """Return the file or folder that a top-level name leads to; None if nowhere."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else _found(name)
    if spec is None:
        return None
    if spec.origin:
        return Path(spec.origin).resolve()
    return next((Path(folder).resolve() for folder in spec.submodule_search_locations or ()), None)


def _found(name: str) -> ModuleSpec | None:
    """Return what importing a top-level name would find, importing nothing."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)
