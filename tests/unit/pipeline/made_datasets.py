"""Whole datasets made in this process, by an actor without Ray."""

from __future__ import annotations

import pickle

import numpy as np

from pipeline.offline.actor import Job, ShardActor
from pipeline.request.config import EncodeConfig
from pipeline.request.lookup import create, look_up
from pipeline.request.resolve import resolve
from storage.dataset import Dataset
from storage.rows.chunks import open_chunks


def make(config: EncodeConfig) -> Dataset:
    """Make a whole dataset in this process."""
    request = resolve(config.request())
    assert look_up(request) is None
    dataset = create(request)
    dataset.grow(request.plan.num_samples)
    job = Job(
        url=dataset.url,
        run_id="test",
        teacher=config.teacher,
        image_size=request.spec.image_size,
        seed=config.seed,
        fsync=False,
    )
    actor = ShardActor(job, pickle.loads(pickle.dumps(request.input)))
    actor.load()
    for unit in dataset.missing(request.plan.num_samples).tolist():
        actor.make(unit, request.plan.count(unit))
    dataset.roll_up(final=True)
    return Dataset.open(dataset.url)


def rows(dataset: Dataset, name: str) -> np.ndarray:
    snapshot = dataset.snapshot()
    dtype, shape = snapshot.array_spec(name)
    found = np.empty((snapshot.num_samples, *shape), dtype)
    chunks = open_chunks(snapshot, [name], access="pread", max_open=4)
    chunks.copy(np.arange(snapshot.num_samples), [found])
    chunks.close()
    return found
