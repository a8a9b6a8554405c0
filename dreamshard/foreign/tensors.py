"""Tensors as pickles tell of them: storages and views of these, checked before anything is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamshard.foreign import trusted
from dreamshard.foreign.machine import Budget, Machine, Maker, Passive, RefusedError, passive
from dreamshard.foreign.pickle_names import MAX_DIMENSIONS, PickledArray, plain_names
from dreamshard.foreign.pickles import run

if TYPE_CHECKING:
    from torch import Tensor

STORAGES = {
    "Float": ("float32", 4), "Double": ("float64", 8), "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2), "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2),
    "Char": ("int8", 1), "Byte": ("uint8", 1), "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16), "Untyped": ("uint8", 1),
}  # fmt: skip
"""Class of a storage, without its last word -> name of torch's number format, bytes of a number."""
SIZES = dict(STORAGES.values())
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
SPARE = 1 << 20
"""Bytes that the tensors of a file may hold beyond twice the file: ties, and those of no bytes."""
MAX_DEPTH = 64


@dataclass(eq=False)
class Storage:
    """Numbers of one kind, side by side in a file.

    Args:
        dtype: name of torch's number format.
        count: of its numbers, as the file says; checked when they are read.
        key: its name in the file.
    """

    dtype: str
    count: int
    key: str
    raw: Callable[[], Any] | None = None
    """Gives its bytes, a buffer that may be kept; None until the file was read so far."""
    tensor: Any = None
    """All of it, once a tensor of it was made."""

    def bytes(self) -> Any:
        """Return its numbers as a buffer that may be kept."""
        if self.raw is None:
            raise ValueError(f"storage {self.key}: its numbers are missing")
        return self.raw()

    @property
    def nbytes(self) -> int:
        """Return its size in bytes."""
        return self.count * SIZES[self.dtype]


@dataclass(eq=False)
class TensorRecord:
    """A view of a storage; nothing is made yet, and nothing is checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    def check(self, name: str) -> None:
        """Refuse a view that is not wholly inside its storage, or meets itself.

        Args:
            name: of the tensor, for messages.

        Raises: ValueError.
        """
        if not isinstance(self.storage, Storage):
            raise ValueError(f"tensor {name}: of a {type(self.storage).__name__}, not a storage")
        numbers = (self.offset, *_whole(self.size, name), *_whole(self.stride, name))
        if len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name}: {len(self.size)} sizes, {len(self.stride)} strides")
        told = f"tensor {name}: shape {list(self.size)}, strides {list(self.stride)}, from number "
        told += f"{self.offset:,} of {self.storage.count:,}" if _small(numbers) else "?"
        if not _small(numbers) or min(numbers) < 0:
            raise ValueError(f"{told}: negative, or beyond any memory")
        if 0 in self.size:
            return
        sides = [(s, n) for n, s in zip(self.size, self.stride, strict=True) if n > 1]
        last = self.offset + sum(stride * (size - 1) for stride, size in sides)
        if last >= self.storage.count:
            raise ValueError(f"{told}: not inside its storage")
        reach = 1
        for stride, size in sorted(sides):
            if stride and stride < reach:
                raise ValueError(f"{told}: it overlaps itself")
            reach = stride * (size - 1) + reach if stride else reach

    @property
    def nbytes(self) -> int:
        """Return the bytes of its own numbers, if it were written out."""
        return math.prod(self.size) * SIZES[self.storage.dtype]

    def make(self, device: str) -> Tensor:
        """Return the tensor; views of one storage share its memory."""
        import torch

        storage, dtype = self.storage, torch_dtype(self.storage.dtype)
        if device == "meta":
            return torch.empty_strided(self.size, self.stride, dtype=dtype, device="meta")
        if storage.tensor is None:
            raw = storage.bytes() if storage.count else b""
            if len(raw) != storage.nbytes:
                got = f"{len(raw):,} bytes for {storage.count:,} numbers of {storage.dtype}"
                raise ValueError(f"storage {storage.key}: {got}")
            flat = (
                torch.frombuffer(raw, dtype=dtype) if storage.count else torch.empty(0, dtype=dtype)
            )
            storage.tensor = flat.to(device)
        return storage.tensor.as_strided(self.size, self.stride, self.offset)


def _whole(sizes: Any, name: str) -> tuple[int, ...]:
    if not isinstance(sizes, tuple | list) or not all(type(size) is int for size in sizes):
        raise ValueError(f"tensor {name}: sizes that are no whole numbers")
    return tuple(sizes)


def _small(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and abs(number) < 1 << 48 for number in numbers)


def torch_dtype(name: str) -> Any:
    """Return torch's number format of a name of ours."""
    import torch

    return trusted.attribute(torch, name, allowed=SIZES)


def storage_kind(name: Any) -> str:
    """Return the number format of a class of storages, such as `torch.FloatStorage`.

    Raises: RefusedError for anything else.
    """
    words = name.split(".") if isinstance(name, str) else [""]
    kind = words[-1].removesuffix("Storage")
    if words[0] != "torch" or not words[-1].endswith("Storage") or kind not in STORAGES:
        raise RefusedError(str(name))
    return STORAGES[kind][0]


def read_storage_id(told: Any, storages: dict[str, Storage]) -> Storage:
    """Return the storage that a persistent id of torch's stands for.

    Args:
        told: ("storage", class, key, device, count[, view]).
        storages: storages so far, by key.

    Raises: ValueError, RefusedError for any other id.
    """
    fits = isinstance(told, tuple) and len(told) in (5, 6) and told[0] == "storage"
    if not fits or not isinstance(told[1], StorageKind) or (len(told) == 6 and told[5] is not None):
        head = told[0] if isinstance(told, tuple) and told else told
        shown = head if isinstance(head, str | int) else type(head).__name__
        raise RefusedError(f"the persistent id {shown!r:.80}")
    kind, key, count = told[1].dtype, told[2], told[4]
    if type(key) not in (str, int) or type(count) is not int or not 0 <= count < 1 << 48:
        raise ValueError(f"storage {key!r:.80}: of {count!r:.80} numbers")
    storage = storages.setdefault(str(key), Storage(kind, count, str(key)))
    if (storage.dtype, storage.count) != (kind, count):
        raise ValueError(f"storage {key!r:.80}: told twice, not alike")
    return storage


@dataclass(frozen=True)
class StorageKind:
    """Stand for a class of storages."""

    dtype: str


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    return TensorRecord(storage, offset, size, stride)


def _typed_view(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRecord:
    dtype = next((item for item in rest if isinstance(item, StorageKind)), None)
    if dtype is None or not isinstance(storage, Storage):
        raise ValueError("a tensor without a number format")
    count = storage.nbytes // SIZES[dtype.dtype]
    other = Storage(dtype.dtype, count, storage.key, raw=storage.bytes)
    return TensorRecord(other, offset, size, stride)


class TorchNames:
    """Look names up that torch's files use; see `Machine`.

    Args:
        budget: charged for what is made.
        extra: further names, by `module.name`.
        passive_names: classes whose objects are described and never made.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        extra: Callable[[str], Any] | None = None,
        passive_names: Iterable[str] = (),
    ) -> None:
        self._table = plain_names(budget)
        self._table |= {
            f"torch._utils.{name}": Maker(name, make)
            for name, make in (
                ("_rebuild_tensor", _view),
                ("_rebuild_tensor_v2", _view),
                ("_rebuild_tensor_v3", _typed_view),
                ("_rebuild_parameter", lambda data, *_: data),
                ("_rebuild_parameter_with_state", lambda data, *_: data),
            )
        }
        self._table |= {f"torch.{name}": StorageKind(name) for name in SIZES}
        self._table["torch.Size"] = Maker("torch.Size", lambda sizes=(): tuple(sizes))
        self._table["torch.device"] = Maker("torch.device", lambda *told: Passive("device", told))
        self._table |= {name: passive(name) for name in passive_names}
        self._extra = extra

    def __call__(self, name: str) -> Any:
        """Return what a name stands for.

        Raises: RefusedError.
        """
        if name in self._table:
            return self._table[name]
        extra = self._extra(name) if self._extra is not None else None
        return StorageKind(storage_kind(name)) if extra is None else extra


def read_legacy(data: memoryview, find: Callable[[str], Any], budget: Budget) -> tuple[Any, int]:
    """Read a file as torch before version 1.6 wrote it: pickles, then the storages' bytes.

    Args:
        data: the file, or a part of one that begins there.

    Returns:
        the value, its tensors as records, and the bytes taken.

    Raises:
        RefusedError, ValueError.
    """
    storages: dict[str, Storage] = {}
    at, values = 0, []
    for part in range(5):
        machine = Machine(
            data[at:], find if part == 3 else _no_names, budget=budget,
            persistent=(lambda told: read_storage_id(told, storages)) if part == 3 else None,
        )  # fmt: skip
        values.append(run(machine))
        at += machine.at
        if part == 0 and values[0] != LEGACY_MAGIC:
            raise ValueError("a pickle that torch did not write")
    _, version, system, value, keys = values
    if version != LEGACY_VERSION or not isinstance(system, dict):
        raise ValueError(f"version {version!r:.20} of torch's old files")
    if system.get("little_endian") is not True:
        raise ValueError("numbers in the order of another kind of processor")
    if not isinstance(keys, list) or {str(key) for key in keys} != set(storages):
        raise ValueError("storages that are not those of its tensors")
    for key in keys:
        storage = storages[str(key)]
        count = int.from_bytes(data[at : at + 8], "little", signed=True)
        start, end = at + 8, at + 8 + storage.nbytes
        if count != storage.count or end > len(data):
            got = f"{count:,} numbers in {max(len(data) - start, 0):,} bytes"
            raise ValueError(
                f"storage {key!r:.40}: {got}, not the {storage.count:,} it is said to be"
            )
        storage.raw = _copier(data[start:end])
        at = end
    return value, at


def _copier(view: memoryview) -> Callable[[], Any]:
    return lambda: bytearray(view)  # torch's memory must be writable, and the file's is not kept


def _no_names(name: str) -> Any:
    raise RefusedError(name)


def nested_storage(raw: Any, budget: Budget) -> Storage:
    """Read one bare storage out of bytes inside a pickle, as torch's storages pickle themselves.

    Raises:
        RefusedError: the program inside asks for anything but a storage's class.
        ValueError: it is anything but one storage.
    """
    data = memoryview(raw.encode("latin-1")) if isinstance(raw, str) else memoryview(raw)
    value, taken = read_legacy(data, lambda name: StorageKind(storage_kind(name)), budget)
    if not isinstance(value, Storage) or taken != len(data):
        raise ValueError(f"a {type(value).__name__} where the bytes of one storage should be")
    return value


def resolve(value: Any, *, device: str, size: int) -> Any:
    """Turn the records inside a value into tensors and arrays, each checked first.

    Args:
        device: where tensors go; "meta" for shapes alone.
        size: of the file (bytes), which bounds what its tensors may hold together.

    Raises: ValueError naming the tensor.
    """
    known: dict[int, Any] = {}
    held = 0

    def walk(item: Any, name: str, depth: int) -> Any:
        nonlocal held
        if isinstance(item, PickledArray):
            return item.value
        if isinstance(item, memoryview):
            return bytes(item)
        if not isinstance(item, TensorRecord | dict | list | tuple):
            return item
        if id(item) in known:
            return known[id(item)]
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        made: Any
        if isinstance(item, TensorRecord):
            item.check(name)
            held += item.nbytes
            if item.nbytes > size or held > 2 * size + SPARE:
                what = "with those before it, " if item.nbytes <= size else ""
                raise ValueError(
                    f"tensor {name}: shape {list(item.size)}: {what}larger than the file"
                )
            made = known[id(item)] = item.make(device)
        elif isinstance(item, dict):
            made = known[id(item)] = {}
            for key, each in item.items():
                made[key] = walk(each, f"{name}.{key}"[-120:].lstrip("."), depth + 1)
        else:
            parts = [
                walk(each, f"{name}.{n}"[-120:].lstrip("."), depth + 1)
                for n, each in enumerate(item)
            ]
            made = known[id(item)] = tuple(parts) if isinstance(item, tuple) else parts
        return made

    return walk(value, "", 0)
