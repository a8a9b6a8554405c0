import subprocess
import sys
from pathlib import Path

import pytest

from dreamshard.errors import DataError, run_main
from storage.dataset import Dataset
from storage.verbs.commands import format_bytes, inspect, ls, verify
from tests.feature_store import fill, make_dataset, make_recipe


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = make_dataset(tmp_path)
    fill(dataset, 20, invalid=(7,))
    return dataset


def test_ls(dataset: Dataset, tmp_path: Path, capsys) -> None:
    other = make_dataset(tmp_path, recipe=make_recipe(seed=1))
    other.grow(8)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset.json").write_text("{")
    assert ls([str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    whole = lines[dataset.url.rpartition("/")[2]]
    assert "20" in whole and "whole, 1 invalid" in whole and "up.1.t100, emb, top" in whole
    assert "2 units to make" in lines[other.url.rpartition("/")[2]]
    assert "damaged" in lines["broken"]


def test_ls_of_nothing(tmp_path: Path, capsys) -> None:
    assert ls([str(tmp_path)]) == 0
    assert "no datasets yet" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such folder"):
        ls([str(tmp_path / "none")])


def test_inspect(dataset: Dataset, capsys) -> None:
    assert inspect([dataset.url]) == 0
    out = capsys.readouterr().out
    for text in (
        dataset.url,
        "20 of 20 requested",
        dataset.recipe.content_key,
        "up.1.t100",
        "float16",
        "sample 7 is invalid: truncated",
    ):
        assert text in out


def test_verify(dataset: Dataset, capsys) -> None:
    assert verify([dataset.url]) == 0
    assert "4 units, 20 samples (1 invalid)" in capsys.readouterr().out
    path = Path(dataset.files.path(dataset.store.array_key("emb", 1)))
    path.write_bytes(bytes(path.stat().st_size))
    assert verify([dataset.url]) == 3
    out = capsys.readouterr().out
    assert f"damaged: {path} (unit 1): got digest" in out and "1 problems" in out
    assert f"dreamshard verify --repair {dataset.url}" in out
    assert verify([dataset.url, "--repair"]) == 3
    assert "it makes unit 1 again" in capsys.readouterr().out
    assert verify([dataset.url]) == 0
    assert "unit 1 requested and not made yet" in capsys.readouterr().out
    fill(dataset, 20, invalid=(7,))
    assert verify(["--quick", dataset.url]) == 0


def test_user_errors_have_their_exit_codes(tmp_path: Path, capsys) -> None:
    for command in (ls, inspect, verify):
        assert run_main(command, [str(tmp_path / "none")]) == 3
        assert "Traceback" not in capsys.readouterr().err


def test_the_commands_need_neither_torch_nor_ray(dataset: Dataset) -> None:
    code = (
        "import sys; from storage.verbs.commands import inspect, ls, verify\n"
        "ls([sys.argv[1]]); inspect([sys.argv[2]]); verify([sys.argv[2]])\n"
        "assert not {'torch', 'ray', 'zarr', 'numba'} & set(sys.modules), 'heavy'"
    )
    root = dataset.url.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code, root, dataset.url], check=True)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (2e9, "2.0 GB"), (3.2e15, "3200.0 TB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text
