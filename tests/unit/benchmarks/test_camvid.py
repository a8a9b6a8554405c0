"""How the CamVid benchmark tells its two sets of judged frames apart."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from benchmarks.camvid import MOST_LABELLED, Experiment, summarise
from distill.tasks.segmentation import COUNTS
from pipeline.images.labelled import draw_labelled

HELD, TRAIN = 5, 60


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    for split, count in (("val", HELD), ("train", TRAIN)):
        keys = [f"{split}-{number}" for number in range(count)]
        table = {"key": keys, "image": [b""] * count, "mask": [b""] * count}
        pq.write_table(pa.table(table), tmp_path / f"camvid-{split}.parquet")
    return Experiment(Namespace(out=tmp_path, data=tmp_path, frames=[20], size="tiny"))


def test_labelled_frames_do_not_judge(experiment: Experiment, tmp_path: Path) -> None:
    keys = pq.read_table(experiment.heldout())["key"].to_pylist()
    assert len(keys) == HELD + TRAIN
    labelled = draw_labelled(TRAIN, count=MOST_LABELLED, seed=1, draw="even")
    counts = np.zeros((len(keys), 2, 2), np.int32)
    counts[:HELD] = [[3, 1], [0, 4]]  # intersections over unions 3/4 and 4/5
    counts[HELD:] = [[1, 0], [0, 1]]
    counts[HELD + labelled] = [[0, 9], [9, 0]]  # would show at once
    np.savez(tmp_path / COUNTS, keys=np.array(keys), **{"some network/20": counts})
    found = experiment.by_set(tmp_path / COUNTS, 1)
    assert found == {"some network": {"val": pytest.approx(77.5), "rest": 100.0}}


def test_gains_are_paired_by_seed() -> None:
    found = {
        "scratch": {"20": {"0": {"val": 30.0, "rest": 40.0}, "1": {"val": 50.0, "rest": 40.0}}},
        "mix": {"20": {"0": {"val": 33.0, "rest": 39.0}, "1": {"val": 51.0, "rest": 42.0}}},
    }
    cell = summarise(found)["mix"]["20"]
    assert (cell["val"]["gain"], cell["val"]["won"]) == (2.0, 2)
    assert cell["val"]["gain_std"] == pytest.approx(2**0.5)
    assert (cell["rest"]["gain"], cell["rest"]["won"], cell["rest"]["mean"]) == (0.5, 1, 40.5)
