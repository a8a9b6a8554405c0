"""Read weights without executing anything in them, and say in one line what is wrong with them."""

from __future__ import annotations

import functools
import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import text
from dreamshard.foreign.arrays import (
    npz_shapes,
    read_npz,
    read_safetensors,
    safetensors_shapes,
)
from dreamshard.foreign.torchfiles import read_torch
from storage.schema import canonical_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

SAFE, PICKLED = (".safetensors",), (".bin", ".pt", ".pth", ".ckpt")
ARRAYS = (".npz",)
"""Variables that TensorFlow's users save."""
MOST_PACKED, PACKED_BYTES = 2, 100 << 20
"""Unpacked, arrays may hold so many times their file's bytes, and so many more (bytes): weights
pack by a tenth, and a file of zeros would fill the memory."""
WRAPPERS = ("ema", "state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the state dict, the averaged weights first."""
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CARD = "teacher_card.json"
"""File beside the weights that says where they come from; its `licence` goes with every dataset."""
NAMED = 10
"""How many missing or surplus keys a message lists."""
MOST_PARTS = 10_000
"""Modules of a network whose layers its file counts; those there are have up to some 3,000."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises: TeacherError if the file is missing or not a JSON object.
    """
    if not path.exists():
        raise TeacherError(f"{path}: not found. Give a folder saved by save_pretrained.")
    # diffusers writes Infinity into the configs of some schedulers.
    value = text.read_json(path, error=TeacherError, infinite=True, hint="Fetch it again.")
    if not isinstance(value, dict):
        raise TeacherError(f"{path}: got a JSON {type(value).__name__}, allowed an object.")
    return value


def find_weights(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[Path, ...]:
    """Find a diffusers model's weight files: safetensors (whole or in parts), else .bin.

    Files of one variant (`STEM.fp16.safetensors`, `STEM.safetensors.index.fp16.json`) are taken
    where there are no plain ones.

    Raises: TeacherError if there are none, several variants and no plain one, or a part named in
        the index is missing.
    """
    for suffix in (*SAFE, ".bin"):
        by_variant = _of_variants(folder, stem, suffix)
        variant = "" if "" in by_variant else next(iter(by_variant), "")
        if "" not in by_variant and len(by_variant) > 1:
            names = ", ".join(sorted(path.name for path in by_variant.values()))
            raise TeacherError(
                f"{folder}: got {names}, allowed one variant, or one plain {stem}{suffix}. "
                "Move away those you do not want."
            )
        if by_variant:
            path = by_variant[variant]
            return _parts(folder, path) if path.suffix == ".json" else (path,)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in SAFE + PICKLED)
    hint = f"Found only {', '.join(others)[:200]}." if others else "Is it the folder?"
    raise TeacherError(f"{folder}: no {stem}.safetensors or .bin. {hint}")


def _of_variants(folder: Path, stem: str, suffix: str) -> dict[str, Path]:
    """Return variant ("" for none) -> its one file, else its index."""
    name = rf"{re.escape(stem)}(?:\.(?P<variant>\w+))?{re.escape(suffix)}"
    index = rf"{re.escape(stem)}{re.escape(suffix)}\.index(?:\.(?P<variant>\w+))?\.json"
    by_variant: dict[str, Path] = {}
    for pattern in (index, name):  # a whole file wins over an index
        for path in sorted(folder.glob(f"{glob.escape(stem)}*")):
            if (match := re.fullmatch(pattern, path.name)) and path.is_file():
                by_variant[match["variant"] or ""] = path
    return by_variant


def _parts(folder: Path, index: Path) -> tuple[Path, ...]:
    """Return the files that an index names, in their folder and there."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise TeacherError(f"{index}: weight_map: got {table!r:.80}, allowed names of files.")
    parts = sorted({str(part) for part in table.values()})
    for part in parts:
        if Path(part).name != part or Path(part).suffix not in (*SAFE, ".bin"):
            raise TeacherError(
                f"{index}: weight_map: got {part!r:.80}, allowed names of files beside it."
            )
        if not (folder / part).is_file():
            raise TeacherError(f"{folder / part}: missing part of {index.name}.")
    return tuple(folder / part for part in parts)


def licence(folder: Path) -> str:
    """Read the licence from the card beside the weights."""
    for place in (folder, folder.parent):
        if (place / CARD).is_file():
            return str(read_json(place / CARD).get("licence", "unknown"))
    return "unknown"


def digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' contents, in order; a file is hashed once per process."""
    parts = [_digest_one(str(path.resolve()), *_size_and_time(path)) for path in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def identity(
    family: str, files: Sequence[Path], architecture: Mapping[str, Any]
) -> dict[str, object]:
    """Return what identifies a network: its family, digests of weights and architecture."""
    told = canonical_json(dict(architecture))
    return {
        "kind": family,
        "weights": digest(files),
        "architecture": hashlib.sha256(told.encode()).hexdigest(),
    }


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error.strerror}).") from error
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _digest_one(path: str, _size: int, _mtime: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read one state dict from one file or several parts.

    Raises: TeacherError for a file that is missing, truncated, of unknown format, or that would
        execute code on loading.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        if path.suffix in SAFE:
            state.update(read_safetensors(path, error=TeacherError))
        elif path.suffix in ARRAYS:
            state.update(_read_arrays(path))
        else:
            state.update(_read_pickled(path))
    return state


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an archive, in its order.

    Raises: TeacherError for an archive that cannot be read, or that unpacks to far more than it is.
    """
    names = npz_shapes(path, error=TeacherError)
    limit = MOST_PACKED * path.stat().st_size + PACKED_BYTES
    return read_npz(path, names, limit=limit, error=TeacherError)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """Read the numbers of an archive; what is text or None in it is no tensor."""
    import numpy as np
    import torch

    return {
        name: torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("="), order="C"))
        for name, array in read_arrays(path).items()
        if array.dtype.kind in "fiu" and array.itemsize <= 8
    }


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of one file's tensors, without reading their values where possible.

    Raises: TeacherError, as `read`.
    """
    return dict(_shapes(path, *_size_and_time(path)))


@functools.lru_cache(maxsize=16)
def _shapes(path: Path, _size: int, _mtime: int) -> dict[str, tuple[int, ...]]:
    if path.suffix in ARRAYS:
        return npz_shapes(path, error=TeacherError)
    if path.suffix not in SAFE:
        state = _read_pickled(path, device="meta")
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    return safetensors_shapes(path, error=TeacherError)


def _read_pickled(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    # Training files of the DiT family carry their arguments; a Namespace only holds values.
    value = read_plain(path, passive=("argparse.Namespace",), device=device)
    return plain_state(value, where=str(path))


def read_plain(path: Path, *, passive: tuple[str, ...] = (), device: str = "cpu") -> Any:
    """Read a pickled file of tensors and plain values, running nothing in it.

    Args:
        path: written by torch.save.
        passive: names of classes whose objects may be in it as well; they are not made.
        device: where tensors go; "meta" for shapes alone.

    Raises: TeacherError for a file that is missing, damaged, or would execute code on loading.
    """
    if not path.exists():
        raise TeacherError(f"{path}: not found.")
    return read_torch(path, passive=passive, device=device, error=TeacherError)


def plain_state(value: object, *, where: str) -> dict[str, Tensor]:
    """Unwrap a training file down to its state dict, averaged weights first.

    Raises: TeacherError if no dict of tensors is inside.
    """
    import torch

    def plain(item: object) -> bool:
        return (
            isinstance(item, Mapping)
            and bool(item)
            and all(isinstance(each, torch.Tensor) for each in item.values())
        )

    if isinstance(value, list | tuple):
        # DDIM's trainer: [weights, optimizer, epoch, step] and, where it averaged, the averages.
        value = next((item for item in reversed(value) if plain(item)), None)
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        if plain(value):
            return {str(key).removeprefix("module."): item for key, item in value.items()}
        value = next((value[name] for name in WRAPPERS if name in value), None)
    raise TeacherError(
        f"{where}: holds no state dict (a dict of tensors, plain or under {', '.join(WRAPPERS)})."
    )


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention weights of files that diffusers wrote before version 0.17.

    DDPM's published networks and Stable Diffusion's autoencoders have `query`, `key`, `value` and
    `proj_attn` where newer files have `to_q`, `to_k`, `to_v` and `to_out.0`.
    """

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}.{_NEW_NAMES[match[2]]}."

    return {_OLD_ATTENTION.sub(rename, name): value for name, value in state.items()}


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """Return how many numbers the keys' beginnings have that a pattern's group finds.

    Raises: ValueError if these are not 0, 1, 2 ...: a last number alone counts nothing.
    """
    numbers = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    if not numbers or max(numbers) != len(numbers) - 1:
        told = f"{len(numbers)} numbers up to {max(numbers, default=None)}"
        raise ValueError(f"{pattern} finds {told}, not 0, 1, 2 ...")
    return len(numbers)


def unbuilt(make: Callable[[], Any], *, where: str) -> Any:
    """Build a network on the meta device, where nothing is allocated whatever shapes a file tells.

    Args:
        make: constructs it.
        where: names the file in errors.

    Raises: TeacherError for more modules than any network has.
    """
    import torch

    from dreamshard.foreign.networks import TooManyPartsError, bounded

    try:
        with bounded({}, most_parts=MOST_PARTS), torch.device("meta"):
            return make()
    except TooManyPartsError as error:
        raise TeacherError(f"{where}: describes a network of {error}. Fetch it again.") from error


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Put weights into a module, which may be on the meta device, and freeze it.

    Args:
        state: must have every key of the module in its shape, and no other.
        where: names the weights in errors.
        dtype: of the computation; None for that of the weights.

    Raises: TeacherError naming the first ten missing, surplus or misshapen keys, or the first
        tensor with values that are not finite.
    """
    import torch

    refuse_unfit(module, state, where=where)
    refuse_not_finite(state, where=where)
    module.load_state_dict(state, strict=True, assign=True)
    # torch's own `to`: that of diffusers warns about modules it would keep in float32, even none.
    return torch.nn.Module.to(module, dtype=dtype).eval().requires_grad_(False)


def refuse_unfit(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse weights with other keys or shapes than a module's; see `load_into`."""
    own = module.state_dict()
    wrong = {
        "missing": [key for key in own if key not in state],
        "surplus": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} not {tuple(value.shape)}"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    complaints = [
        f"{len(keys)} keys {what}: {', '.join(keys[:NAMED])}"
        + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
        for what, keys in wrong.items()
        if keys
    ]
    if complaints:
        raise TeacherError(
            f"{where}: the weights do not fit the architecture; {'; '.join(complaints)}. "
            "Check the config or the flags against the file."
        )


def refuse_not_finite(state: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse weights that hold NaN or infinity, by the name of the first such tensor."""
    for key, tensor in state.items():
        # One pass and one number: a NaN or an infinity anywhere makes the sum not finite.
        if tensor.is_floating_point() and not bool(tensor.double().sum().isfinite()):
            raise TeacherError(f"{where}: {key} has values that are not finite. Fetch it again.")


def one_file(
    path: Path,
    *,
    named: str,
    of: str,
    look: Callable[[Path], Sequence[Path]],
    suffixes: Sequence[str] = (*SAFE, *PICKLED),
) -> Path:
    """Return a checkpoint: the file named, or the only one that is found in a folder.

    Args:
        path: of a file or a folder.
        named: what such files are called, such as "D*.pth".
        of: what to give instead of a path that leads nowhere.
        look: lists those of a folder, in order.
        suffixes: that such a file may have.

    Raises: ConfigError if there is none, or more than one.
    """
    if path.is_file():
        if path.suffix not in suffixes:
            raise ConfigError(Problem("path", str(path), f"a file of {', '.join(suffixes)}"))
        return path
    if not path.is_dir():
        hint = f"Give {of}, or its folder."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    files = look(path)
    if len(files) != 1:
        got = ", ".join(file.name for file in files) or f"no {named} in {path}"
        raise ConfigError(Problem("path", got, f"one {named}", "Name the file."))
    return files[0]
