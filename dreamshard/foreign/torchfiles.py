"""Files of torch.save, new and old, and plain pickles of networks; nothing in them is run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamshard.errors import DreamshardError
from dreamshard.foreign.files import check_regular, read_bytes
from dreamshard.foreign.guard import UnreadableError, reading
from dreamshard.foreign.machine import Budget, Machine, Maker, RefusedError
from dreamshard.foreign.pickles import run
from dreamshard.foreign.tensors import (
    Storage,
    TorchNames,
    nested_storage,
    read_legacy,
    read_storage_id,
    resolve,
)

AGAIN = "Fetch it again."
MAX_PICKLE = 256 << 20
"""The most that a torch archive may say of its tensors (bytes); a large network says 1 MB."""
MAX_MEMBERS = 1_000_000
ZIP = b"PK\x03\x04"
PIECE = 1 << 20


def read_torch(
    path: Path,
    *,
    passive: tuple[str, ...] = (),
    device: str = "cpu",
    error: type[DreamshardError] = UnreadableError,
) -> Any:
    """Read a file of tensors and plain values written by torch.save, running nothing in it.

    Args:
        passive: names of classes whose objects may be in it as well; they are described, see
            `machine.Passive`, and never made.
        device: where tensors go; "meta" for shapes alone, with which no numbers are read.

    Raises: `error` for a file that is missing, damaged, packed, or would execute code on loading.
    """
    with _reading(path, "a file of tensors, damaged or truncated", error):
        size = check_regular(path, error=error)
        budget = Budget()
        find = TorchNames(budget, passive_names=passive)
        with open(path, "rb") as file:
            packed = file.read(len(ZIP)) == ZIP
        if not packed:
            value, _ = read_legacy(_bytes(path, size, error), find, budget)
            return resolve(value, device=device, size=size)
        with zipfile.ZipFile(path) as archive:
            value = _read_archive(archive, size, find, budget)
            return resolve(value, device=device, size=size)


def read_network_pickle(
    path: Path,
    find: Callable[[str], Any],
    *,
    error: type[DreamshardError] = UnreadableError,
) -> Any:
    """Read a plain pickle of networks: tensors stay records, see `tensors.resolve`.

    Args:
        path: written by pickle.dump, its tensors by torch's own reducers.
        find: further names -> what they stand for (a `Maker`), None for unknown ones; may raise
            `error` for names that say which other kind of file this is.

    Raises: `error` for a file that is missing, damaged, or would execute code on loading.
    """
    with _reading(path, "a pickle of networks, damaged or truncated", error):
        size = check_regular(path, error=error)
        budget = Budget()

        def also(name: str) -> Any:
            if name == "torch.storage._load_from_bytes":
                return Maker(name, lambda raw: nested_storage(raw, budget))
            return find(name)

        machine = Machine(_bytes(path, size, error), TorchNames(budget, extra=also), budget=budget)
        return run(machine)


@contextmanager
def _reading(path: Path, what: str, error: type[DreamshardError]) -> Iterator[None]:
    """Word what goes wrong inside, refusals by the name that was asked for."""
    with reading(str(path), what, error=error, hint=AGAIN):
        try:
            yield
        except RefusedError as refused:
            raise error(
                f"{path}: refused: loading it would run code ({refused}), or it is not a file of "
                "plain tensors. Nothing was run. Convert it to safetensors where you trust it."
            ) from refused


def _bytes(path: Path, size: int, error: type[DreamshardError]) -> memoryview:
    return memoryview(read_bytes(path, limit=size, error=error))


def _read_archive(
    archive: zipfile.ZipFile, size: int, find: Callable[[str], Any], budget: Budget
) -> Any:
    """Read the description in a zip of torch's; its storages know where their numbers are."""
    members = {member.filename: member for member in archive.infolist()}
    if len(members) > MAX_MEMBERS or sum(m.file_size for m in members.values()) > size:
        raise ValueError("an archive that unpacks to more than its own size")
    if len(members) != len(archive.infolist()):
        raise ValueError("an archive with two members of one name")
    told = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(told) != 1:
        raise ValueError(f"an archive with {len(told)} descriptions (data.pkl)")
    root = told[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise ValueError("a TorchScript archive, which holds code")
    if members[told[0]].file_size > MAX_PICKLE:
        raise ValueError(f"more than {MAX_PICKLE:,} bytes of description")
    order = f"{root}byteorder"
    if order in members and archive.read(order) != b"little":
        raise ValueError("numbers in the order of another kind of processor")
    storages: dict[str, Storage] = {}
    machine = Machine(
        memoryview(archive.read(told[0])), find, budget=budget,
        persistent=lambda told: read_storage_id(told, storages),
    )  # fmt: skip
    value = run(machine)
    for key, storage in storages.items():
        member = members.get(f"{root}data/{key}")
        if member is None or member.file_size != storage.nbytes:
            got = "no bytes" if member is None else f"{member.file_size:,} bytes"
            raise ValueError(
                f"storage {key}: {got} for {storage.count:,} numbers of {storage.dtype}"
            )
        storage.raw = _reader(archive, member)
    return value


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytearray]:
    """Return what reads a member, in pieces, into memory of its own."""

    def read() -> bytearray:
        made = bytearray(member.file_size)
        view, at = memoryview(made), 0
        with archive.open(member) as stream:
            while piece := stream.read(PIECE):
                view[at : at + len(piece)] = piece
                at += len(piece)
        if at != len(made):
            raise ValueError(f"storage {member.filename}: {at:,} of {len(made):,} bytes")
        return made

    return read
