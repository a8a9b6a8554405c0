"""The one reader of foreign bytes, given any: it returns what is within its bounds, or refuses.

Hypothesis draws the bytes, here a few of always the same; `make fuzz` draws CASES others.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dreamshard.config.yaml12 import parse_yaml
from dreamshard.foreign.arrays import (
    read_npy,
    read_npz,
    read_safetensors,
    safetensors_shapes,
)
from dreamshard.foreign.files import open_tar
from dreamshard.foreign.guard import MAX_REASON, UnreadableError
from dreamshard.foreign.shown import plain
from dreamshard.foreign.tables import open_parquet
from dreamshard.foreign.text import MAX_DEPTH, parse_json, read_json
from dreamshard.foreign.torchfiles import read_torch

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

CASES = int(os.environ.get("DREAMSHARD_FUZZ", "0"))
SETTINGS = hypothesis.settings(
    max_examples=CASES or 60,
    derandomize=not CASES,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
MEMORY = 64 << 20
"""Python's memory that reading a file of a few kilobytes may take (bytes)."""

WORDS = [
    *("[", "]", "{", "}", ",", ":", '"', "\\", "-", "0", "9" * 19, "9" * 400, "1e308", "1e999"),
    *("1E+400", "NaN", "Infinity", "null", "true", '"a"', "\\ud800", "\\udc00", " ", "\n", "\t"),
    *("- ", "? ", "&a ", "*a", "!!int ", "!!timestamp ", "!!python/name:os.system ", "<<: ", "|\n"),
    *(
        ": ",
        "a: ",
        "%YAML 9\n",
        "---\n",
        "...\n",
        "#",
        "'",
        "\0",
        "\ufeff",
        "\u0661",
        "=",
        "0x",
        "~",
    ),
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=60).map("".join)
DEEP = st.tuples(st.sampled_from(["[", '{"a":', '[{"a":']), st.integers(1, 3000)).map(
    lambda drawn: drawn[0] * drawn[1]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)
JSON_BYTES = (
    st.binary(max_size=200)
    | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | DEEP.map(str.encode)
    | VALUES.map(lambda value: json.dumps(value).encode())
)


def within_bounds(value: Any, depth: int = 0) -> bool:
    assert depth <= MAX_DEPTH
    if isinstance(value, dict):
        return all(within_bounds(key, depth) for key in value) and all(
            within_bounds(item, depth + 1) for item in value.values()
        )
    if isinstance(value, list):
        return all(within_bounds(item, depth + 1) for item in value)
    if isinstance(value, str):
        return bool(value.encode("utf-8")) or not value  # no half of a letter
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    return value is None or math.isfinite(value)


@SETTINGS
@hypothesis.given(JSON_BYTES)
def test_json_is_within_bounds_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data, where="a.json")
    except UnreadableError as error:
        text = str(error)
        assert text.startswith("a.json: ") and len(text) < MAX_REASON + 80 and plain(text) == text
    else:
        assert within_bounds(value)


@SETTINGS
@hypothesis.given(VALUES)
def test_what_json_says_comes_back(value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        assert within_bounds(value)
    except (ValueError, UnicodeEncodeError, AssertionError):
        return
    assert parse_json(text, where="a.json") == json.loads(text)


@SETTINGS
@hypothesis.given(TEXTS | DEEP)
def test_yaml_is_read_or_a_problem(text: str) -> None:
    try:
        parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        pass


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, mu=np.arange(9.0), sigma=np.eye(3))
    return out.getvalue()


def safetensors(folder: Path) -> bytes:
    path = folder / "base.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int8)}, path)
    return path.read_bytes()


def archive() -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(6.0)}, "step": 3, "names": ["x"]}, out)
    return out.getvalue()


def old_archive() -> bytes:
    out = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, None], "b": ["x", "y", "z"], "c": [[1], [], None]}), out)
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("a.npy", "b/é" * 60):
            info = tarfile.TarInfo(name)
            info.size = 5
            file.addfile(info, io.BytesIO(b"hello"))
    return out.getvalue()


def members(path: Path) -> None:
    with path.open("rb") as file, open_tar(file, where=str(path)) as found:
        for member in found:
            assert isinstance(member.name, str)


def table(path: Path) -> None:
    found = open_parquet(path, where=str(path), max_rows=1000, max_bytes=1 << 20)
    from dreamshard.foreign.guard import reading

    with reading(str(path), "Parquet"):
        assert found.read().num_rows <= 1000


def within_file(path: Path, arrays: Any) -> None:
    for array in arrays:
        assert array.nbytes <= path.stat().st_size


READERS: dict[str, tuple[Callable[..., bytes], Callable[[Path], object]]] = {
    "npy": (npy, lambda path: within_file(path, [read_npy(path)])),
    "npz": (
        npz,
        lambda path: within_file(path, read_npz(path, ("mu", "sigma"), limit=1 << 20).values()),
    ),
    "safetensors": (safetensors, lambda path: within_file(path, read_safetensors(path).values())),
    "safetensors' header": (safetensors, safetensors_shapes),
    "torch": (archive, read_torch),
    "torch's old form": (old_archive, read_torch),
    "parquet": (parquet, table),
    "tar": (tar, members),
    "json": (lambda: b'{"a": [1, 2.5, "x"], "b": null}', read_json),
}
EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 24),
        st.binary(max_size=24)
        | st.sampled_from([b"\xff" * 8, b"9" * 8, b"(-1,)", b"|O8", b"99999", bytes(64)]),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[int, int, bytes]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for at, length, new in edits:
        start = at % (len(changed) + 1)
        changed[start : start + length] = new
    return bytes(changed[: None if cut is None else cut % (len(changed) + 1)])


@pytest.mark.parametrize("kind", READERS)
def test_files_are_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, read = READERS[kind]
    good = make(tmp_path) if kind.startswith("safetensors") else make()
    path = tmp_path / "file"
    path.write_bytes(good)
    read(path)  # what is sound is read

    @SETTINGS
    @hypothesis.given(EDITS, st.none() | st.none() | st.integers(0, 1 << 16))
    def check(edits: list[tuple[int, int, bytes]], cut: int | None) -> None:
        path.unlink()
        path.write_bytes(edited(good, edits, cut))
        tracemalloc.start()
        try:
            read(path)
        except UnreadableError as error:
            assert str(path) in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY

    check()
