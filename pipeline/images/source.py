"""Where images come from: one interface over folders, Parquet, tar shards and dataset libraries.

A source is opened once, by the driver, and handed to the actors as it is (it pickles): they never
list a bucket again, and all read the same list. It is identified by what it holds, not by what its
files are called or where they lie.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Protocol, cast

import numpy as np
import xxhash
from pydantic import Field

from dreamshard.config.reads import OWN, Table, When, unread
from dreamshard.errors import ConfigError, DataError, DreamshardError, Problem
from dreamshard.foreign import trusted
from pipeline.images.evidence import sample_bytes, spread
from pipeline.images.labels import Labels
from pipeline.images.listing import File, Passed

SOURCES: dict[str, str] = {
    "digits": "pipeline.images.sources.digits:DigitsSource",
    "folder": "pipeline.images.sources.folder:FolderSource",
    "parquet": "pipeline.images.sources.parquet:ParquetSource",
    "webdataset": "pipeline.images.sources.tarfiles:TarSource",
    "torchvision": "pipeline.images.sources.vision:VisionSource",
    "hf": "pipeline.images.sources.hub:HubSource",
    "fifths": "pipeline.images.sources.fifths:FifthsSource",
}
"""Short name -> `module:Class`; `module:Class` of your own works as a kind too."""
LATENTS = "latents"
"""Kind of a dataset whose latents stand in for images: `pipeline.images.stored`."""

EVERY = (
    "path name split key_column image_column label_column mask_column class_folders "
    "allow_unreadable"
)
READS: dict[object, str] = {
    "digits": "split",
    "folder": "path class_folders allow_unreadable",
    "parquet": "path key_column image_column label_column mask_column",
    "webdataset": "path image_column label_column mask_column",
    "torchvision": "path name split",
    "hf": "path name split image_column label_column mask_column",
    LATENTS: "path",
    "fifths": EVERY.replace("name ", "", 1),
    OWN: EVERY,
}
"""Settings that each kind reads; any other that is set is refused, not ignored."""
HELDOUT = {"torchvision": "test", "hf": "test"}
"""Name of the part to judge on, where it is not `heldout`."""
IDENTITY = 2
"""Version of the rule by which content is identified."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SourceConfig:
    """Which images to encode, in which order."""

    # auto is told from the path when the source is opened, and what it reads with it.
    reads: ClassVar = (Table("kind", {**READS, "auto": EVERY}),)

    kind: str = "auto"
    """Source family: digits | folder | parquet | webdataset | torchvision | hf | fifths, or
    module:Class; auto tells folder, parquet, webdataset and hf from what lies at the path. fifths
    parts a folder, Parquet or tar files: four fifths are split train, one is heldout. latents: a
    dataset whose latents stand in for images, to record more of them without decoding."""
    path: str = ""
    """Folder, file, glob pattern or URL (any fsspec protocol); a repository for hf; unused by
    digits."""
    name: str = ""
    """torchvision: the dataset's class name such as CIFAR10. hf: the configuration's name."""
    split: str = ""
    """Part of the data: digits and fifths train | heldout | all; torchvision train | test; hf its
    own names. Empty: train; of images to judge on, heldout, which torchvision and hf call test."""
    key_column: str = "key"
    """Parquet: column with each sample's name (texts or whole numbers); where key is absent, or
    empty is given, names are made of file and row."""
    image_column: str = "image"
    """Parquet and hf: column with encoded image bytes. webdataset: where other than image, members
    `<key>.<this>.jpg` and the like are the images."""
    label_column: str = "label"
    """Parquet and hf: column with classes, numbers or texts; label is taken where present (Parquet:
    from folders label=cat, too), empty for none. webdataset: empty leaves `<key>.cls` out."""
    mask_column: str = "mask"
    """Parquet and hf: column with encoded masks; webdataset: members `<key>.<this>.png`; empty for
    none."""
    class_folders: bool = False
    """Folder: number the first-level subfolders in sorted order and record them as labels."""
    allow_unreadable: bool = False
    """Folder: go on without the folders that may not be listed, instead of stopping."""

    def problems(self) -> list[Problem]:
        """List what can be told wrong without looking at the data."""
        if self.kind == "auto":  # told from the path when it is opened; not every run needs it
            return []
        if self.kind in SOURCES or self.kind == LATENTS:
            if self.kind not in ("digits", "torchvision") and not self.path:
                hint = "Give the images with --source.path."
                return [Problem("path", "nothing", "a path or URL", hint)]
            return []
        if ":" in self.kind:
            return []
        close = difflib.get_close_matches(self.kind, SOURCES, n=1)
        hint = f"Did you mean {close[0]}?" if close else ""
        return [Problem("kind", self.kind, " | ".join(SOURCES) + " | auto | module:Class", hint)]


@dataclass(kw_only=True)
class ImageConfig:
    """How images are brought to the teacher's size; part of the recipe."""

    reads: ClassVar = (
        When("with views above 1", "shift scale rotate", lambda image: image.views > 1, "views"),
    )

    size: Annotated[int, Field(ge=0, le=8192)] = 0
    """Height given to the teacher, and width unless that is set (pixels); 0 for the teacher's own
    size."""
    width: Annotated[int, Field(ge=0, le=8192)] = 0
    """Width given to the teacher, where it differs from the height (pixels)."""
    resize: Literal["bicubic", "bilinear", "lanczos", "box", "adm"] = "bicubic"
    """Filter; adm halves with a box filter down to twice the size first, as guided-diffusion
    does."""
    crop: Literal["center", "squash"] = "center"
    """Fit the short side and cut the centre out, or squash the whole image into the square."""
    flip: Literal["none", "random"] = "none"
    """Mirror half of the samples, drawn by (seed, index), or none."""
    views: Annotated[int, Field(ge=1, le=1024)] = 1
    """Samples per image (count); view 0 is the image itself, the others are jittered as below."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0625
    """Largest shift of a view along each axis, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of a view's size: drawn from 1 - scale .. 1 + scale."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation of a view either way (degrees)."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width asked for, in pixels; None for the teacher's own."""
        return (self.size, self.width or self.size) if self.size else None

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        if self.width and not self.size:
            hint = "Set image.size to the height."
            return [Problem("width", str(self.width), "0 without image.size", hint)]
        return []


@dataclass
class Record:
    """One sample as the source keeps it."""

    key: str
    data: bytes | np.ndarray | None
    """Encoded image, or uint8 (H, W) | (H, W, 3); None where the source has an empty entry."""
    label: int = -1
    mask: bytes | np.ndarray | None = None
    error: str = ""
    """Why this sample cannot be had, while others can."""


class ImageSource(Protocol):
    """An ordered, immutable, picklable list of images.

    A source may also have `evidence` (uint64 (N,), what each image's bytes are: `evidence.sample`),
    `labels` (`Labels`, known since the listing), `passed` (what the listing passed over). One
    without `evidence` is identified by some of its samples, which are read (`evidence.spread`).
    """

    kind: str
    rule: str
    """What decides the images besides keys and content (version of a conversion)."""
    has_labels: bool
    has_masks: bool

    def __len__(self) -> int: ...

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes, without reading it."""
        ...

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read samples; called from one thread at a time.

        Raises:
            OSError: if storage fails; the caller retries, then reads one by one. Damaged images are
                not errors here: their bytes are handed on and found out when decoded.
        """
        ...


def open_source(
    config: SourceConfig, *, key: str = "source", part: Literal["train", "heldout"] = "train"
) -> ImageSource:
    """List a source.

    Args:
        config: which.
        key: dotted key of its settings, for messages.
        part: of the data where the settings name none.

    Raises:
        ConfigError: nothing at that path, an unknown kind or split, a missing package or column, a
            setting that this kind does not read.
        DataError: no image in it, a listing that fails.
    """
    problems = config.problems()
    if config.kind == "auto" and not problems:
        config = replace(config, kind=infer_kind(config.path, key=key))
        log.info("%s: %s is read as kind %s", key, config.path, config.kind)
    if config.kind == LATENTS:
        hint = "Latents stand in for images in `dreamshard encode` alone."
        problems = [Problem("kind", LATENTS, " | ".join(SOURCES), hint)]
    problems = problems or list(unread(config))
    if problems:
        raise ConfigError([item.under(key) for item in problems])
    kind = config.kind
    meant = HELDOUT.get(kind, part) if part == "heldout" else part
    config = replace(config, split=config.split or meant)
    target = SOURCES.get(kind, kind)
    try:
        cls = trusted.find(kind, table=SOURCES)
    except (ImportError, AttributeError) as error:
        hint = "Check the spelling and that the module is on PYTHONPATH."
        problem = Problem(
            "source.kind", f"{target} ({error})", "a class that can be imported", hint
        )
        raise ConfigError(problem) from error
    try:
        source = cast(ImageSource, cls(config))
        evidence_of(source)
    except DreamshardError:
        raise
    except Exception as error:  # stores and libraries raise what they like
        raise DataError(
            f"{key}: got {type(error).__name__} while listing {config.path or kind}: "
            f"{str(error).strip() or 'no reason given'}. {_advice(error, key)}"
        ) from error
    passed = passed_over(source)
    if len(source) == 0:
        raise DataError(
            "; ".join([f"source: no image found in {config.path or kind}", *passed])
            + ". Check source.path."
        )
    for line in passed:
        log.warning("source: passed over %s", line)
    return source


ADVICE = (
    (
        ("credential", "token", "unauthorized", "401", "not signed"),
        "Give credentials the way the store's library reads them (AWS_ACCESS_KEY_ID or ~/.aws, "
        "GOOGLE_APPLICATION_CREDENTIALS, `hf auth login`), on every node.",
    ),
    (
        ("permission", "forbidden", "accessdenied", "access denied", "403"),
        "These credentials may not list it: grant list and read on the bucket.",
    ),
    (
        ("nosuchbucket", "no such bucket", "notfound", "filenotfound", "404"),
        "Check the bucket's and the folder's name in --{key}.path.",
    ),
    (
        ("connect", "endpoint", "timeout", "timed out", "resolve", "unreachable", "ssl"),
        "Check the network, the endpoint (AWS_ENDPOINT_URL) and proxies, then run it again.",
    ),
)
"""Words in an error's type or text, and what to do about it."""


def _advice(error: Exception, key: str) -> str:
    """Say what to do about a listing that failed."""
    text = f"{type(error).__name__} {error}".lower()
    fitting = next((advice for words, advice in ADVICE if any(word in text for word in words)), "")
    return (fitting or "Check --{key}.path, credentials and network.").format(key=key)


def infer_kind(path: str, *, key: str = "source") -> str:
    """Tell a source's kind from what lies at its path.

    Raises:
        ConfigError: if nothing tells it.
    """
    lower = path.lower().rstrip("/")
    for ending, kind in ((".tar", "webdataset"), (".parquet", "parquet")):
        if lower.endswith(ending):
            return kind
    if not path:
        hint = f"Give your images with --{key}.path, or try --{key}.kind digits."
        raise ConfigError(Problem(f"{key}.path", "nothing", "a path or URL", hint))
    if os.path.isdir(path):
        names = set(os.listdir(path))
        if names & {"dataset_info.json", "dataset_dict.json"}:
            return "hf"
        endings = {os.path.splitext(name)[1].lower() for name in names if name[0] != "."}
        for ending, kind in ((".tar", "webdataset"), (".parquet", "parquet")):
            if ending in endings:
                return kind
        return "folder"
    if "://" in path:
        return "folder"
    hint = "Check the path."
    if key.endswith(("source", "images")):  # others tell the kind by themselves
        hint = f"Check the path, or say what it is with --{key}.kind {' | '.join(SOURCES)}."
    raise ConfigError(Problem(f"{key}.path", path, "an existing folder, tar or Parquet file", hint))


def passed_over(source: ImageSource) -> list[str]:
    """Say what a source's listing passed over, a line per reason."""
    passed: Passed | None = getattr(source, "passed", None)
    return passed.lines() if passed else []


def labels_of(source: ImageSource) -> Labels | None:
    """Return the labels that are known since the listing; None where there are none."""
    return getattr(source, "labels", None)


FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What says that one sample is not there, not that it could not be read just now."""


def failed(key: str, error: Exception) -> Record:
    """Return the record of a sample that cannot be had."""
    return Record(key, None, error=f"{type(error).__name__}: {error}"[:200])


def labelled(source: ImageSource, indices: Sequence[int], records: list[Record]) -> list[Record]:
    """Add the labels that are known since the listing, and what is wrong with them."""
    labels = labels_of(source)
    if labels is not None:
        for index, record in zip(indices, records, strict=True):
            record.label = int(labels.numbers[index])
            record.error = record.error or labels.errors.get(int(index), "")
    return records


def evidence_of(source: ImageSource) -> np.ndarray:
    """Return what each image's bytes are, uint64 (N,); 0 where a sample stands for nothing.

    A source that does not tell by itself is read at some places; the answer is kept with it.
    """
    known = getattr(source, "evidence", None)
    if known is None:
        known = np.zeros(len(source), np.uint64)
        rows = spread(len(source))
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            known[part] = [_record_digest(record) for record in source.read(part)]
        source.evidence = known  # type: ignore[attr-defined]
    return known


def tag_digests(files: Sequence[File]) -> np.ndarray:
    """Digest what a remote store says of its objects, uint64 (N,)."""
    digests = [xxhash.xxh3_64_intdigest(f"{file.size}\0{file.tag}".encode()) for file in files]
    return np.array(digests, np.uint64)


def prefix_digest(source: ImageSource, count: int) -> str:
    """Digest the rule and the first `count` keys, sizes and evidence of content: SHA-256, hex.

    A source that only grew at its end has the digest of the shorter one for that count. Neither
    paths nor times count, so a copied or touched folder is the one it was.
    """
    evidence = evidence_of(source)[:count].astype("<u8")
    sha = hashlib.sha256(f"{IDENTITY}\n{source.kind}\n{source.rule}\n".encode())
    for index in range(count):
        key, size = source.entry(index)
        sha.update(f"{key}\0{size}\n".encode("utf-8", "surrogateescape"))
    sha.update(evidence.tobytes())
    return sha.hexdigest()


def fingerprint(source: ImageSource) -> dict[str, object]:
    """Identify a source: kind, count and digest of its images, digest of its labels if any."""
    labels = labels_of(source)
    return {
        "kind": source.kind,
        "count": len(source),
        "digest": prefix_digest(source, len(source)),
        **({"labels": labels.digest} if labels else {}),
    }


def _record_digest(record: Record) -> int:
    return sample_bytes(record.data) ^ (sample_bytes(record.mask) * 3 & (2**64 - 1))
