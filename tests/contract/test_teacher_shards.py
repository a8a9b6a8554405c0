"""What every teacher records comes back from shards as it was, whichever command asked for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.offline.actor import Job, ShardActor
from pipeline.request.config import EncodeConfig, SynthesizeConfig
from pipeline.request.lookup import create
from pipeline.request.resolve import resolve
from pipeline.teachers.base import Mode
from pipeline.teachers.load import load_teacher, teacher_class
from storage.rows.pick import read_rows
from storage.schema import Pins
from tests.contract.test_teachers import EXAMPLES, told

SAMPLES, SIZE = 4, (16, 16)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("mode", ["encode", "synthesize"])
def test_records_come_back_from_shards(tmp_path: Path, name: str, mode: Mode) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    example = EXAMPLES[name](weights)
    if mode not in teacher_class(example.kind, part=example.part).modes:
        pytest.skip(f"{name} does not {mode}")
    teacher = dataclasses.replace(told(example, mode), timesteps=example.timesteps[:1], draws=1)
    root, fsync, micro_batch = str(tmp_path / "data"), False, SAMPLES
    if mode == "encode":
        asked = EncodeConfig(
            root=root,
            teacher=teacher,
            source=SourceConfig(kind="digits"),
            image=ImageConfig(size=SIZE[0]),
            samples_per_unit=SAMPLES,
            micro_batch=micro_batch,
            fsync=fsync,
        ).request()
    else:
        asked = SynthesizeConfig(
            root=root,
            teacher=teacher,
            samples=SAMPLES,
            samples_per_unit=SAMPLES,
            micro_batch=micro_batch,
            fsync=fsync,
        ).request()
    request = resolve(asked)
    dataset = create(request)
    dataset.grow(SAMPLES)
    job = Job(
        url=dataset.url,
        run_id="r",
        teacher=teacher,
        image_size=request.spec.image_size,
        seed=0,
        fsync=fsync,
    )
    actor = ShardActor(job, request.input)
    actor.load()
    actor.make(0, SAMPLES)
    dataset.roll_up(final=True)
    snapshot = dataset.snapshot()
    own = load_teacher(
        teacher,
        mode=mode,
        seed=0,
        pins=Pins(micro_batch, "float32", "cpu", 1),
        image_size=request.spec.image_size,
    )
    indices, rows = np.arange(SAMPLES), list(range(SAMPLES))
    images = read_rows(snapshot, "image", rows)
    batch = own.encode(images, indices) if mode == "encode" else own.synthesize(indices)
    assert len(snapshot) == SAMPLES and snapshot.levels == own.levels
    for level in own.levels:
        kept = read_rows(snapshot, level.name, rows)
        np.testing.assert_allclose(kept, batch.levels[level.name], rtol=2e-3, atol=2e-3)
    if mode == "synthesize":
        assert batch.image is not None and np.abs(images.astype(int) - batch.image).max() <= 1
