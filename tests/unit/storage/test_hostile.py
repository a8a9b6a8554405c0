"""Ten thousand mutated files: each is read as what it is, or refused by name; nothing else happens.

A dataset of each format is made once. One file after the other is changed (bits flipped, cut short,
lengthened, numbers made absurd, parts swapped), read, and put back. Most are read by the code that
reads just such files, which takes a millisecond; a share by everything a user can do.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.formats.tar_store import TarStore
from storage.ledger.commits import Commit
from storage.ledger.description import Description
from storage.ledger.manifest import SAMPLE_SCHEMA, UNIT_SCHEMA, read_parquet
from storage.rows.pick import read_rows
from storage.verbs.verify import verify_dataset
from tests.feature_store import LEVELS, fill, make_batch, make_dataset, make_recipe

N = 12
FEW = LEVELS[:2]
MUTATIONS = 5000  # of each format
WHOLE = 17  # every so many is read in every way there is
LIMIT_S = 5.0  # of processor time, for one file
WORDS = [b"-1", b"99999999999999999999", b"1e999", b"NaN", b"null", b"[[[[", b'"../../x"', b"{}"]


def build(root: Path, layout_format: str) -> Dataset:
    recipe = make_recipe(layout_format=layout_format, count=N, levels=FEW, codec="int8")
    dataset = make_dataset(root / "data", recipe=recipe, levels=FEW)
    fill(dataset, N)
    return dataset


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes: the most a disk, a network or an enemy does."""
    kind, changed = int(rng.integers(7)), bytearray(data)
    at = int(rng.integers(len(data))) if data else 0
    if kind == 0:
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed += rng.bytes(int(rng.integers(1, 600)))
    elif kind == 3:
        changed[at : at + 8] = rng.bytes(8)
    elif kind == 4:
        changed[at : at + 8] = b"\xff" * 8
    elif kind == 5:
        word = WORDS[int(rng.integers(len(WORDS)))]
        digits = [
            place for place in range(at, min(at + 200, len(data))) if data[place] in b"0123456789"
        ]
        start = digits[0] if digits else at
        changed[start : start + int(rng.integers(1, 6))] = word
    else:
        other = int(rng.integers(len(data)))
        size = int(rng.integers(1, 64))
        changed[at : at + size], changed[other : other + size] = (
            data[other : other + size],
            data[at : at + size],
        )
    return bytes(changed)


def read_everything(url: str, *, thorough: bool) -> None:
    """Open, list, read all rows; DataError and its kin are the only errors allowed out."""
    dataset = Dataset.open(url, fsync=False)
    snapshot = dataset.snapshot()
    _ = (snapshot.valid, snapshot.labels, snapshot.keys, snapshot.errors)
    for name in snapshot.array_names:
        dtype, shape = snapshot.array_spec(name)
        assert np.dtype(dtype).itemsize * int(np.prod(shape)) * snapshot.num_samples < 1 << 30
        read_rows(snapshot, name, range(min(N, snapshot.num_samples)))
    if thorough:
        verify_dataset(dataset)


def read_file(dataset: Dataset, path: Path, commits: dict[int, Commit]) -> None:
    """Read one file of a dataset as the store itself does, and check what it holds."""
    key = str(path.relative_to(dataset.url))
    kind, files = key.partition("/")[0], dataset.files
    if kind == "dataset.json":
        Description.from_json(path.read_bytes(), where=str(path))
    elif kind == "commits":
        Commit.from_json(path.read_bytes(), where=str(path))
    elif kind == "manifest":
        schema = UNIT_SCHEMA if "units" in key else SAMPLE_SCHEMA
        read_parquet(files, key, schema, columns=schema.names).to_pylist()
    elif key.endswith(".idx"):
        TarStore.read_index(cast("TarStore", dataset.store), int(path.stem))
    elif kind in ("data.zarr", "shards") and path.suffix != ".json":
        unit = int(path.stem) if kind == "shards" else int(key.split("/")[3])
        for where, problem in dataset.store.problems(commits[unit], quick=False):
            raise DataError(f"{where}: {problem}")


@pytest.mark.parametrize("layout_format", ["zarr", "tar"])
def test_mutated_files_are_read_or_refused_by_name(tmp_path: Path, layout_format: str) -> None:
    dataset = build(tmp_path, layout_format)
    folder = Path(dataset.url)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    good, commits = {path: path.read_bytes() for path in files}, dataset.committed()
    outside, rng, refused = sorted(os.listdir(tmp_path)), np.random.default_rng(0), 0
    for number in range(MUTATIONS):
        path = files[number % len(files)]
        path.write_bytes(mutate(good[path], rng))
        started = time.process_time()
        try:
            if number % WHOLE:
                read_file(dataset, path, commits)
            else:
                read_everything(dataset.url, thorough=number % (10 * WHOLE) == 0)
        except DataError as error:
            refused += 1
            assert str(folder) in str(error), (path, str(error))
        finally:
            path.write_bytes(good[path])
        assert number == 0 or time.process_time() - started < LIMIT_S, path
    assert MUTATIONS / 2 < refused < MUTATIONS
    assert sorted(os.listdir(tmp_path)) == outside
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == files
    assert verify_dataset(dataset).findings == []
    read_everything(dataset.url, thorough=True)


def _object_array(shard: Path) -> None:
    """Put an npy member that asks for pickled objects in the place of a level's."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    data = bytearray(shard.read_bytes())
    at = data.index(b"\x93NUMPY")
    data[at : at + len(buffer.getvalue())] = buffer.getvalue()
    shard.write_bytes(data)


def _renamed(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    def change(shard: Path) -> None:
        data = bytearray(shard.read_bytes())
        info = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
        info.name, info.type, info.linkname = name, kind, "/etc/passwd" if kind != b"0" else ""
        data[:512] = info.tobuf(tarfile.USTAR_FORMAT)
        shard.write_bytes(data)

    return change


def _link(shard: Path) -> None:
    target = shard.with_suffix(".moved")
    shard.rename(target)
    shard.symlink_to(target)


@pytest.mark.parametrize(
    "change",
    [
        _renamed("../../evil.npy"),
        _renamed("/abs/evil.npy"),
        _renamed("000000000.npy", tarfile.SYMTYPE),
        _renamed("000000000.npy", tarfile.LNKTYPE),
        _object_array,
        _link,
    ],
)
def test_hostile_members_change_nothing_and_are_found(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    dataset = build(tmp_path, "tar")
    shard = Path(dataset.files.path("shards/000000.tar"))
    change(shard)
    before = sorted(tmp_path.rglob("*"))
    rows = read_rows(
        dataset.snapshot(), "emb", range(N)
    )  # found by the index: headers are not read
    assert np.allclose(rows, make_batch(0, N, levels=FEW).levels["emb"], atol=0.05)
    report = verify_dataset(dataset)
    assert report.damaged_units == [0] and "000000.tar" in str(report.findings[0])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 20, 1 << 20], [0], [-1], [2.5], "x", [3] * 99, None]
)
def test_absurd_shapes_in_a_description_are_refused(tmp_path: Path, shape: object) -> None:
    dataset = build(tmp_path, "zarr")
    path = Path(dataset.files.path("dataset.json"))
    about = json.loads(path.read_text())
    about["levels"][0]["shape"] = shape
    path.write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"dataset\.json"):
        Dataset.open(dataset.url)


def test_names_that_point_outside_of_the_root_are_refused(tmp_path: Path) -> None:
    dataset = build(tmp_path, "zarr")
    path = Path(dataset.files.path("dataset.json"))
    for name in ("../../x", "/etc/x", "..", "a/b", ".hidden", "a\0b"):
        about = json.loads(path.read_text())
        about["levels"][1]["name"] = name
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        (bad / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(DataError, match=r"bad/dataset\.json"):
            Dataset.open(str(bad))
    assert os.listdir(bad) == ["dataset.json"]


NUMBERS = ("9" * 19, "9" * 20, "9" * 200, "\u0663", "\u00b2", "-1", "+1", " 1", "1_0", "")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("layout_format", ["zarr", "tar"])
def test_names_that_are_no_number_of_ours_are_passed_over(
    tmp_path: Path, layout_format: str, number: str
) -> None:
    dataset = build(tmp_path, layout_format)
    record = Path(dataset.files.path("commits/000000/000000000.0.json")).read_bytes()
    before = dataset.snapshot()
    for key in (
        *(f"commits/000000/{number}.0.json", f"commits/000000/000000000.{number}.json"),
        *(f"commits/revised/{number}.1.json", f"commits/revised/000000000.{number}.json"),
        *(f"commits/withdrawn/{number}.0.json", f"commits/withdrawn/000000000.{number}.json"),
        *(f"commits/{number}/000000000.0.json", f"requests/{number}.json"),
        *(f"manifest/_quarantine/{number}.json", f"staging/claims/{number}~x~1"),
        *(f"drops/{number}.json", f"shards/{number}.tar", f"data.zarr/s4/c/{number}"),
    ):
        path = Path(dataset.files.path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record)
    dataset = Dataset.open(dataset.url)
    after = dataset.snapshot()
    assert after.version == before.version and dataset.committed().keys() == set(before.units)
    assert not dataset.quarantined()
    verify_dataset(dataset)


@pytest.mark.parametrize("body", ["shape", "values", "hole"])
def test_a_metadata_file_larger_than_any_takes_no_memory(tmp_path: Path, body: str) -> None:
    """`zarr.json` is for others; what reads here goes by `dataset.json`, and verify compares."""
    import tracemalloc

    dataset = build(tmp_path, "zarr")
    key = "data.zarr/up.1.t100/zarr.json"
    path, good = Path(dataset.files.path(key)), dataset.files.read(key)
    path.write_bytes(b"[" + b"[]," * 10_000_000 + b"[]]" if body == "values" else good)
    if body == "shape":
        path.write_bytes(good.replace(b"12,", b"4611686018427387904,", 1))
    elif body == "hole":
        os.truncate(path, 1 << 40)
    tracemalloc.start()
    try:
        read_everything(dataset.url, thorough=True)
        findings = verify_dataset(Dataset.open(dataset.url)).findings
        again = Dataset.open(dataset.url, fsync=False)
        again.grow(N)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert [finding.path for finding in findings] == [str(path)]
    assert path.read_bytes() == good, "whoever makes samples writes it anew"
