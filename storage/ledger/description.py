"""`dataset.json`: what a dataset is, written once, when it is created."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

from dreamshard.errors import DataError
from dreamshard.foreign.sealed import check_seal, sealed_json
from dreamshard.foreign.text import parse_json
from dreamshard.versions import package_versions
from storage.codecs.arrays import array_specs
from storage.codecs.base import ArraySpec
from storage.fs.local import Files
from storage.schema import FORMAT_VERSION, Level, Pins, Recipe

KEY = "dataset.json"
MAX_BYTES = 16 << 20
REMOVED = "dreamshard-removed"
"""Format of what stands in its place while its folder is being removed."""
UPGRADES: dict[int, Callable[[dict], dict]] = {}
"""By format version: what makes of such a description one of the next version. The recipe and its
keys stay as they were written, so that a dataset keeps its name; the file itself is not changed."""

_LIBRARIES = ("dreamshard", "numpy", "pyarrow", "zarr", "torch", "diffusers", "timm", "ray")


@dataclass(frozen=True)
class Description:
    """Say what a dataset holds and how it is made; nothing in it ever changes."""

    recipe: Recipe
    levels: tuple[Level, ...]
    image_size: tuple[int, int]
    pins: Pins
    images: bool = True
    labels: bool = False
    masks: bool = False
    licence: str = "unknown"
    extra: Mapping[str, object] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    conditional_put: str = ""
    """What a store said when the dataset was made to a second put of one key; "" for folders."""
    sealed: bool = field(default=True, compare=False)
    """Whether the file carries a digest of itself; those of earlier versions do not."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels' numbers when the dataset was begun; empty where not known."""
        kept = self.extra.get("classes", ())
        return tuple(map(str, kept)) if isinstance(kept, list | tuple) else ()

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays stored."""
        return array_specs(
            self.recipe,
            self.levels,
            image_size=self.image_size,
            images=self.images,
            labels=self.labels,
            masks=self.masks,
        )

    def to_json(self) -> bytes:
        """Return the file's text."""
        recipe = self.recipe
        arrays = {
            spec.name: {"dtype": spec.dtype.name, "shape": list(spec.shape), "level": spec.level}
            for spec in self.arrays
        }
        value = {
            "format": "dreamshard",
            "format_version": FORMAT_VERSION,
            "name": recipe.name,
            "content_key": recipe.content_key,
            "layout_key": recipe.layout_key,
            "family_key": recipe.family_key,
            "content": recipe.content,
            "layout": recipe.layout,
            "levels": [level.to_dict() for level in self.levels],
            "image_size": list(self.image_size),
            "images": self.images,
            "labels": self.labels,
            "masks": self.masks,
            "arrays": arrays,
            "pins": asdict(self.pins),
            "licence": self.licence,
            "extra": dict(self.extra),
            "libraries": dict(self.libraries),
            "created": self.created,
            **({"conditional_put": self.conditional_put} if self.conditional_put else {}),
        }
        try:
            return sealed_json(value, indent=1)
        except (TypeError, ValueError) as error:
            raise DataError(f"{KEY}: extra: got values JSON cannot hold ({error}).") from None

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Description:
        """Read a description, whoever wrote it.

        Raises:
            DataError: if it is not one, is damaged, or of a newer format.
        """
        try:
            value = parse_json(data, where=where)
            if value == {"format": REMOVED}:
                raise DataError(
                    f"{where}: got a dataset that `dreamshard gc` was removing, allowed a whole "
                    "one. Run `dreamshard gc ROOT --yes` to finish that."
                )
            if not isinstance(value, dict) or value.get("format") != "dreamshard":
                raise ValueError("no dreamshard dataset")
            written = _check_version(value.get("format_version"), where)
            sealed = check_seal(data)
            for version in range(written, FORMAT_VERSION):
                value = UPGRADES[version](value)
            description = replace(cls._from_value(value), sealed=sealed)
            assert description.arrays is not None  # codecs and names that cannot be, found here
            return description
        except DataError as error:
            text = str(error)
            raise DataError(text if where in text else f"{where}: {text}") from None
        except Exception as error:  # of whatever is in there
            raise DataError(
                f"{where}: got a damaged description ({error!s:.200}), allowed one as "
                "`dreamshard encode` or `synthesize` wrote it."
            ) from None

    @classmethod
    def _from_value(cls, value: dict) -> Description:
        recipe = Recipe(value["name"], value["content"], value["layout"])
        if not isinstance(recipe.content, dict) or not isinstance(recipe.layout, dict):
            raise ValueError("content and layout must be objects")
        if (recipe.content_key, recipe.layout_key) != (value["content_key"], value["layout_key"]):
            raise ValueError("its keys do not match its recipe")
        height, width = value["image_size"]
        flags = [value[name] for name in ("images", "labels", "masks")]
        if not all(type(item) is bool for item in flags):
            raise ValueError("images, labels and masks must be true or false")
        if not all(type(size) is int and 1 <= size <= 1 << 16 for size in (height, width)):
            raise ValueError(f"image_size {height!r:.20} x {width!r:.20}, allowed 1..65536")
        description = cls(
            recipe=recipe,
            levels=tuple(Level.from_dict(level) for level in value["levels"]),
            image_size=(height, width),
            pins=Pins.from_dict(value["pins"]),
            images=flags[0],
            labels=flags[1],
            masks=flags[2],
            licence=str(value["licence"]),
            extra=dict(value["extra"]),
            libraries=dict(value["libraries"]),
            created=float(value["created"]),
            conditional_put=str(value.get("conditional_put", "")),
        )
        _ = description.arrays, recipe.samples_per_unit  # raise on codecs and sizes not allowed
        return description

    def differences(self, other: Description) -> list[str]:
        """Name the fields that decide stored bytes and differ; pins and `extra` do not."""
        names = ("levels", "image_size", "images", "labels", "masks")
        fields = [name for name in names if getattr(self, name) != getattr(other, name)]
        if self.recipe.content_key != other.recipe.content_key:
            fields.append("content")
        if self.recipe.layout_key != other.recipe.layout_key:
            fields.append("layout")
        return fields


def read_description(files: Files) -> Description:
    """Read a dataset's description.

    Raises:
        DataError: if there is none, or it is damaged or newer than this version.
    """
    where = files.path(KEY)
    try:
        return Description.from_json(files.read(KEY, limit=MAX_BYTES), where=where)
    except FileNotFoundError:
        raise DataError(
            f"{files.url}: got no dataset (no {KEY} in it). `dreamshard ls` lists the datasets "
            "under a root."
        ) from None


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of what decides bytes, without importing any of it."""
    own = {"python": platform.python_version(), "machine": platform.machine()}
    return own | package_versions(_LIBRARIES)


def _check_version(version: object, where: str) -> int:
    if type(version) is not int or version < 1:
        raise ValueError(f"format_version {version!r:.20}")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{where}: got format version {version}, allowed up to {FORMAT_VERSION}. Install a "
            "newer dreamshard to read it."
        )
    return version
