import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.fs.local import LocalFiles
from storage.ledger import description as module
from storage.ledger.description import Description, read_description
from tests.feature_store import LEVELS, PINS, fill, make_dataset, make_recipe

ABOUT = Description(
    recipe=make_recipe(),
    levels=LEVELS,
    image_size=(4, 6),
    pins=PINS,
    labels=True,
    licence="MIT",
    extra={"note": [1, 2]},
    libraries={"numpy": "2"},
)
Value = dict[str, object]


def test_it_survives_json() -> None:
    assert Description.from_json(ABOUT.to_json(), where="x") == ABOUT


def test_it_spells_out_what_others_need() -> None:
    value = json.loads(ABOUT.to_json())
    assert value["format"] == "dreamshard" and value["format_version"] == 1
    assert value["content_key"] == ABOUT.recipe.content_key
    assert value["arrays"]["up.1.t100"] == {
        "dtype": "float16",
        "shape": [3, 2, 2],
        "level": "up.1.t100",
    }
    assert value["pins"]["micro_batch"] == 4 and value["licence"] == "MIT"


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="other"),
        lambda v: v.update(format_version="1"),
        lambda v: v.update(format_version=0),
        lambda v: v.update(name="../../etc"),
        lambda v: v["content"].update(seed=1),
        lambda v: v["layout"].update(samples_per_unit=7),
        lambda v: v["levels"][0].update(name="../../x"),
        lambda v: v["levels"][0].update(shape=[1 << 50]),
        lambda v: v["levels"].append(v["levels"][0]),
        lambda v: v.update(levels={"a": 1}),
        lambda v: v.update(image_size=[4]),
        lambda v: v.update(image_size=[1 << 40, 4]),
        lambda v: v.update(image_size=["4", 4]),
        lambda v: v.update(images=1),
        lambda v: v.update(pins={}),
        lambda v: v.update(extra=3),
        lambda v: v.pop("created"),
        lambda v: v.update(content=[]),
    ],
)
def test_a_strange_description_is_refused(change: Callable[[Value], object]) -> None:
    value = json.loads(ABOUT.to_json())
    change(value)
    with pytest.raises(DataError):
        Description.from_json(json.dumps(value).encode(), where="x")


def test_mutations_never_do_worse_than_an_error() -> None:
    rng, data = np.random.default_rng(0), ABOUT.to_json()
    for _ in range(400):
        mutated = bytearray(data)
        mutated[int(rng.integers(len(data)))] = int(rng.integers(256))
        end = len(data) if rng.random() < 0.8 else int(rng.integers(len(data)))
        try:
            Description.from_json(bytes(mutated[:end]), where="x")
        except DataError:
            continue


def test_deep_nesting_is_no_crash() -> None:
    # In a process of its own: Python 3.11 miscounts its recursion right after an error of its own.
    code = (
        "from storage.ledger.description import Description\n"
        "Description.from_json(b'[' * 200_000, where='x')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Error: x: not readable as JSON (nested more than 64 deep)" in run.stderr


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "dataset.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="got 1073741824 bytes"):
        read_description(LocalFiles(tmp_path))


def test_extra_must_be_json() -> None:
    about = Description(make_recipe(), LEVELS, (4, 4), PINS, extra={"a": object()})
    with pytest.raises(DataError, match="extra"):
        about.to_json()


def test_an_older_version_is_read_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretend that the format went on: version 2 calls the licence `terms`."""
    dataset = make_dataset(tmp_path)
    fill(dataset, 12)
    before = dataset.files.read("dataset.json")

    def upgrade(value: dict) -> dict:
        steps.append(value["format_version"])
        return {**value, "format_version": 2, "licence": value["licence"].upper()}

    steps: list[int] = []
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)
    monkeypatch.setitem(module.UPGRADES, 1, upgrade)
    again = Dataset.open(dataset.url)
    assert (again.about.licence, steps) == ("TEST", [1])
    assert again.recipe == dataset.recipe and again.url.endswith(again.recipe.folder)
    assert again.snapshot().version == dataset.snapshot().version
    assert fill(again, 18, run_id="later") == [2]
    assert again.files.read("dataset.json") == before
    monkeypatch.setattr(module, "FORMAT_VERSION", 1)
    newer = before.replace(b'"format_version": 1,\n "name"', b'"format_version": 2,\n "name"')
    assert newer != before
    dataset.files.write("dataset.json", newer)
    with pytest.raises(DataError, match="got format version 2, allowed up to 1. Install a newer"):
        Dataset.open(dataset.url)
