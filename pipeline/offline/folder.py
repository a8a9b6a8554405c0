"""The run folder of encode and synthesize: a folder belongs to one dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dreamshard.errors import ConfigError
from dreamshard.owner.folders import check_owner
from dreamshard.runfolder import command_of
from pipeline.request.config import OfflineConfig
from pipeline.request.lookup import Existing
from pipeline.request.resolve import ResolvedRequest

C = TypeVar("C", bound=OfflineConfig)


def own_folder(config: C, request: ResolvedRequest, existing: Existing | None, *, named: bool) -> C:
    """Return the settings with a run folder that is not another run's.

    Args:
        config: with whole paths.
        request: what is asked for.
        existing: the dataset that is added to, if any.
        named: whether the user chose the folder; else another run's makes room for the dataset's.

    Raises:
        ConfigError: nothing can be made at the root, or the folder named is another run's; until
            here nothing is made.
    """
    request.check_writable()
    of = whose(existing.dataset.url if existing else request.recipe.folder)
    try:
        check_owner(Path(config.run_dir), command_of(config), of)
    except ConfigError:
        if named:
            raise
        own = Path(config.run_dir).with_name(of["dataset"])
        check_owner(own, command_of(config), of)
        return replace(config, run_dir=str(own))
    return config


def whose(url: str) -> dict[str, str]:
    """Say what a run is of: the folder name of its dataset, which holds its keys."""
    return {"dataset": url.rstrip("/").rpartition("/")[2]}
