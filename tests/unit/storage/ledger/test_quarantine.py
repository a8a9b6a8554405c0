"""Notes of units that could not be made: there while the unit is missing, gone when it is made."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dreamshard.console.cli import main
from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.verbs.verify import verify_dataset
from tests.feature_store import UNIT, fill, make_dataset, write_unit


@pytest.fixture
def holed(tmp_path: Path) -> Dataset:
    """A dataset of three units, the middle one left out."""
    dataset = make_dataset(tmp_path)
    dataset.grow(3 * UNIT)
    for unit in (0, 2):
        write_unit(dataset, unit, num_samples=3 * UNIT)
    dataset.quarantine(1, error="OSError: key/7: input/output error", attempts=3)
    dataset.roll_up(final=True)
    return dataset


def test_the_error_is_in_the_manifest_until_the_unit_is_made(holed: Dataset) -> None:
    assert holed.quarantined() == {1: "OSError: key/7: input/output error"}
    assert (Path(holed.url) / "manifest/_quarantine/000000001.json").exists()
    report = verify_dataset(holed)
    assert report.missing == [1] and not report.findings and not report.notes
    assert len(pq.read_table(Path(holed.url) / "manifest")) == 2 * UNIT
    assert fill(holed, 3 * UNIT) == [1]
    assert holed.quarantined() == {}
    assert not (Path(holed.url) / "manifest/_quarantine").exists()


def test_training_over_the_hole_takes_a_flag(holed: Dataset) -> None:
    snapshot = holed.snapshot()
    wanted = r"got 1 missing units \(1 \(OSError: key/7: input/output error\)\), allowed none"
    with pytest.raises(DataError, match=wanted):
        BatchReader(snapshot, levels=["emb"], batch_size=4)
    with BatchReader(snapshot, levels=["emb"], batch_size=4, allow_holes=True) as reader:
        seen = {int(index) for _ in range(3) for index in reader.next().index}
    assert seen == {*range(UNIT), *range(2 * UNIT, 3 * UNIT)}


def test_inspect_names_it(holed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", holed.url]) == 0
    assert "unit 1 was left out: OSError: key/7" in capsys.readouterr().out


def test_a_note_nobody_can_read_still_counts(holed: Dataset) -> None:
    path = Path(holed.url) / "manifest/_quarantine/000000001.json"
    path.write_text("[")
    (path.parent / "notes.txt").write_text("mine")
    assert holed.quarantined() == {1: "unknown"}
