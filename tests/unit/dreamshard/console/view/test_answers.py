"""What the viewer says of datasets and runs, without a browser."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamshard.console.view.answers import ANSWERS, Desk
from dreamshard.console.view.features import Features
from dreamshard.console.view.feed import Feed
from dreamshard.console.view.places import find_places
from dreamshard.console.view.samples import Shelf, Wanted
from dreamshard.errors import DataError
from dreamshard.runfolder import RunFolder
from storage.dataset import Dataset
from storage.rows import pick
from tests.feature_store import fill, make_dataset

pytest.importorskip("PIL", reason="needs pillow")


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = 1000


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = make_dataset(tmp_path / "data")
    fill(made, 20, invalid=(3, 8))
    return Dataset.open(made.url)


def ask(desk: Desk, name: str, **query: object) -> Any:
    return ANSWERS[name](desk, {key: str(value) for key, value in query.items()})


def test_a_page_reads_no_array_and_no_manifest(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(dataset)
    monkeypatch.setattr(type(shelf.snapshot), "_rows", lambda *_, **__: pytest.fail("all rows"))
    told = shelf.page(Wanted(), first=6, count=5)
    assert told["total"] == 20
    assert [row["key"] for row in told["rows"]] == [f"key/{n}" for n in range(6, 11)]
    assert told["rows"][2] == {
        "index": 8,
        "key": "key/8",
        "label": 1,
        "made": True,
        "valid": False,
        "error": "truncated",
    }


def test_samples_are_found_by_key_label_and_validity(dataset: Dataset) -> None:
    dataset.drop(["key/13"], reason="a double")
    shelf = Shelf(dataset)

    def found(**wanted: Any) -> list[int]:
        page = shelf.page(Wanted(**wanted), first=0, count=50)
        assert page["total"] == len(page["rows"])
        return [row["index"] for row in page["rows"]]

    assert found(key="KEY/1") == [1, *range(10, 20)]
    assert found(label=2) == [2, 9, 16]
    assert found(state="invalid") == [3, 8, 13]
    assert found(key="/1", state="invalid") == [13]
    assert found(state="missing") == []
    assert "a double" in shelf.rows([13])[0]["error"]


def test_units_that_are_not_made_are_said_to_be(dataset: Dataset) -> None:
    dataset.invalidate(1)
    shelf = Shelf(Dataset.open(dataset.url))
    assert [row["made"] for row in shelf.rows([5, 6, 11, 12])] == [True, False, False, True]
    assert shelf.made([5, 6, 11, 12]) == [5, 12]
    assert shelf.page(Wanted(state="missing"), first=0, count=9)["total"] == 6


def test_likeness_is_the_cosine_of_cells(dataset: Dataset) -> None:
    shelf = Shelf(dataset)
    level = Features(shelf, dataset.levels[0])
    pictures, best = level.likeness(4, y=0.6, x=0.2, among=[4, 5])
    values = pick.read_rows(shelf.snapshot, "up.1.t100", [4, 5]).astype(float)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    alike = np.einsum("c,nchw->nhw", unit[0, :, 1, 0], unit)
    assert best[0] == pytest.approx([0.75, 0.25, 1.0], abs=1e-5)
    assert best[1][2] == pytest.approx(alike[1].max(), abs=1e-5)
    assert len(pictures) == 2 and pictures[0].startswith("data:image/png;base64,")


def test_neighbours_are_the_nearest_by_cosine(dataset: Dataset) -> None:
    shelf = Shelf(dataset)
    told = Features(shelf, dataset.levels[1]).neighbours(0, count=3)
    vectors = pick.read_rows(shelf.snapshot, "emb", range(20)).astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = {n: unit[0] @ unit[n] for n in range(1, 20) if n not in (3, 8)}
    assert told["samples"] == sorted(alike, key=lambda n: -alike[n])[:3]
    assert told["among"] == 18


def test_a_student_s_map_is_a_level_like_others(dataset: Dataset) -> None:
    level = dataset.levels[0]
    given = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 2, 2)
    features = Features(Shelf(dataset), level, lambda rows: given[: len(rows)])
    assert len(features.colours([0, 1], own=True)) == 2


def test_another_dataset_s_samples_are_found_by_key(dataset: Dataset, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other")
    fill(other, 12)
    shelf = Shelf(Dataset.open(other.url))
    keys = ["key/2", "key/7", "key/19", ""]
    assert shelf.same(keys, near=[2, 3, 19, 4]) == [2, 7, None, None]


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("samples", {"d": 7, "first": 0, "count": 5}),
        ("samples", {"d": "../x", "first": 0, "count": 5}),
        ("samples", {"d": 0, "first": 0, "count": 10**9}),
        ("samples", {"d": 0, "first": 0, "count": 5, "state": "any"}),
        ("samples", {"d": 0, "first": -1, "count": 5}),
        ("maps", {"d": 0, "level": "../../etc", "i": "0"}),
        ("maps", {"d": 0, "level": "emb", "i": "0"}),
        ("maps", {"d": 0, "level": "up.1.t100", "i": "20"}),
        ("maps", {"d": 0, "level": "up.1.t100", "i": ",".join("1" * 201)}),
        ("likeness", {"d": 0, "level": "up.1.t100", "i": "0", "of": "0", "y": "nan", "x": "0"}),
        ("run", {"r": 0}),
    ],
)
def test_queries_that_make_no_sense_are_refused(
    dataset: Dataset, name: str, query: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="allowed"):
        ask(Desk(find_places([dataset.url])), name, **query)


def test_a_link_out_of_what_was_named_is_not_followed(dataset: Dataset, tmp_path: Path) -> None:
    RunFolder(tmp_path / "far" / "run", config=TrainConfig())
    named = tmp_path / "named"
    named.mkdir()
    (named / "run").symlink_to(tmp_path / "far" / "run")
    (named / "data").symlink_to(dataset.url)
    with pytest.raises(DataError, match="neither a dataset nor a run"):
        find_places([str(named)])
    RunFolder(named / "own", config=TrainConfig())
    places = find_places([str(named)])
    assert [run.name for run in places.runs] == ["own"] and not places.datasets


def write_lines(file: Path, *lines: dict[str, object], mode: str = "a") -> None:
    with file.open(mode) as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_feed_follows_a_run_and_its_resumption(tmp_path: Path) -> None:
    RunFolder(tmp_path, config=TrainConfig(), command=["dreamshard", "train"])
    (tmp_path / "config.resolved.yaml").write_text("steps: 100\n")
    feed, file, now = Feed(tmp_path), tmp_path / "metrics.jsonl", time.time()
    assert feed.look()["state"] == "not begun"
    write_lines(file, *({"time": now - 5 + s / 10, "step": s, "loss": 1 / s} for s in (10, 20)))
    with file.open("a") as out:
        out.write('{"time": 1, "step": 30, "lo')
    told = feed.look()
    assert told["state"] == "running" and told["step"] == 20
    assert told["curves"]["loss"] == [(10.0, 0.1), (20.0, 0.05)]
    assert told["eta_s"] == pytest.approx(8, rel=0.01)
    with file.open("a") as out:
        out.write('ss": 0.02}\n')
    assert feed.look()["curves"]["loss"][-1] == (30.0, 0.02)
    part = tmp_path / "part"
    write_lines(part, {"time": now, "step": 10, "loss": 0.5}, mode="w")
    os.replace(part, file)
    assert feed.look()["curves"]["loss"] == [(10.0, 0.5)]
    write_lines(file, {"time": now, "step": 10, "loss": 0.4})
    assert feed.look()["curves"]["loss"] == [(10.0, 0.4)]
    os.utime(file)
    (tmp_path / "stats.json").write_text('{"seconds": 3.0}')
    assert feed.look()["state"] == "done"


def test_a_pipe_in_a_run_s_place_is_not_waited_for(tmp_path: Path) -> None:
    RunFolder(tmp_path, config=TrainConfig())
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert Feed(tmp_path).look()["curves"] == {}
