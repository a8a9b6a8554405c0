"""What cannot be read is not damaged: nothing repairs, restores, withdraws or collects it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.owner.processes import owner
from storage import catalog
from storage.dataset import Dataset
from storage.ledger.commits import latest_version, read_commit, record_key
from storage.ledger.publish import CLAIMS
from storage.rows.pick import read_rows
from storage.schema import Recipe
from storage.verbs import collect
from storage.verbs.commands import DAMAGED, ls, verify
from storage.verbs.verify import repair, verify_dataset
from tests.feature_store import data_files, fill, make_dataset, make_recipe

FORMATS = ["zarr", "tar"]
NUMBERS = [errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM]
N = 20


@contextmanager
def refusing(path: str, number: int) -> Iterator[None]:
    """Let the system refuse to open one file."""
    real = os.open

    def refuse(name: object, *args: int, **more: int) -> int:
        if os.fspath(name) == path:  # type: ignore[call-overload]
            raise OSError(number, os.strerror(number), path)
        return real(name, *args, **more)  # type: ignore[arg-type]

    os.open = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os.open = real


@pytest.fixture(params=FORMATS)
def dataset(tmp_path: Path, request) -> Dataset:
    dataset = make_dataset(tmp_path, recipe=make_recipe(layout_format=request.param))
    fill(dataset, N)
    return dataset


def unit_files(dataset: Dataset, unit: int) -> list[str]:
    keys = [*dataset.store.unit_keys(unit), record_key(unit, 0)]
    return [dataset.files.path(key) for key in keys]


@pytest.mark.parametrize("number", NUMBERS)
def test_verify_and_repair_leave_units_that_cannot_be_read(dataset: Dataset, number: int) -> None:
    before = data_files(dataset)
    for path in unit_files(dataset, 1):
        with refusing(path, number):
            report = verify_dataset(dataset)
            told = {f.path for f in report.unreadable}
            assert path in told or dataset.url in str(report.unreadable[0])
            assert report.findings == [] and report.damaged_units == []
            assert os.strerror(number) in str(report.unreadable[0])
            try:
                repair(dataset, report)
            except DataError as error:
                assert isinstance(error, CannotReadError)
        assert latest_version(dataset.files, 1) == (0, True)
    assert data_files(dataset) == before and verify_dataset(dataset).findings == []
    assert dataset.missing(N).tolist() == []


def test_the_command_says_what_to_do_and_repairs_only_the_damaged(dataset: Dataset, capsys) -> None:
    hurt = Path(dataset.files.path(dataset.store.unit_keys(2)[0]))
    hurt.write_bytes(hurt.read_bytes()[:-1])
    with refusing(unit_files(dataset, 1)[0], errno.EACCES):
        assert verify(["--repair", dataset.url]) == DAMAGED
    out = capsys.readouterr().out
    assert "not read:" in out and "That is no damage" in out and "repaired" in out
    assert latest_version(dataset.files, 1) == (0, True)
    assert latest_version(dataset.files, 2) == (0, False)
    assert dataset.missing(N).tolist() == [2]


def test_a_run_that_cannot_read_a_unit_restores_nothing(dataset: Dataset) -> None:
    before, claim = data_files(dataset), f"{CLAIMS}/000000001~{owner()[:-1]}~0"
    dataset.files.write(claim, b"{}")  # of a process that is dead: unit 1 is looked at again
    with refusing(unit_files(dataset, 1)[0], errno.EMFILE), pytest.raises(CannotReadError):
        dataset.sweep()
    assert latest_version(dataset.files, 1) == (0, True) and data_files(dataset) == before
    dataset.sweep()
    assert latest_version(dataset.files, 1) == (0, True) and data_files(dataset) == before


@pytest.mark.parametrize("number", NUMBERS)
def test_readers_do_not_advise_a_repair(dataset: Dataset, number: int) -> None:
    path = dataset.files.path(dataset.store.array_key("emb", 1))
    snapshot = dataset.snapshot()
    for access in ("map", "pread"):
        with refusing(path, number), pytest.raises(CannotReadError) as error:
            read_rows(snapshot, "emb", np.arange(6, 9), access=access)
        assert "repair" not in str(error.value) and path in str(error.value)


def test_memory_that_is_short_is_not_damage(dataset: Dataset, monkeypatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("storage.ledger.commits.parse_sealed", short)
    with pytest.raises(CannotReadError, match="out of memory"):
        read_commit(dataset.files, 1, 0)
    report = verify_dataset(dataset)
    assert report.damaged_units == [] and report.unreadable and not report.findings


def test_gc_and_ls_pass_over_what_cannot_be_read(dataset: Dataset, capsys) -> None:
    root = str(Path(dataset.url).parent)
    with refusing(dataset.files.path("dataset.json"), errno.EACCES):
        assert ls([root]) == 0
        assert "cannot be read" in capsys.readouterr().out
        assert collect.plan(root, keep_latest=1) == []
    assert verify_dataset(dataset).findings == []


def test_a_dataset_that_cannot_be_read_is_not_taken_for_one_that_is_not_there(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is made a second time in silence: the very one is an error, another a warning."""
    root, recipe = str(Path(dataset.url).parent), dataset.recipe
    about = dataset.files.path("dataset.json")
    other = Recipe("other", recipe.content, recipe.layout)
    with refusing(about, errno.EACCES):
        with pytest.raises(CannotReadError):
            catalog.find(root, recipe)
        assert catalog.find(root, other) is None
    assert "may hold what is wanted" in caplog.text and about in caplog.text
    found = catalog.find(root, other)
    assert found is not None and found.url == dataset.url
