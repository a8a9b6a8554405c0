"""Instance features that IC-GAN is conditioned on, read from a plain array file.

The official files are pickles (`np.save` of a dict); they are refused, because reading one may run
code. Converted where they are trusted, they hold `instance_features` and, if known, `labels`:

    found = np.load("instance_features.npy", allow_pickle=True).item()
    np.savez("instances.npz", instance_features=found["instance_features"], labels=found["labels"])
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamshard.errors import Problem
from pipeline.teachers import weights

KEY = "settings.instance_features"
FEATURES, LABELS = "instance_features", "labels"
SUFFIXES = (".npy", ".npz", ".safetensors")
CONVERT = "Convert it as pipeline/teachers/instances.py says, where you trust it."


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
        arrays = _arrays(str(path), weights.digest([path]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return None, [Problem(KEY, f"{path} ({error})", "a readable file of plain arrays", CONVERT)]
    features, labels = arrays.get(FEATURES), arrays.get(LABELS)
    if features is None or features.shape[1:] != (width,) or not len(features):
        got = "none" if features is None else f"one of shape {features.shape}"
        return None, [Problem(KEY, f"{FEATURES}: {got}", f"(N, {width})")]
    features = features.astype(np.float32)
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        return None, [Problem(KEY, "features that are zero or not finite", "finite, of any length")]
    if labels is not None and classes:
        if labels.shape != (len(features),) or not np.issubdtype(labels.dtype, np.integer):
            got = f"{LABELS} of shape {labels.shape}, {labels.dtype}"
            return None, [Problem(KEY, got, f"({len(features)},) of whole numbers")]
        if labels.min() < 0 or labels.max() >= classes:
            got = f"{LABELS} {labels.min()}..{labels.max()}"
            return None, [Problem(KEY, got, f"0..{classes - 1}")]
    kept = labels.astype(np.int64) if labels is not None and classes else None
    unit = (features / lengths).astype(np.float32)
    return Instances(unit, kept, weights.digest([path])), []


@functools.lru_cache(maxsize=2)
def _arrays(path: str, _digest: str) -> dict[str, np.ndarray]:
    if path.endswith(".safetensors"):
        state = weights.read([Path(path)])
        return {name: tensor.numpy() for name, tensor in state.items()}
    value = np.load(path, allow_pickle=False)
    if isinstance(value, np.ndarray):
        return {FEATURES: value}
    with value:
        return {name: value[name] for name in value.files}
