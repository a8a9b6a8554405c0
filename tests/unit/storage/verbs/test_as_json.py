"""What scripts read: --json of ls, inspect, verify and gc."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from storage.verbs import collect
from storage.verbs.collect_commands import gc
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


def test_gc_tells_what_may_go_and_what_went(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = dataset.url.rpartition("/")[2]

    def told(*options: str) -> list[dict[str, object]]:
        assert gc([str(tmp_path), "--json", *options]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["root"] == str(tmp_path)
        return shown["garbage"]

    assert told() == []
    (only,) = told("--remove", name)
    assert only["url"] == dataset.url and only["kind"] == "dataset" and only["reason"]
    assert only["removed"] is None and Path(dataset.url).is_dir()
    files = sum(path.is_file() for path in Path(dataset.url).rglob("*"))
    (gone,) = told("--remove", name, "--yes")
    assert gone["removed"] == files and gone["bytes"] == only["bytes"]
    assert not Path(dataset.url).exists()


def test_what_stays_after_all_is_not_counted_as_removed(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.object(collect, "remove", return_value=0):
        assert gc([str(tmp_path), "--remove", dataset.url.rpartition("/")[2], "--yes"]) == 0
    shown = capsys.readouterr().out
    assert f"stays: {dataset.url}: " in shown and "removed 0 files, about 0 B." in shown


@pytest.mark.parametrize("name", ["sheet.txt", "sheet", "", "folder.png"])
def test_a_sheet_that_is_no_png_file_is_refused_before_anything_is_read(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="--sheet: got .*allowed a file"):
        inspect([str(tmp_path / "no dataset"), "--sheet", str(tmp_path / name) if name else ""])
    with pytest.raises(ConfigError, match="--samples: got -1"):
        inspect([str(tmp_path / "no dataset"), "--samples", "-1"])
