"""The one reader of foreign text: within bounds, or one sentence with the file's name."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import socket
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dreamshard.config.yaml12 import parse_yaml, read_yaml
from dreamshard.errors import DataError, TeacherError
from dreamshard.foreign import arrays, files, guard, tables, torchfiles
from dreamshard.foreign.text import MAX_DEPTH, parse_json, read_json

ROOT = Path(__file__).resolve().parents[4]
FILES = [
    path
    for package in ("dreamshard", "storage", "pipeline", "distill")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "foreign" not in path.parts
]
PARSERS = {
    "json.load", "json.loads", "json.JSONDecoder", "yaml.load", "yaml.safe_load",
    "yaml.safe_load_all", "yaml.load_all", "np.load", "numpy.load", "np.loadtxt", "np.genfromtxt",
    "pq.ParquetFile", "pq.read_table", "pq.read_metadata", "pq.read_schema", "pq.ParquetDataset",
    "safe_open", "load_file", "torch.load", "zipfile.ZipFile", "ZipFile", "tarfile.open",
    "tarfile.TarFile", "pickle.load", "pickle.loads", "tomllib.load", "tomllib.loads",
    "csv.reader", "np.lib.format.read_array", "deserialize", "safetensors.deserialize",
}  # fmt: skip


def parsers(text: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    found = [ast.unparse(call.func) for call in calls]
    # With an argument, pycocotools reads the file of that name by itself.
    found = [name for name in found if name in PARSERS]
    return found + ["COCO" for call in calls if ast.unparse(call.func) == "COCO" and call.args]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_parses(path: Path) -> None:
    assert parsers(path.read_text(encoding="utf-8")) == []


def test_the_test_sees_parsers() -> None:
    assert parsers("import json\njson.loads(x)") == ["json.loads"]
    assert parsers("with safe_open(path) as file: pass") == ["safe_open"]
    assert parsers("COCO(path)") == ["COCO"] and parsers("COCO()") == []


BAD_JSON = {
    "deep": "[" * 5000 + "]" * 5000,
    "just too deep": "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
    "deep objects": '{"a":' * 900 + "1" + "}" * 900,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "beyond 64 bits": str(1 << 70),
    "below 64 bits": str(-(1 << 70)),
    "infinite": "1e999",
    "minus infinite": "[-1e999]",
    "nan": "NaN",
    "Infinity": "[Infinity]",
    "surrogate": '"\\ud800"',
    "surrogate key": '{"\\udfff": 1}',
    "empty": "",
    "cut": '{"a": ',
    "binary": "\x00\x01",
    "many": "[" + "[]," * 5_000_000 + "1]",
}


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("error", [guard.UnreadableError, TeacherError])
def test_bad_json_is_one_sentence(tmp_path: Path, name: str, error: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(BAD_JSON[name])
    with pytest.raises(error, match=r"x\.json: not readable as JSON \(.*\)\. Do this\.") as caught:
        read_json(path, error=error, hint="Do this.")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_good_json_is_read(tmp_path: Path) -> None:
    value = {
        "digest": "1234567890" * 8, "big": (1 << 64) - 1, "low": -(1 << 63), "float": 1e300,
        "text": "ß€\U0001f600", "emoji": "\U0001f600", "none": None, "yes": True,
    }  # fmt: skip
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only)
        assert parse_json(data, where="x") == value
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, where="x")
    assert parse_json("[-Infinity]", where="x", infinite=True) == [float("-inf")]
    with pytest.raises(DataError, match="more than 3"):
        parse_json("[1, 2]", where="x", limit=3)
    with pytest.raises(DataError, match="not readable as JSON"):
        parse_json(b"\xff", where="x")
    with pytest.raises(ValueError, match="not readable as JSON"):  # to those who go on without
        parse_json(b"\xff", where="x")


def test_what_is_no_file_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in (
        ("fifo", "no regular file"), ("zero", "no regular file"), (".", "no regular file"),
        ("loop", "cannot be read"), ("missing", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=what):
            read_json(tmp_path / name)
        if name != "missing":
            _, problem = read_yaml(str(tmp_path / name))
            assert problem is not None
    (tmp_path / "large").write_bytes(b" " * 100)
    with pytest.raises(DataError, match="got 100 bytes or more, allowed 10"):
        files.read_bytes(tmp_path / "large", limit=10)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(14)
)
BAD_YAML = {
    "alias bomb": BOMB,
    "itself": "a: &a [*a]",
    "itself, a map": "a: &a {b: *a}",
    "root": "&r {run_dir: x, student: *r}",
    "deep": "a: " + "[" * 3000 + "]" * 3000,
    "deep block": "\n".join("  " * i + "a:" for i in range(500)),
    "timestamp": "a: !!timestamp x",
    "bool": "a: !!bool x",
    "int": "a: !!int ''",
    "float": "a: !!float x",
    "digits": "a: " + "9" * 5000,
    "python": "a: !!python/object/apply:os.system ['true']",
    "binary": "\x00\x01",
    "two documents": "a: 1\n---\nb: 2",
    "undefined": "a: *x",
    "many": "a: {" + ", ".join(f"k{i}: 1" for i in range(20_000)) + "}",
    "long": "a: " + "x" * (5 << 20),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml_is_a_problem(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BAD_YAML[name])
    with pytest.raises((yaml.YAMLError, ValueError)):
        parse_yaml(BAD_YAML[name])
    layer, problem = read_yaml(str(path))
    assert problem is not None and layer == {}


def test_aliases_within_bounds_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


def test_parquet_bombs_are_refused(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(np.zeros(5_000_000, np.int64))})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"x\.parquet: not readable as Parquet \(.* unpacked"):
        tables.open_parquet(tmp_path / "x.parquet", where="x.parquet", max_bytes=1 << 20)
    with pytest.raises(DataError, match="5,000,000 rows, more than 10"):
        tables.open_parquet(tmp_path / "x.parquet", where="x", max_rows=10)
    assert tables.open_parquet(tmp_path / "x.parquet", where="x").metadata.num_rows == 5_000_000
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not readable as Parquet"):
        tables.open_parquet(tmp_path / "x.parquet", where="x")


def test_a_text_that_stands_once_for_many_rows_is_counted_as_often(tmp_path: Path) -> None:
    path, text = tmp_path / "x.parquet", "x" * (1 << 20)
    once = {
        "compression": "zstd",
        "dictionary_pagesize_limit": 1 << 30,
        "write_batch_size": 1 << 30,
    }
    keys = pa.array([text] * 100)
    table = pa.table(
        {"key": keys, "inner": pa.StructArray.from_arrays([keys], ["a"]), "n": [1] * 100}
    )
    pq.write_table(table, path, **once)
    assert path.stat().st_size < 10_000
    opened = tables.open_parquet(path, where="x.parquet", max_bytes=8 << 20)
    for column in ("key", "inner"):
        with pytest.raises(DataError, match=r"x\.parquet: .* bytes unpacked or more"):
            tables.read_columns(opened, [column], where="x.parquet", max_bytes=8 << 20)
        read = tables.read_columns(opened, [column], where="x", max_bytes=200 << 20)
        assert read[column].to_pylist() == table[column].to_pylist()
    assert tables.read_columns(opened, ["n"], where="x", max_bytes=1000, groups=[0])[
        "n"
    ].to_pylist()
    with pq.ParquetWriter(path, table.schema) as writer:  # a row group may be empty
        writer.write_table(table.slice(0, 0))
        writer.write_table(table.slice(0, 2))
    with tables.open_parquet(path, where="x.parquet") as several:
        assert tables.read_columns(several, ["n"], where="x").num_rows == 2
        assert tables.read_columns(several, ["key"], where="x").num_rows == 2
        assert tables.read_columns(several, ["key"], where="x", groups=[0]).num_rows == 0
    pq.write_table(table.slice(0, 0), path)
    opened = tables.open_parquet(path, where="x.parquet")
    assert tables.read_columns(opened, ["key"], where="x").num_rows == 0


def test_a_socket_is_no_file() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")  # a short path: a socket's has 108 letters at most
        with pytest.raises(DataError, match=r"/s: got no regular file"):
            files.read_bytes(Path(folder) / "s")


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


HUGE = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4)}")
OBJECT = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(1))


@pytest.mark.parametrize("data", [HUGE, OBJECT, b"", b"x" * 100, npy("{1: 2}"), npy("__import__")])
def test_arrays_that_ask_for_more_than_they_are(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npy: not readable as a file of plain numbers"):
        arrays.read_npy(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(DataError, match=r"x\.npz: not readable as an archive of plain arrays"):
        arrays.read_npz(tmp_path / "x.npz", ["a"], limit=1 << 20)


def test_plain_arrays_are_read(tmp_path: Path) -> None:
    value = np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "x.npz", a=value, b=np.asfortranarray(value), c=value)
    found = arrays.read_npz(tmp_path / "x.npz", ["a", "b", "z"], limit=1 << 20)
    assert found.keys() == {"a", "b"} and all((each == value).all() for each in found.values())
    with pytest.raises(DataError, match="more than 100 bytes unpacked"):
        arrays.read_npz(tmp_path / "x.npz", ["a", "b"], limit=100)
    np.save(tmp_path / "x.npy", value)
    assert (arrays.read_npy(tmp_path / "x.npy") == value).all()


def test_shapes_of_an_archive_are_read_from_headers_of_a_sane_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"a/b:0": np.zeros((2, 3)), "c": np.float32(1)})  # type: ignore[arg-type]
    assert arrays.npz_shapes(tmp_path / "x.npz") == {"a/b:0": (2, 3), "c": ()}
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\x02\x00" + (1 << 24).to_bytes(4, "little") + b" " * 99
        )
    with pytest.raises(DataError, match=r"a header of more than 65,536 bytes"):
        arrays.npz_shapes(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="an array of object"):
        arrays.npz_shapes(tmp_path / "z.npz")


def test_torch_archives_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    import torch

    plain, path = io.BytesIO(), tmp_path / "x.pt"
    torch.save({"a": torch.zeros(100_000)}, plain)
    path.write_bytes(plain.getvalue())
    assert torchfiles.read_torch(path)["a"].shape == (100_000,)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with pytest.raises(DataError, match=r"x\.pt: .*unpacks to more than its own size"):
        torchfiles.read_torch(path)
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(DataError, match=r"x\.pt: .*larger than the file"):
        torchfiles.read_torch(path)
    path.write_bytes(plain.getvalue()[:-50])
    with pytest.raises(DataError, match=r"x\.pt: .*damaged or truncated"):
        torchfiles.read_torch(path)


def test_any_exception_is_one_sentence() -> None:
    for error in (
        OverflowError("x"), RecursionError(), AttributeError("y"), KeyError("k"),
        ZeroDivisionError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "z\x1b[2J"),
        RuntimeError("a\nb"), OSError("pyarrow's way to say damaged"),
    ):  # fmt: skip
        with (
            pytest.raises(DataError, match=r"^f: not readable as X \(.+\)\. Try\.") as caught,
            guard.reading("f", "X", hint="Try."),
        ):
            raise error
        assert not any(ord(letter) < 32 for letter in str(caught.value))
    memory = pytest.raises(guard.CannotReadError, match=r"f: cannot be read \(out of memory")
    with memory, guard.reading("f", "X"):
        raise MemoryError
    refused = pytest.raises(guard.CannotReadError, match=r"f: cannot be read \(No space")
    with refused, guard.reading("f", "X"):
        raise OSError(28, "No space left on device")
    assert not issubclass(guard.CannotReadError, ValueError), "unreadable is not damaged"
    with pytest.raises(KeyboardInterrupt), guard.reading("f", "X"):
        raise KeyboardInterrupt


def test_a_place_that_cannot_be_sought_is_damage_and_no_refusal_of_the_system(
    tmp_path: Path,
) -> None:
    """A flipped bit in an archive's directory becomes a negative place: EINVAL."""
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.arange(9.0))
    data = path.read_bytes()
    path.write_bytes(data[1:])
    with pytest.raises(guard.UnreadableError, match="not readable as an archive of plain arrays"):
        arrays.read_npz(path, ("mu",), limit=1 << 20)


def test_a_small_file_takes_little_memory_whatever_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    tracemalloc.start()
    assert files.read_bytes(path, limit=1 << 30) == b"{}"
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    with path.open("wb") as file:
        file.write(bytes(3 << 20))
    assert files.read_bytes(path, limit=3 << 20) == bytes(3 << 20)
    assert files.read_bytes(Path("/proc/self/status"), limit=1 << 20)  # which tells no size
    with pytest.raises(guard.UnreadableError, match="allowed 1,000"):
        files.read_bytes(path, limit=1000)


def test_damaged_metadata_of_parquet_is_an_error_and_no_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    names = ["b", "n", "s"]
    rows = {"b": [b"xy"] * 20, "n": list(range(20)), "s": [{"bytes": b"1", "path": None}] * 20}
    pq.write_table(pa.table(rows), path, row_group_size=8)
    whole = path.read_bytes()
    with tables.open_parquet(path, where="x") as file:
        chunks = tables.column_chunks(file.metadata, where="x")
        own = [file.metadata.row_group(1).column(i) for i in range(4)]
    assert [chunk.column for chunk in chunks[0]] == [*names, "s"] and len(chunks) == 3
    assert [chunk.stored for chunk in chunks[1]] == [each.total_compressed_size for each in own]
    assert [chunk.first for chunk in chunks[1]] == [
        each.dictionary_page_offset or each.data_page_offset for each in own
    ]
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(8 * footer, 8 * (len(whole) - 8), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            with tables.open_parquet(path, where="x.parquet") as file:
                tables.column_chunks(file.metadata, where="x.parquet")
        except guard.UnreadableError as error:
            assert "x.parquet" in str(error)
            refused += 1
    assert refused > 50
