"""What scripts read: --json of ls, inspect and verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.dataset import Dataset
from storage.verbs.commands import inspect, ls, verify
from tests.feature_store import fill, make_dataset, make_recipe


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    fill(dataset, 20, invalid=(7,))
    return dataset


def test_ls_tells_every_dataset_also_those_that_cannot_be_opened(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path, recipe=make_recipe(seed=1))
    other.grow(8)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset.json").write_text("{")
    assert ls([str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    by_name = {entry["name"]: entry for entry in told["datasets"]}
    whole = by_name[dataset.url.rpartition("/")[2]]
    assert whole["state"] == "whole" and whole["url"] == dataset.url
    assert (whole["samples"], whole["invalid"], whole["units"]) == (20, 1, 4)
    assert whole["levels"] == ["up.1.t100", "emb", "top"]
    assert by_name[other.url.rpartition("/")[2]]["state"] == "incomplete"
    assert by_name["broken"]["state"] == "damaged" and by_name["broken"]["error"]


def test_ls_of_nothing_is_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ls([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"] == []


def test_inspect_tells_what_people_are_told(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert inspect([dataset.url, "--json", "--samples", "4", "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["recipe"]["content_key"] == dataset.recipe.content_key
    assert told["errors"] == {"7": "truncated"} and told["samples"] == 20
    assert {array["name"] for array in told["arrays"]} >= {"up.1.t100", "emb", "top"}
    assert told["statistics"]["emb"]["samples"] == 4
    assert sheet.stat().st_size and str(sheet) in shown.err


def test_verify_tells_each_problem_with_its_file(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([dataset.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    path = Path(dataset.files.path(dataset.store.array_key("emb", 1)))
    path.write_bytes(bytes(path.stat().st_size))
    assert verify([dataset.url, "--json", "--repair"]) == 3
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["whole"] is False and told["units"] == 4
    (damaged,) = told["damaged"]
    assert damaged["unit"] == 1 and path.as_posix().endswith(damaged["path"])
    assert "it makes unit 1 again" in shown.err
