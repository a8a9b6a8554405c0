"""The words every part shares: levels, feature batches, execution pins, recipes and their keys.

Shape letters: N samples, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import cast

import numpy as np

from dreamshard.errors import DataError

FORMAT_VERSION = 1
KINDS = ("feature", "soft_label", "embedding", "latent")
RESERVED_NAMES = frozenset(
    ("image", "label", "mask", "zarr.json", "index", "key", "valid", "error")
)
MAX_SAMPLE_BYTES = 1 << 34  # 16 GiB a sample and level: beyond any feature map, below overflow
MAX_UNIT_SAMPLES = 1 << 31

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_DTYPES = frozenset(
    {"float16", "float32", "float64", "bfloat16", "uint8", "int8", "int16", "int32", "int64"}
)


def check_name(name: object, *, what: str) -> str:
    """Return `name` if it may become a folder name, so that no file can point out of its root.

    Raises:
        DataError: on anything but letters, digits, `_`, `.`, `-`, or on a leading dot.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise DataError(
        f"{what}: got {name!r:.80}, allowed letters, digits, '_', '.', '-', at most 128 of them "
        "and no leading dot."
    )


@dataclass(frozen=True)
class Level:
    """Describe one recorded output of a teacher: a feature map, a soft label, an embedding.

    `shape` is per sample, for example (128, 8, 8); `stride` is image pixels per cell of the map (0
    where there is no map); `dtype` is the one the values have where the teacher hands them over.
    """

    name: str
    kind: str
    tap: str
    timestep: int
    draw: int
    pool: str
    stride: int
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        check_name(self.name, what="level name")
        if self.name in RESERVED_NAMES:
            raise DataError(f"level name: got {self.name!r}, which is reserved. Choose another.")
        if self.kind not in KINDS:
            raise DataError(f"level {self.name}: kind: got {self.kind!r}, allowed {KINDS}.")
        if self.dtype not in _DTYPES:
            allowed = ", ".join(sorted(_DTYPES))
            raise DataError(f"level {self.name}: dtype: got {self.dtype!r}, allowed {allowed}.")
        shape = tuple(int(size) for size in self.shape)
        if len(shape) > 8 or any(size < 1 for size in shape):
            raise DataError(f"level {self.name}: shape: got {shape}, allowed sizes of 1 or more.")
        if math.prod(shape) * 8 > MAX_SAMPLE_BYTES:
            raise DataError(
                f"level {self.name}: shape: got {shape}, allowed at most {MAX_SAMPLE_BYTES} bytes "
                "per sample."
            )
        object.__setattr__(self, "shape", shape)

    @property
    def is_map(self) -> bool:
        """Tell features that have cells in the image from labels and pooled vectors."""
        return self.kind == "feature" and len(self.shape) == 3 and self.stride > 0

    @property
    def is_vector(self) -> bool:
        """Tell an embedding or a pooled map: one vector per image."""
        return self.kind != "soft_label" and len(self.shape) == 1

    def to_dict(self) -> dict[str, object]:
        """Return the level as plain JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, value: object) -> Level:
        """Read a level from JSON values, whoever wrote them.

        Raises:
            DataError: if a field is missing, unknown or of another type.
        """
        known = {item.name for item in fields(cls)}
        if not isinstance(value, dict) or set(value) != known:
            got = sorted(value) if isinstance(value, dict) else value
            raise DataError(f"level: got {got!r:.200}, allowed exactly the fields {sorted(known)}.")
        text = {key: value[key] for key in ("name", "kind", "tap", "pool", "dtype")}
        whole = {key: value[key] for key in ("timestep", "draw", "stride")}
        if not all(isinstance(item, str) for item in text.values()):
            raise DataError(f"level {value['name']!r:.80}: got {text!r:.200}, allowed texts.")
        if not all(type(item) is int for item in whole.values()):
            raise DataError(f"level {value['name']!r:.80}: got {whole!r:.200}, allowed integers.")
        shape = value["shape"]
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise DataError(f"level {value['name']!r:.80}: shape: got {shape!r:.80}, not a list.")
        return cls(**text, **whole, shape=tuple(shape))


@dataclass
class FeatureBatch:
    """Carry N samples and what the teacher says of them.

    Args:
        index: int64 (N,), the samples' numbers in the dataset.
        key: N texts, the source's own names of the samples.
        valid: bool (N,), False where the image could not be used.
        image: uint8 (N, H, W, 3) in 0..255, or None.
        levels: arrays (N, *level.shape) by level name.
        label: int64 (N,), -1 = none, or None where the source has no labels.
        mask: uint8 (N, H, W) class ids, or None.
        error: why a row is invalid, by row of this batch.
        source_digest: uint64 (N,), XXH3 of every byte that the source holds of a sample (image and
            mask), or None; commits keep it, so that it can be compared with the source's own.
    """

    index: np.ndarray
    key: list[str]
    valid: np.ndarray
    image: np.ndarray | None
    levels: dict[str, np.ndarray]
    label: np.ndarray | None = None
    mask: np.ndarray | None = None
    error: dict[int, str] = field(default_factory=dict)
    source_digest: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)


def join_batches(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    """Return the samples of several batches as one: indices, keys, validity and levels."""
    return FeatureBatch(
        index=np.concatenate([batch.index for batch in batches]),
        key=[key for batch in batches for key in batch.key],
        valid=np.concatenate([batch.valid for batch in batches]),
        image=None,
        levels={
            name: np.concatenate([batch.levels[name] for batch in batches])
            for name in batches[0].levels
        },
    )


@dataclass(frozen=True)
class Pins:
    """Fix, once per dataset, how every forward is run, so that any actor gives the same bytes."""

    micro_batch: int
    compute_dtype: str
    device: str
    threads: int

    @classmethod
    def from_dict(cls, value: object) -> Pins:
        """Read pins from JSON values.

        Raises:
            DataError: if a field is missing, unknown, of another type or out of range.
        """
        whole = ("micro_batch", "threads")
        known = {item.name for item in fields(cls)}
        if (
            not isinstance(value, dict)
            or set(value) != known
            or not all(type(value[key]) is int and value[key] >= 1 for key in whole)
            or not all(isinstance(value[key], str) for key in known - set(whole))
        ):
            raise DataError(
                f"pins: got {value!r:.200}, allowed {{micro_batch: 1.., compute_dtype: text, "
                "device: text, threads: 1..}."
            )
        return cls(**value)


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII.

    Raises:
        DataError: on NaN, infinities and values JSON does not know.
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"recipe: got a value JSON cannot hold ({error}), allowed texts, finite numbers, "
            "booleans, null, lists and dicts with text keys."
        ) from None


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """Hold everything that decides a dataset's bytes: `content` what, `layout` how it is stored."""

    name: str
    content: dict[str, object]
    layout: dict[str, object]

    def __post_init__(self) -> None:
        check_name(self.name, what="recipe name")

    @property
    def content_key(self) -> str:
        """SHA-256 of the content, 64 hex digits."""
        return digest_of(self.content)

    @property
    def layout_key(self) -> str:
        """SHA-256 of the layout, 64 hex digits."""
        return digest_of(self.layout)

    @property
    def family_key(self) -> str:
        """SHA-256 of the content but its source and levels: datasets that may serve each other."""
        return digest_of(without(self.content, "source", "levels"))

    @property
    def folder(self) -> str:
        """The dataset's folder under its root."""
        return f"{self.name}-{self.content_key[:12]}-{self.layout_key[:6]}"

    @property
    def samples_per_unit(self) -> int:
        """Samples of one work unit.

        Raises:
            DataError: if the layout does not say, or says something absurd.
        """
        count = self.layout.get("samples_per_unit")
        if type(count) is not int or not 1 <= count <= MAX_UNIT_SAMPLES:
            raise DataError(
                f"layout.samples_per_unit: got {count!r:.40}, allowed 1..{MAX_UNIT_SAMPLES}."
            )
        return count

    def codec_of(self, level: Level) -> str:
        """Return the name of the codec the layout gives a level; `raw` where it names none."""
        codecs = self.layout.get("codecs", {})
        if not isinstance(codecs, dict):
            raise DataError(f"layout.codecs: got {codecs!r:.80}, allowed a codec by level name.")
        return str(codecs.get(level.name, "raw"))

    @property
    def source(self) -> dict[str, object]:
        """The source's fingerprint: kind, count, digest and what else the source says of itself."""
        source = self.content.get("source", {})
        return cast("dict[str, object]", source) if isinstance(source, dict) else {}


def without(content: Mapping[str, object], *names: str) -> dict[str, object]:
    """Return the content without some of its keys."""
    return {key: value for key, value in content.items() if key not in names}


def covers_levels(have: Recipe, want: Recipe) -> bool:
    """Say whether every level wanted is among those a recipe records, described the same way."""
    return _level_set(want.content) <= _level_set(have.content)


def source_covers(
    have: Recipe, want: Recipe, *, prefix_digest: Callable[[int], str] | None = None
) -> bool:
    """Say whether the wanted source is the one a recipe read, or that one grown at its end.

    Args:
        have: recipe of a dataset that is there.
        want: recipe asked for.
        prefix_digest: the wanted source's own digest of its first `count` samples.
    """
    if have.source == want.source:
        return True
    count, wanted = have.source.get("count"), want.source.get("count")
    if have.source.get("kind") != want.source.get("kind") or prefix_digest is None:
        return False
    if type(count) is not int or type(wanted) is not int or not 0 < count <= wanted:
        return False
    return prefix_digest(count) == have.source.get("digest")


def _level_set(content: Mapping[str, object]) -> set[str]:
    levels = content.get("levels", [])
    items: Sequence[object] = levels if isinstance(levels, list) else []
    return {canonical_json(item) for item in items}
