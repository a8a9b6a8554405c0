"""Change files as a disk, a careless hand or an enemy would; equal seeds, equal changes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import socket
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dreamshard.foreign.sealed import SEAL, ZEROS

ABSURD: list[Any] = [
    *(None, True, False, -1, 0, 1, -(1 << 63), (1 << 31), (1 << 63) - 1, 1 << 64, 10**30, 10**400),
    *(1e308, float("inf"), float("-inf"), float("nan"), 0.5, "", "x", "x" * 100_000, "\ud800"),
    *("../../../outside/x", "/etc/passwd", "a\0b", "[/x]", "\x1b[31mred", "1e999", "\u0661\u0662"),
    *("os:system", "torch.hub:load", "__import__('os').system('touch MARK')"),
    *([], {}, [[]], [None], {"a": 1}, list(range(5000)), "DEEP60", "DEEP900", "DEEP5000"),
]
"""Values where others belong; DEEP60 stands for brackets 60 deep."""
WORDS = [b"-1", b"9" * 30, b"9" * 5000, b"1e999", b"NaN", b"null", b"[" * 5000, b'"../../x"', b"{}"]


def write_json(value: Any) -> bytes:
    """Return JSON, also of what no JSON should hold."""
    text = json.dumps(value)
    for depth in (60, 900, 5000):
        text = text.replace(f'"DEEP{depth}"', "[" * depth + "]" * depth)
    return text.encode("utf-8", "surrogatepass")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested ones, some of a long list."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 30)):
            yield from places(value[number], (*at, number))


def change_values(rng: random.Random, value: Any) -> Any:
    """Set, remove, add, rename or swap something in nested values."""
    found = list(places(value))
    if not found:
        return copy.deepcopy(rng.choice(ABSURD))
    at = rng.choice(found)
    parent = value
    for key in at[:-1]:
        parent = parent[key]
    kind = rng.choice(["set", "set", "set", "set", "remove", "add", "rename", "swap"])
    if kind == "remove":
        del parent[at[-1]]
    elif kind == "add" and isinstance(parent, dict):
        name = rng.choice(["__class__", "evil", "../x", "", "0", "999999999", "-1", "_target_"])
        parent[name] = copy.deepcopy(rng.choice(ABSURD))
    elif kind == "rename" and isinstance(parent, dict):
        name = rng.choice(["../../up", "a/b", "x" * 300, "", "é", "-5", "99999999999"])
        parent[name] = parent.pop(at[-1])
    elif kind == "swap":
        other = rng.choice(found)
        there = value
        for key in other:
            there = there[key]
        parent[at[-1]] = copy.deepcopy(there)
    else:
        parent[at[-1]] = copy.deepcopy(rng.choice(ABSURD))
    return value


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Change values of JSON; a digest of its own is left, taken out, or put right."""
    value, drawn = json.loads(data), rng.random()
    if rng.random() < 0.05:
        return write_json(value)[:-1] + b', "name": "twice", "unit": 7}'
    sealed = isinstance(value, dict) and value.get(SEAL) is not None
    if sealed and drawn < 0.7:
        del value[SEAL]
    changed = write_json(change_values(rng, value))
    return sign(changed) if sealed and 0.3 < drawn < 0.7 else changed


def sign(data: bytes) -> bytes:
    """Put a digest of its own into the text of an object, as whoever wants to deceive would."""
    zeros = f'"{SEAL}": "{ZEROS}"'.encode()
    text = data[:-1] + (b", " if len(data) > 2 else b"") + zeros + b"}"
    digest = xxhash.xxh3_128_hexdigest(text).encode()
    return text[: -len(digest) - 2] + digest + b'"}'


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """Change values of a line of JSON lines."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = change_json(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, lengthen, repeat, shift or swap bytes."""
    changed, length = bytearray(data), len(data)
    if not length:
        return rng.randbytes(10)
    at, other = rng.randrange(length), rng.randrange(length)
    kind = rng.choice(
        ["flip", "flip", "flips", "cut", "empty", "longer", "twice", "words", "words"]
    )
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(8):
            changed[rng.randrange(length)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "empty":
        changed.clear()
    elif kind == "longer":
        changed += rng.choice([bytes(1), bytes(4096), bytes(1 << 20), rng.randbytes(100)])
    elif kind == "twice":
        changed += data
    elif kind == "words" and rng.random() < 0.5:
        word = rng.choice(WORDS)
        changed[at : at + len(word)] = word
    else:
        size = rng.choice([1, 8, 64, 512])
        one, two = bytes(changed[at : at + size]), bytes(changed[other : other + size])
        changed[at : at + size], changed[other : other + size] = two, one
    return bytes(changed)


def change_parquet(rng: random.Random, data: bytes) -> bytes:
    """Change rows, columns or types of a Parquet file."""
    table = pq.read_table(io.BytesIO(data))
    name = rng.choice(table.column_names)
    at, rows = table.column_names.index(name), table.to_pylist()
    kind = rng.choice(["null", "type", "drop", "again", "short", "twice", "none", "list", "many"])
    if kind == "null":
        for row in rng.sample(rows, rng.randint(1, len(rows))):
            row[name] = None
        table = pa.Table.from_pylist(rows, schema=table.schema)
    elif kind == "type":
        other = rng.choice([pa.string(), pa.int8(), pa.float64(), pa.binary(), pa.bool_()])
        try:
            column = table[name].cast(other, safe=False)
        except pa.ArrowException:
            column = pa.array(["q"] * len(rows))
        table = table.set_column(at, name, column)
    elif kind == "drop":
        table = table.drop_columns([name])
    elif kind == "again":
        table = table.append_column(rng.choice([name, "evil"]), table[name])
    elif kind == "short":
        table = table.slice(1)
    elif kind == "twice":
        table = pa.concat_tables([table, table])
    elif kind == "none":
        table = table.slice(0, 0)
    elif kind == "list":
        table = table.set_column(at, name, pa.array([[1]] * len(rows)))
    else:
        one = table.slice(0, 1)
        count = 3_000_000
        zeros = pa.array([0]).take(pa.nulls(count, pa.int64()).fill_null(0))
        table = one.take(zeros)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def change_npy(rng: random.Random, data: bytes) -> bytes:
    """Change the header or a number of an npy file."""
    end = 10 + struct.unpack("<H", data[8:10])[0]
    head, body = data[:end], bytearray(data[end:])
    if rng.random() < 0.6:
        old, new = rng.choice(
            [(b"<i8", b"|O8"), (b"<f4", b"|O8"), (b"False", b"True "), (b"(", b"(9"), (b"(", b"(-")]
        )
        return head.replace(old, new, 1) + bytes(body)
    at = rng.randrange(max(1, len(body) // 8)) * 8
    body[at : at + 8] = struct.pack("<q", rng.choice([-5, 1 << 40, 1 << 62, 0, 513]))
    return head + bytes(body)


def change_tar(rng: random.Random, data: bytes) -> bytes:
    """Change a member's header: its name, type, size or owner."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = rng.choice(tar.getmembers())
    at, changed = member.offset, bytearray(data)
    info = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "strict")
    kind = rng.choice(["name", "type", "size", "uid", "zero"])
    if kind == "name":
        info.name = rng.choice(["../../../outside/evil", "/tmp/evil", "a/b.npy", "x", "."])
    elif kind == "type":
        info.type = rng.choice([b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L"])
        info.linkname = "/etc/passwd"
    elif kind == "size":
        info.size = rng.choice([0, 1, 1 << 32, member.size + 1])
    elif kind == "uid":
        info.uid = 0o7777777
    changed[at : at + 512] = (
        bytes(512) if kind == "zero" else info.tobuf(tarfile.USTAR_FORMAT)[:512]
    )
    return bytes(changed)


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file: dtypes, shapes, places, its own length."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.choice(["values", "values", "shape", "places", "length", "many", "none"])
    entry = rng.choice([value for name, value in header.items() if name != "__metadata__"])
    if kind == "values":
        header = change_values(rng, header)
    elif kind == "shape":
        entry["shape"] = rng.choice([[-8], [1 << 33, 1 << 33], [1 << 62, 0], [], [0], [1] * 90])
    elif kind == "places":
        entry["data_offsets"] = rng.choice([[0, 1 << 40], [1 << 40, (1 << 40) + 4], [8, 0], [0, 0]])
    elif kind == "many":
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header |= {f"t{number}": empty for number in range(20_000)}
    elif kind == "none":
        header = {}
    text = write_json(header)
    claimed = rng.choice([0, 1 << 40, 1 << 63, len(text) + 9]) if kind == "length" else len(text)
    return struct.pack("<Q", claimed) + text + body


CHANGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": change_json,
    ".jsonl": change_lines,
    ".parquet": change_parquet,
    ".npy": change_npy,
    ".idx": change_npy,
    ".tar": change_tar,
    ".safetensors": change_safetensors,
}
"""How a file with an ending is changed by what it is, and not by its bytes alone."""


def change_file(rng: random.Random, path: Path) -> str:
    """Change what a file holds; return what was done."""
    data, change = path.read_bytes(), CHANGES.get(path.suffix)
    by = change if change is not None and rng.random() < 0.7 else change_bytes
    try:
        new = by(rng, data)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, struct.error):
        by, new = change_bytes, change_bytes(rng, data)  # changed before into what it is not
    except (pa.ArrowException, tarfile.TarError, RecursionError):
        by, new = change_bytes, change_bytes(rng, data)
    path.write_bytes(new)
    return by.__name__


SPECIAL = (
    "gone",
    "folder",
    "pipe",
    "link out",
    "loop",
    "zero",
    "nowhere",
    "secret",
    "vast",
    "socket",
)


def change_kind(rng: random.Random, path: Path, outside: Path) -> str:
    """Put something else in a file's place: a folder, a pipe, a device, a link; return what."""
    kind = rng.choice(SPECIAL)
    if kind == "vast":
        os.truncate(path, rng.choice([1 << 33, 1 << 40]))
        return kind
    copied = outside / f"copy-{path.name}"
    if kind == "link out":
        shutil.copy(path, copied)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        _bind(path)
    elif kind != "gone":
        targets = {"link out": copied, "loop": path, "zero": "/dev/zero", "secret": "/etc/passwd"}
        path.symlink_to(targets.get(kind, "/nonexistent/x"))
    return kind


def change_folder(rng: random.Random, folder: Path, outside: Path) -> str:
    """Put a link out in a folder's place, or a loop; return what."""
    kind = rng.choice(["link out", "loop", "file"])
    shutil.move(folder, outside / f"tree-{folder.name}")
    if kind == "link out":
        folder.symlink_to(outside / f"tree-{folder.name}")
    elif kind == "loop":
        folder.symlink_to(folder)
    else:
        folder.write_text("no folder")
    return f"{kind} for a folder"


def _bind(path: Path) -> None:
    """Make a socket; its path may be longer than the system takes, its folder's name is not."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
    except OSError:
        os.mkfifo(path.name)
    finally:
        os.chdir(here)
