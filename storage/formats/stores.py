"""How arrays lie in files and how rows come out of them: two formats, one face."""

from __future__ import annotations

from typing import TypeAlias

from storage.formats.tar_store import TarStore
from storage.formats.zarr_store import ZarrStore

Store: TypeAlias = TarStore | ZarrStore
STORES: dict[str, type[Store]] = {"tar": TarStore, "zarr": ZarrStore}
"""By the name that a layout gives its format."""
