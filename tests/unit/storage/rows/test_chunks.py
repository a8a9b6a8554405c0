"""Rows come out of chunk files as they went in, by every way of copying them."""

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import ConfigError, DataError
from storage.rows.chunk_files import Access, runs
from storage.rows.chunks import open_chunks
from storage.rows.mapped import MappedFile
from storage.rows.pick import read_rows

ACCESS: list[Access] = ["map", "pread"]
DTYPES = ["<f2", "<f4", "u1", "i1", "<u2", "<i8", "?"]
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def copied(snapshot, names, samples, *, access="map", max_open=256) -> list[np.ndarray]:
    chunks = open_chunks(snapshot, names, access=access, max_open=max_open)
    specs = [snapshot.array_spec(name) for name in names]
    targets = [np.zeros((len(samples), *shape), dtype) for dtype, shape in specs]
    chunks.copy(np.asarray(samples, np.int64), targets)
    chunks.close()
    return targets


@pytest.mark.parametrize("access", ACCESS)
@settings(deadline=None, max_examples=30)
@given(
    arrays=st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=3),
    num_samples=st.integers(1, 40),
    per_unit=st.integers(1, 20),
    max_open=st.integers(1, 9),
    data=st.data(),
)
def test_what_is_read_is_what_was_written(
    make_snapshot, access: Access, arrays, num_samples: int, per_unit: int, max_open: int, data
) -> None:
    specs = {f"a{number}": spec for number, spec in enumerate(arrays)}
    snapshot = make_snapshot(specs, num_samples=num_samples, samples_per_unit=per_unit)
    samples = data.draw(st.lists(st.integers(0, num_samples - 1), max_size=30))
    read = copied(snapshot, list(specs), samples, access=access, max_open=max_open)
    for name, rows in zip(specs, read, strict=True):
        assert rows.tobytes() == snapshot.rows[name][samples].tobytes()


def test_rows_for_probes_are_fresh_memory(make_snapshot) -> None:
    snapshot = make_snapshot()
    rows = read_rows(snapshot, "s8", [39, 0, 7, 7])
    assert rows.dtype == np.float16
    assert rows.flags.owndata
    assert rows.tobytes() == snapshot.rows["s8"][[39, 0, 7, 7]].tobytes()
    assert read_rows(snapshot, "label", np.arange(40)).tolist() == snapshot.rows["label"].tolist()
    assert read_rows(snapshot, "image", []).shape == (0, 4, 4, 3)
    many = np.arange(10_000) % 40
    assert np.array_equal(read_rows(snapshot, "image", many), snapshot.rows["image"][many])


@pytest.mark.parametrize("access", ACCESS)
def test_only_the_arrays_asked_for_are_opened(make_snapshot, access: Access) -> None:
    snapshot = make_snapshot()
    for name in ("s16", "image", "label"):
        for unit in snapshot.units:
            Path(snapshot.chunk_path(name, unit)).unlink()
    assert len(copied(snapshot, ["s8"], [0, 39], access=access)) == 1


@pytest.mark.parametrize("access", ACCESS)
def test_open_files_are_bounded(make_snapshot, access: Access) -> None:
    snapshot = make_snapshot(num_samples=400, samples_per_unit=4)
    chunks = open_chunks(snapshot, ["s8", "image"], access=access, max_open=10)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    target = [np.zeros((1, 4, 3, 3), np.float16), np.zeros((1, 4, 4, 3), np.uint8)]
    for sample in np.random.default_rng(0).permutation(400):
        chunks.copy(np.array([sample]), target)
        assert target[0].tobytes() == snapshot.rows["s8"][sample].tobytes()
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 10
    chunks.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Let this process open no more than a few files beside those it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 64 + max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to count open files by")
@pytest.mark.parametrize("access", ACCESS)
def test_a_batch_over_more_units_than_there_are_descriptors(
    make_snapshot, few_descriptors: int, access: Access
) -> None:
    specs = {"a": ("<f4", (3,)), "b": ("<u2", ())}
    snapshot = make_snapshot(specs, num_samples=900, samples_per_unit=1)
    samples = np.random.default_rng(0).permutation(900)
    for max_open in (1, 7, 256, 5000):
        read = copied(snapshot, ["a", "b"], samples, access=access, max_open=max_open)
        for name, rows in zip(specs, read, strict=True):
            assert rows.tobytes() == snapshot.rows[name][samples].tobytes()


def test_a_mapping_keeps_no_descriptor_and_ends_with_its_object(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        mapped = MappedFile(file.fileno(), 10, stays=False)
    assert mapped.read(2, 3) == b"234" and len(mapped) == 10
    for start, size in ((-1, 2), (8, 3), (0, -1)):
        with pytest.raises(ValueError, match="of a file of 10"):
            mapped.read(start, size)
    with path.open("rb") as file, pytest.raises(OSError, match="Invalid argument"):
        MappedFile(file.fileno(), 0, stays=False)
    places = Path("/proc/self/maps")
    if places.exists():
        assert str(path) in places.read_text()
        del mapped
        assert str(path) not in places.read_text()


def test_a_batch_is_split_where_units_are_too_many() -> None:
    units = np.array([3, 3, 1, 2, 2, 3, 1, 1])
    assert [units[part].tolist() for part in runs(units, 2)] == [[3, 3, 1], [2, 2, 3], [1, 1]]
    assert [units[part].tolist() for part in runs(units, 3)] == [units.tolist()]
    assert [len(units[part]) for part in runs(units, 1)] == [2, 1, 2, 1, 2]


@pytest.mark.parametrize("access", ACCESS)
def test_threads_share_a_small_set_of_files(make_snapshot, access: Access) -> None:
    snapshot = make_snapshot(num_samples=200, samples_per_unit=4)
    chunks = open_chunks(snapshot, ["s8"], access=access, max_open=2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for samples in np.random.default_rng(seed).integers(0, 200, (200, 8)):
            target = np.zeros((8, 4, 3, 3), np.float16)
            chunks.copy(samples, [target])
            if target.tobytes() != snapshot.rows["s8"][samples].tobytes():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("harm", ["short", "long", "gone", "empty"])
def test_a_damaged_file_is_named(make_snapshot, access: Access, harm: str) -> None:
    snapshot = make_snapshot()
    path = Path(snapshot.chunk_path("s8", 2))
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"short": content[:-1], "long": content + b"!", "empty": b""}[harm])
    with pytest.raises(DataError) as caught:
        copied(snapshot, ["s8"], [17], access=access)
    text = str(caught.value)
    assert str(path) in text
    assert str(len(content)) in text
    assert "dreamshard verify --repair" in text
    assert len(copied(snapshot, ["s8"], [0], access=access)[0]) == 1  # other units still read


def test_reading_ahead_asks_for_ranges_across_units(make_snapshot) -> None:
    snapshot = make_snapshot()
    chunks = open_chunks(snapshot, ["s8", "image"], access="map", max_open=9)
    chunks.read_ahead([(0, 1), (6, 25), (39, 40)])
    Path(snapshot.chunk_path("s8", 3)).unlink()
    with pytest.raises(DataError, match="s8/3"):
        chunks.read_ahead([(20, 30)])


def test_bad_requests_are_refused(make_snapshot) -> None:
    snapshot = make_snapshot()
    with pytest.raises(ConfigError, match=r"got 's4', allowed s8, s16, image, label"):
        open_chunks(snapshot, ["s4"], access="map", max_open=1)
    with pytest.raises(ConfigError, match="2 problems"):
        open_chunks(snapshot, [], access="mmap", max_open=0)  # type: ignore[arg-type]
    for samples in ([-1], [40], [3, 2**40]):
        with pytest.raises(DataError, match=r"allowed 0\.\.39"):
            read_rows(snapshot, "s8", samples)
