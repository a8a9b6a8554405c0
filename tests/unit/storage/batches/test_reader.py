"""Batches: every valid sample once per epoch over all ranks, resumable, bounded in memory."""

import gc
import os
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import ConfigError, DataError, DreamshardError
from storage.batches.reader import Batch, BatchReader

SHUFFLES = st.sampled_from(["full", "block", "none"])


def check_rows(snapshot, batch: Batch) -> None:
    for name, rows in batch.levels.items():
        assert rows.tobytes() == snapshot.rows[name][batch.index].tobytes()
    for name, rows in (("image", batch.image), ("label", batch.label)):
        assert rows is None or np.array_equal(rows, snapshot.rows[name][batch.index])


def taken(snapshot, count: int, **settings) -> list[np.ndarray]:
    """Return the indices of the first batches, their rows checked."""
    indices = []
    with BatchReader(snapshot, **settings) as reader:
        for batch in islice(reader, count):
            check_rows(snapshot, batch)
            indices.append(batch.index.copy())
    return indices


@settings(deadline=None, max_examples=25)
@given(
    num_samples=st.integers(1, 60),
    invalid=st.sets(st.integers(0, 59), max_size=20),
    local=st.integers(1, 9),
    world_size=st.integers(1, 4),
    shuffle=SHUFFLES,
    threads=st.integers(1, 3),
    resume=st.integers(0, 5),
)
def test_ranks_share_every_epoch_and_resume_anywhere(
    make_snapshot, num_samples, invalid, local, world_size, shuffle, threads, resume
) -> None:
    invalid = sorted(sample for sample in invalid if sample < num_samples)[: num_samples - 1]
    snapshot = make_snapshot(
        {"s8": ("<f2", (3, 2)), "image": ("u1", (2, 2, 3)), "label": ("<i8", ())},
        num_samples=num_samples,
        samples_per_unit=7,
        invalid=invalid,
    )
    valid = np.flatnonzero(snapshot.valid)
    batch_size = local * world_size
    count = -(-2 * len(valid) // batch_size) + resume
    order = {"levels": ["s8"], "labels": True, "seed": 5, "shuffle": shuffle, "threads": threads}
    ranks = [
        taken(snapshot, count, batch_size=batch_size, rank=rank, world_size=world_size, **order)
        for rank in range(world_size)
    ]
    stream = np.concatenate([np.concatenate(batch) for batch in zip(*ranks, strict=True)])
    for epoch in range(2):  # batches straddle epochs, so both are looked at in the joined stream
        visited = stream[epoch * len(valid) : (epoch + 1) * len(valid)]
        assert np.array_equal(np.sort(visited), valid)
    start = resume * batch_size
    alone = taken(snapshot, count - resume, batch_size=batch_size, start=start, **order)
    assert np.array_equal(np.concatenate([stream[:start], *alone]), stream)  # at another world size


@settings(deadline=None, max_examples=20)
@given(
    dtype=st.sampled_from(["<f2", "<f4", "<u2", "i1"]),
    shape=st.lists(st.integers(1, 6), max_size=3).map(tuple),
    batch_size=st.integers(1, 50),
    access=st.sampled_from(["map", "pread"]),
    copy=st.booleans(),
    depth=st.integers(1, 3),
    prefetch=st.integers(1, 3),
    max_open=st.integers(1, 8),
)
def test_what_is_read_is_what_was_written(
    make_snapshot, dtype, shape, batch_size, access, copy, depth, prefetch, max_open
) -> None:
    snapshot = make_snapshot(
        {"b4": (dtype, shape), "b8": ("<f2", (70,)), "image": ("u1", (3, 3, 3))}
    )
    with BatchReader(
        snapshot,
        levels=["b8", "b4"],
        batch_size=batch_size,
        access=access,
        copy=copy,
        depth=depth,
        prefetch=prefetch,
        max_open=max_open,
    ) as reader:
        for batch in islice(reader, 8):
            assert list(batch.levels) == ["b8", "b4"]
            assert len(batch) == batch_size
            check_rows(snapshot, batch)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_batch_stays_valid_for_depth_further_batches(make_snapshot, depth, prefetch) -> None:
    snapshot = make_snapshot()
    reader = BatchReader(snapshot, levels=["s8"], batch_size=8, depth=depth, prefetch=prefetch)
    held: list[Batch] = []
    addresses = set()
    for batch in islice(reader, 20):
        held = [*held, batch][-depth:]  # the latest, and depth - 1 further ones handed out since
        time.sleep(0.002)  # the threads fill as far ahead as they may
        for old in held:
            check_rows(snapshot, old)
        addresses.add(batch.levels["s8"].ctypes.data)
    reader.close()
    assert len(addresses) == depth + prefetch


def test_copies_stay_for_ever(make_snapshot) -> None:
    snapshot = make_snapshot()
    with BatchReader(snapshot, levels=["s8"], batch_size=4, copy=True) as reader:
        batches = list(islice(reader, 15))
    for batch in batches:
        check_rows(snapshot, batch)


def test_position_counts_the_global_stream(make_snapshot) -> None:
    snapshot = make_snapshot()
    with BatchReader(
        snapshot, levels=[], batch_size=12, rank=1, world_size=3, start=24, images=False
    ) as reader:
        assert (reader.position, reader.epoch_size) == (24, 40)
        batch = reader.next()
        assert (batch.position, reader.position) == (24, 36)
        assert (batch.image, batch.label, batch.levels) == (None, None, {})
        assert np.array_equal(batch.index, reader.stream.samples(24, 12)[4:8])


def test_seeds_and_orders_differ(make_snapshot) -> None:
    snapshot = make_snapshot()
    orders = [
        tuple(np.concatenate(taken(snapshot, 5, levels=[], batch_size=8, **order)).tolist())
        for order in (
            {"seed": 0},
            {"seed": 1},
            {"seed": 0, "shuffle": "block"},
            {"shuffle": "none"},
        )
    ]
    assert len(set(orders)) == 4
    assert orders[3] == tuple(range(40))


def test_block_shuffle_reads_ahead(make_snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system takes no advice")
    snapshot = make_snapshot(num_samples=64, samples_per_unit=32)
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments[2]))
    with BatchReader(
        snapshot, levels=["s16"], batch_size=8, images=False, shuffle="block"
    ) as reader:
        assert reader.stream.block_samples == 4
        for batch in islice(reader, 24):
            check_rows(snapshot, batch)
        deadline = time.monotonic() + 5
        while len(asked) < 4 * 16 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert len(asked) >= 4 * 16  # the blocks of three epochs, and those of the window after them
    assert set(asked) == {4 * 10}


def test_damage_is_met_at_its_batch(make_snapshot) -> None:
    snapshot = make_snapshot()
    path = Path(snapshot.chunk_path("s8", 3))
    path.write_bytes(path.read_bytes()[:-2])
    with BatchReader(snapshot, levels=["s8"], batch_size=8, shuffle="none", max_open=2) as reader:
        for unit in range(3):
            assert reader.next().index[0] == unit * 8
        with pytest.raises(DataError, match="s8/3: got 574 bytes, allowed exactly 576"):
            reader.next()
        assert reader.position == 24


def test_threads_end_with_the_reader(make_snapshot) -> None:
    snapshot = make_snapshot()
    before = threading.active_count()
    reader = BatchReader(snapshot, levels=["s8"], batch_size=8, shuffle="block")
    batch = reader.next()
    reader.close()
    reader.close()
    check_rows(snapshot, batch)  # the last batches outlive the threads
    with pytest.raises(DreamshardError, match="after close"):
        for _ in range(9):
            reader.next()
    dropped = BatchReader(snapshot, levels=["s8"], batch_size=8, shuffle="block")
    dropped.next()
    del dropped
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert threading.active_count() == before


def test_bad_settings_are_refused(make_snapshot) -> None:
    snapshot = make_snapshot()
    with pytest.raises(ConfigError, match=r"100 over 3 ranks \(100 % 3 = 1\).*Try 99 or 102"):
        BatchReader(snapshot, levels=[], batch_size=100, world_size=3)
    with pytest.raises(ConfigError, match="4 problems") as caught:
        BatchReader(snapshot, levels=[], batch_size=2, world_size=4, rank=4, depth=0, threads=0)
    assert "Try 4." in str(caught.value)
    with pytest.raises(ConfigError, match=r"start: got -1"):
        BatchReader(snapshot, levels=[], batch_size=2, start=-1)
    with pytest.raises(ConfigError, match=r"'s4', allowed s8, s16, image, label"):
        BatchReader(snapshot, levels=["s4"], batch_size=2)


def test_holes_need_an_explicit_word(make_snapshot) -> None:
    snapshot = make_snapshot()
    snapshot.holes = [1]
    snapshot.valid[8:16] = False
    Path(snapshot.chunk_path("s8", 1)).unlink()
    with pytest.raises(DataError, match=r"1 missing units \(1\)"):
        BatchReader(snapshot, levels=["s8"], batch_size=4)
    indices = taken(snapshot, 8, levels=["s8"], batch_size=4, allow_holes=True)
    assert sorted(np.concatenate(indices).tolist()) == [*range(8), *range(16, 40)]


READ_TEN_RINGS = """
import sys
from itertools import islice
import numpy as np
from storage.batches.reader import BatchReader
from storage.rows.chunks import open_raw

class Snapshot:
    url, num_samples, samples_per_unit, holes = sys.argv[1], 640, 64, ()
    valid = np.ones(640, bool)
    array_names = ["f"]
    def array_spec(self, name): return np.dtype("<f2"), (256, 16, 16)
    def chunk_path(self, name, unit): return f"{self.url}/f/{unit}"
    def components(self, name): return (name,)
    def open_chunks(self, names, **settings): return open_raw(self, names, **settings)

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

reader = BatchReader(Snapshot(), levels=["f"], batch_size=16, images=False, depth=2, prefetch=2)
before = anonymous()
used = [anonymous() for batch in islice(reader, 80) if batch.levels["f"].any()]
ring = 4 * 16 * 256 * 16 * 16 * 2
print(ring, max(used) - before, sorted(used)[-1] - used[8])
reader.close()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_anonymous_memory_is_bounded_by_the_ring(make_snapshot, repo_root: Path) -> None:
    snapshot = make_snapshot({"f": ("<f2", (256, 16, 16))}, num_samples=640, samples_per_unit=64)
    result = subprocess.run(
        [sys.executable, "-c", READ_TEN_RINGS, snapshot.url],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    ring, grown, grown_later = (int(word) for word in result.stdout.split())
    assert sum(f.stat().st_size for f in Path(snapshot.url).rglob("*") if f.is_file()) == 10 * ring
    huge_page = 1 << 21  # buffers are rounded up to whole huge pages
    assert grown <= ring + 4 * huge_page
    assert grown_later <= huge_page


def test_a_ring_serves_no_shared_memory(make_snapshot) -> None:
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.exists() else set()
    with BatchReader(make_snapshot(), levels=["s8"], batch_size=8) as reader:
        reader.next()
        names = {
            path.name for path in (set(shared.iterdir()) if shared.exists() else set()) - before
        }
    assert not [name for name in names if "dreamshard" in name]
