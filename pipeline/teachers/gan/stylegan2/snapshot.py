"""Read `network-snapshot-*.pkl`: what is in it, without running the source text that it carries.

Every module of such a file is a "persistent object": a call with its class's source, its name and
its attributes. The attributes alone are read; parameters, buffers and children are all that counts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import TeacherError
from dreamshard.foreign.machine import Maker, Passive, passive
from dreamshard.foreign.tensors import TensorRecord, resolve
from dreamshard.foreign.torchfiles import read_network_pickle

if TYPE_CHECKING:
    from torch import Tensor

OBJECT = "torch_utils.persistence._reconstruct_persistent_obj"
SETTINGS_DICT = "dnnlib.util.EasyDict"
CONTAINERS = tuple(
    f"torch.nn.modules.container.{name}" for name in ("ModuleList", "ModuleDict", "Sequential")
)
MAX_DEPTH = 16
NETWORKS = ("G_ema", "G", "D")


@dataclass(frozen=True)
class Stored:
    """One network of a file, its tensors not read yet.

    Args:
        where: file and key, for messages.
        name: of its class.
        told: arguments of its constructor.
        tensors: official name -> record.
        size: of the file (bytes).
    """

    where: str
    name: str
    told: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]
    size: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return official name -> shape."""
        return {name: tuple(record.size) for name, record in self.tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """Read the tensors."""
        try:
            return resolve(dict(self.tensors), device="cpu", size=self.size)
        except ValueError as error:
            raise TeacherError(f"{self.where}: {error}. Fetch it again.") from error


@dataclass(frozen=True)
class Facts:
    """What describes a network of a file, small enough to keep."""

    told: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def facts(path: Path, key: str) -> Facts:
    """Return what a file says of one of its networks; the file is read once per process.

    Raises: TeacherError, as `read_snapshot`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error.strerror}).") from error
    return _facts(str(path), key, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _facts(path: str, key: str, _size: int, _mtime: int) -> Facts:
    stored = read_snapshot(Path(path), key)
    return Facts(stored.told, stored.shapes())


def read_snapshot(path: Path, key: str) -> Stored:
    """Read one network of a file of the official code.

    Args:
        path: the .pkl.
        key: one of `NETWORKS`.

    Raises: TeacherError for a file that is damaged, would run code, is StyleGAN3's or an old one of
        TensorFlow's, or lacks the network.
    """
    value = read_network_pickle(path, _find(path), error=TeacherError)
    if not isinstance(value, dict) or not any(name in value for name in NETWORKS):
        got = f"keys {', '.join(map(str, value))[:80]}" if isinstance(value, dict) else "no dict"
        raise TeacherError(
            f"{path}: got {got}, allowed a dict of {', '.join(NETWORKS)} as StyleGAN2-ADA's "
            "training writes it (network-snapshot-*.pkl)."
        )
    if value.get(key) is None:
        there = ", ".join(name for name in NETWORKS if value.get(name) is not None)
        raise TeacherError(f"{path}: it holds no {key}, only {there}.")
    where = f"{path}: {key}"
    meta = _meta(value[key], where)
    tensors: dict[str, TensorRecord] = {}
    _flatten(value[key], "", tensors, where, 0)
    if any(name.startswith("synthesis.input.") for name in tensors):
        raise TeacherError(f"{where}: it is a StyleGAN3 network, allowed StyleGAN2-ADA's.")
    told = meta["state"].get("_init_kwargs")
    if not isinstance(told, dict):
        raise TeacherError(f"{where}: _init_kwargs: not there, allowed its constructor's settings.")
    return Stored(where, str(meta.get("class_name", "?")), told, tensors, path.stat().st_size)


def _find(path: Path) -> Any:
    def find(name: str) -> Any:
        # Forks keep the official folders inside packages of their own.
        if _ends(name, OBJECT) or name in CONTAINERS:
            return passive(name)
        if _ends(name, SETTINGS_DICT):
            return Maker(name, _settings)
        if ".tflib." in f".{name}":
            raise TeacherError(
                f"{path}: it is a legacy TensorFlow pickle of StyleGAN ({name:.80}). Convert it "
                "with legacy.py of stylegan2-ada-pytorch where you trust it."
            )
        return None

    return find


def _settings() -> dict[str, Any]:
    return {}


def _ends(name: str, whole: str) -> bool:
    return name == whole or name.endswith(f".{whole}")


def _meta(record: Any, where: str) -> dict[str, Any]:
    """Return what a persistent object, or a container of torch's, says of itself."""
    meta: Any = None
    if isinstance(record, Passive):
        if record.name in CONTAINERS:
            meta = {"state": record.state}
        elif len(record.arguments) == 1:
            meta = record.arguments[0]
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise TeacherError(
            f"{where}: got {type(record).__name__}, allowed a network of the official code."
        )
    return meta


def _flatten(
    record: Any, prefix: str, tensors: dict[str, TensorRecord], where: str, depth: int
) -> None:
    """Collect parameters and buffers by their official names, checked."""
    if depth > MAX_DEPTH:
        raise TeacherError(f"{where}: modules nested more than {MAX_DEPTH} deep.")
    state = _meta(record, f"{where}.{prefix}".rstrip("."))["state"]
    for group in ("_parameters", "_buffers", "_modules"):
        entries = state.get(group, {})
        if not isinstance(entries, dict):
            raise TeacherError(f"{where}: {prefix}{group}: got no dict.")
        for name, entry in entries.items():
            if entry is None:
                continue
            full = f"{prefix}{name}"
            if group == "_modules":
                _flatten(entry, f"{full}.", tensors, where, depth + 1)
                continue
            if not isinstance(entry, TensorRecord) or full in tensors:
                raise TeacherError(f"{where}: {full}: got {type(entry).__name__}, not one tensor.")
            try:
                entry.check(full)
            except ValueError as error:
                raise TeacherError(f"{where}: {error}. Nothing was made.") from error
            tensors[full] = entry
