"""The parts of an actor without Ray: units in turn, writes beside the teacher, errors."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import xxhash

from dreamshard.errors import DataError, DreamshardError, TeacherError
from pipeline.images.inputs import ImageInput, Work
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.offline import actor as actor_module
from pipeline.offline.actor import Job, ShardActor
from pipeline.offline.unit import QUEUE_DEPTH, WriterThread
from pipeline.request.config import EncodeConfig
from pipeline.request.lookup import create
from pipeline.request.resolve import resolve
from pipeline.teachers.base import Teacher, TeacherConfig
from storage.dataset import Dataset
from storage.formats.writer import UnitWriter
from storage.schema import FeatureBatch


def actor(
    tmp_path: Path, *, delay_s: float = 0.0, codec: str = "float16", halve: bool = False
) -> tuple[ShardActor, Dataset]:
    teacher = TeacherConfig(
        kind="noise", levels=["s2"], settings={"channels": 4, "delay_s": delay_s}
    )
    config = EncodeConfig(
        root=str(tmp_path),
        teacher=teacher,
        source=SourceConfig(kind="digits"),
        codec=codec,
        image=ImageConfig(size=16),
        samples_per_unit=32,
        micro_batch=8,
        fsync=False,
    )
    request = resolve(config.request())
    dataset = create(request)
    dataset.grow(1297)
    job = Job(
        url=dataset.url,
        run_id="r",
        teacher=teacher,
        image_size=(16, 16),
        seed=0,
        fsync=False,
        halve_on_oom=halve,
    )
    made = ShardActor(job, request.input)
    assert set(made.load()) == {"host", "pid"}
    return made, dataset


def test_a_unit_is_committed_and_told_in_brief(tmp_path: Path) -> None:
    made, dataset = actor(tmp_path)
    record = made.make(3, 32)
    assert (record["unit"], record["count"], record["invalid"], record["errors"]) == (3, 32, 0, [])
    commit = dataset.committed()[3]
    assert commit.bytes == record["bytes"] and len(commit.input_digest) == 32
    assert commit.first == 96 and all(key.startswith("digits-") for key in commit.keys)
    assert len(str(record)) < 500  # features do not travel
    digest = xxhash.xxh3_128()
    for work in made._input.works(96, 32, micro_batch=8):
        digest.update(work.digest)
    assert commit.input_digest == digest.hexdigest()


def test_the_teacher_foresees_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = actor(tmp_path)
    told: dict[int, str] = {}

    def foresee(indices: np.ndarray) -> None:
        told[int(indices[0])] = threading.current_thread().name

    monkeypatch.setattr(made._teacher, "foresee", foresee, raising=False)
    made.make(3, 32)
    assert sorted(told) == [96, 104, 112, 120]
    assert all(name.startswith("decode") for name in told.values())


def test_two_units_at_once_overlap(tmp_path: Path) -> None:
    made, dataset = actor(tmp_path, delay_s=0.05)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(made.make, [0, 1], [32, 32]))
    # Eight micro-batches of 0.05 s on the one teacher thread, never two at a time.
    assert time.monotonic() - started >= 0.4
    assert set(dataset.committed()) == {0, 1}


class Writer:
    """A unit writer that takes its time, or fails."""

    def __init__(self, *, gate: threading.Event | None = None, fails: bool = False) -> None:
        self.gate, self.fails = gate, fails
        self.offsets: list[int] = []

    def write(self, offset: int, batch: FeatureBatch) -> None:
        if self.gate is not None:
            self.gate.wait(5)
        if self.fails:
            raise DataError("disk: no space left")
        self.offsets.append(offset)


def batch() -> FeatureBatch:
    return FeatureBatch(np.zeros(1, np.int64), ["k"], np.ones(1, bool), None, {})


def test_the_writer_thread_keeps_order_and_bounds_memory() -> None:
    gate = threading.Event()
    writer = Writer(gate=gate)
    sink = WriterThread(cast(UnitWriter, writer))
    put: list[int] = []

    def fill() -> None:
        for offset in range(20):
            sink.put(offset, batch())
            put.append(offset)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.2)
    assert len(put) <= QUEUE_DEPTH + 1
    gate.set()
    thread.join()
    sink.close()
    assert writer.offsets == list(range(20)) and sink.waited_s > 0.1


def test_a_write_that_fails_surfaces_and_blocks_nobody() -> None:
    sink = WriterThread(cast(UnitWriter, Writer(fails=True)))
    with pytest.raises(DataError, match="no space"):
        for offset in range(50):
            sink.put(offset, batch())
    sink.stop()
    sink = WriterThread(cast(UnitWriter, Writer(fails=True)))
    sink.put(0, batch())
    with pytest.raises(DataError, match="no space"):
        sink.close()


def test_out_of_memory_names_the_setting_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, dataset = actor(tmp_path)

    def starve(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(made._input, "forward", starve)
    with pytest.raises(TeacherError, match="micro_batch: got 8, too much for the memory"):
        made.make(0, 32)
    assert not dataset.committed()
    assert not [path for path in Path(dataset.url).rglob("staging/r/*") if path.is_file()]
    assert not [thread for thread in threading.enumerate() if thread.name == "writer"]


def test_learned_codecs_are_fitted_once_before_the_first_unit(tmp_path: Path) -> None:
    first, dataset = actor(tmp_path / "a", codec="lowrank2-int8")
    assert dataset.unfitted() == []
    again, other = actor(tmp_path / "b", codec="lowrank2-int8")
    keys = [f"codecs/{level.name}.npy" for level in dataset.levels]
    assert [dataset.files.read(key) for key in keys] == [other.files.read(key) for key in keys]
    first.make(0, 32)
    again.make(1, 32)
    bases = [d.committed()[n].extra["bases"] for n, d in enumerate((dataset, other))]
    assert bases[0] == bases[1]


def test_learned_codecs_are_fitted_to_samples_from_all_over_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    forward = ImageInput.forward

    def watch(self: ImageInput, teacher: Teacher, work: Work) -> FeatureBatch:
        seen.append(work.indices.tolist())
        return forward(self, teacher, work)

    monkeypatch.setattr(actor_module, "FIT_SAMPLES", 64)
    monkeypatch.setattr(ImageInput, "forward", watch)
    actor(tmp_path, codec="lowrank2-int8")
    assert seen == [list(range(n * 162, n * 162 + 8)) for n in range(8)]


def test_torch_is_settled_with_the_threads_that_are_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    settled: list[int] = []
    monkeypatch.setattr(actor_module, "settle_torch", settled.append)
    _, dataset = actor(tmp_path)
    assert settled == [dataset.pins.threads] == [1]


def test_halving_ends_where_one_image_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, dataset = actor(tmp_path, halve=True)
    sizes: list[int] = []

    def starve(_: object, work: Work) -> None:
        sizes.append(len(work.indices))
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(made._input, "forward", starve)
    with pytest.raises(TeacherError, match="micro_batch: got 1, too much for the memory"):
        made.make(0, 32)
    assert sizes == [8, 4, 2, 1] and not dataset.committed()


def test_halving_is_asked_for_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, dataset = actor(tmp_path, halve=True)
    forward = made._input.forward
    sizes: list[int] = []

    def small_memory(teacher: object, work: Work) -> FeatureBatch:
        sizes.append(len(work.indices))
        if len(work.indices) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(cast(Teacher, teacher), work)

    monkeypatch.setattr(made._input, "forward", small_memory)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(made.make, [0, 1], [32, 32]))
    assert sizes.count(8) == 1 and sizes.count(4) == 16 and len(sizes) == 17
    commits = dataset.committed()
    assert [commits[unit].extra["micro_batch"] for unit in (0, 1)] == [4, 4]
    other, reference = actor(tmp_path / "reference")
    other.make(0, 32)
    assert reference.committed()[0].digests == commits[0].digests


def test_stopped_it_drops_what_it_computes(tmp_path: Path) -> None:
    made, dataset = actor(tmp_path, delay_s=0.2)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(made.make, 0, 32)
        time.sleep(0.1)
        made.stop()
        assert call.done()
        with pytest.raises(DreamshardError, match="stopped"):
            call.result()
    assert not dataset.committed()
    assert not [path for path in Path(dataset.url).rglob("staging/r/*") if path.is_file()]


def test_what_reads_ahead_is_ended_by_the_maker_and_not_by_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collected in a thread of its own pools it would wait for itself, and every pool for it."""
    made, _ = actor(tmp_path)
    ended: list[str] = []
    works = made._input.works

    def watched(*args: int, **sizes: int) -> Iterator[Work]:
        try:
            yield from works(*args, **sizes)
        finally:
            ended.append(threading.current_thread().name)

    def fail(_: object, work: Work) -> FeatureBatch:
        raise DataError(f"at {work.offset}")

    monkeypatch.setattr(made._input, "works", watched)
    monkeypatch.setattr(made._input, "forward", fail)
    gc.disable()  # nothing but the maker may end it
    try:
        with pytest.raises(DataError, match="at 0"):
            made.make(0, 32)
        assert ended == [threading.current_thread().name]
    finally:
        gc.enable()
