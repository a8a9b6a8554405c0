"""Instance features that IC-GAN is conditioned on, read from a plain array file.

The official files are pickles (`np.save` of a dict); they are refused, because reading one may run
code. Converted where they are trusted, they hold `instance_features` and, if known, `labels`:

    found = np.load("instance_features.npy", allow_pickle=True).item()
    np.savez("instances.npz", instance_features=found["instance_features"], labels=found["labels"])
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamshard.errors import Problem, TeacherError
from dreamshard.foreign.arrays import read_npy, read_npz
from pipeline.teachers import weights

KEY = "settings.instance_features"
FEATURES, LABELS = "instance_features", "labels"
SUFFIXES = (".npy", ".npz", ".safetensors")
ROWS = 4096
"""Features normalised at a time: bounds the memory beside them, not the result."""
MAX_BYTES = 32 << 30
"""Largest archive, unpacked: three times ImageNet's 1.28 million features."""
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)
CONVERT = "Convert it as pipeline/teachers/gan/instances.py says, where you trust it."


@dataclass(frozen=True)
class Instances:
    """Features of N real images, of length 1, with their classes where known.

    Args:
        features: float32 (N, D).
        labels: int64 (N,) or None.
        digest: of the file.
    """

    features: np.ndarray
    labels: np.ndarray | None
    digest: str


def read_instances(path: Path, width: int, classes: int) -> tuple[Instances | None, list[Problem]]:
    """Read instance features and check them against the generator.

    Args:
        path: .npy of (N, D), or .npz or .safetensors of `instance_features` (N, D) and, if known,
            `labels` (N,).
        width: D of the generator.
        classes: of the generator, 0 for none.

    Returns:
        the features, or None with what is wrong.
    """
    if path.suffix not in SUFFIXES:
        return None, [Problem(KEY, str(path), f"a file of {', '.join(SUFFIXES)}", CONVERT)]
    try:
        instances = _read(str(path), weights.digest([path]))
    except _WrongError as error:
        return None, [Problem(KEY, f"{path}: {error.got}", error.allowed, CONVERT)]
    if instances.features.shape[1] != width:
        got = f"{path}: {FEATURES} of shape {instances.features.shape}"
        return None, [Problem(KEY, got, f"(N, {width})", "Is it of another generator?")]
    if not classes:
        return Instances(instances.features, None, instances.digest), []
    labels = instances.labels
    if labels is not None and not 0 <= labels.min() <= labels.max() < classes:
        got = f"{path}: {LABELS} {labels.min()}..{labels.max()}"
        return None, [Problem(KEY, got, f"0..{classes - 1}", "Is it of another generator?")]
    return instances, []


class _WrongError(Exception):
    def __init__(self, got: object, allowed: str) -> None:
        self.got, self.allowed = str(got) or type(got).__name__, allowed


@functools.lru_cache(maxsize=2)
def _read(path: str, digest: str) -> Instances:
    """Read, check and normalise; once per file and process."""
    try:
        arrays = _arrays(path)
    # What a damaged archive raises depends on the byte that is damaged.
    except (*READ_ERRORS, TeacherError) as error:
        raise _WrongError(error, "a readable file of plain arrays") from error
    features, labels = arrays.get(FEATURES), arrays.get(LABELS)
    if features is None:
        raise _WrongError(f"arrays {', '.join(arrays) or 'none'}", f"one of name {FEATURES}")
    if features.ndim != 2 or not features.size or features.dtype.kind != "f":
        got = f"{FEATURES} of shape {features.shape}, {features.dtype}"
        raise _WrongError(got, "(N, D) of floating-point numbers")
    unit = np.empty(features.shape, np.float32)
    for first in range(0, len(unit), ROWS):
        part = features[first : first + ROWS].astype(np.float64)
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise _WrongError("features that are zero or not finite", "finite ones, of any length")
        unit[first : first + ROWS] = part / lengths
    if labels is not None and (labels.shape != (len(unit),) or labels.dtype.kind not in "iu"):
        got = f"{LABELS} of shape {labels.shape}, {labels.dtype}"
        raise _WrongError(got, f"({len(unit)},) of whole numbers")
    return Instances(unit, None if labels is None else labels.astype(np.int64), digest)


def _arrays(path: str) -> dict[str, np.ndarray]:
    if path.endswith(".safetensors"):
        import torch

        state = weights.read([Path(path)])
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in state.items()
        }
    if path.endswith(".npy"):  # mapped: a header cannot ask for more memory than the file has
        return {FEATURES: read_npy(Path(path))}
    return read_npz(Path(path), (FEATURES, LABELS), limit=MAX_BYTES)
