"""What inspect says of levels' values, and the picture it draws."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.verbs import statistics
from storage.verbs.commands import inspect
from storage.verbs.statistics import contact_sheet, enlarge, level_statistics, spread
from tests.feature_store import LEVELS, fill, make_batch, make_dataset, make_recipe

N = 20


def test_statistics_are_those_of_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.verbs.statistics._BLOCK_BYTES", 500)  # several blocks
    dataset = make_dataset(tmp_path)
    fill(dataset, N, invalid=(7,))
    snapshot = dataset.snapshot()
    samples = spread(snapshot, 100)
    assert samples.tolist() == [index for index in range(N) if index != 7]
    seen: list[int] = []
    found = level_statistics(snapshot, LEVELS[0], samples, on_samples=seen.append)
    values = make_batch(0, N).levels["up.1.t100"].astype(np.float16)[samples].astype(float)
    assert sum(seen) == found.samples == N - 1 and len(seen) > 1
    assert found.mean == pytest.approx(values.mean()) and found.std == pytest.approx(values.std())
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.norm == pytest.approx(np.linalg.norm(values, axis=1).mean())
    assert (found.zeros, found.dead) == ((values == 0).mean(), 0)


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_show_as_they_are(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    fill(dataset, N)
    for path in Path(dataset.url).glob(f"data.zarr/{LEVELS[0].name}/c/*/**/*"):
        if path.is_file():
            path.write_bytes(
                np.tile(np.float16([np.inf, -np.inf, np.nan, 1]), 9999).tobytes()[
                    : path.stat().st_size
                ]
            )
    snapshot = dataset.snapshot()
    found = level_statistics(snapshot, LEVELS[0], spread(snapshot, 100))
    assert np.isnan(found.mean) and np.isnan(found.std)
    assert inspect([dataset.url]) == 0


def test_samples_are_spread_evenly(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    fill(dataset, N)
    assert spread(dataset.snapshot(), 3).tolist() == [0, 9, 19]
    dataset.drop([f"key/{index}" for index in range(N)], reason="test")
    with pytest.raises(DataError, match="no valid sample"):
        spread(dataset.snapshot(), 3)


def test_the_sheet_has_a_row_per_sample_and_a_column_per_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "SHEET_SAMPLES", 5)
    image = pytest.importorskip("PIL.Image")
    dataset = make_dataset(tmp_path, recipe=make_recipe(codec="int8"))
    fill(dataset, N)
    snapshot = dataset.snapshot()
    sheet = np.asarray(image.open(io.BytesIO(contact_sheet(snapshot))))
    assert sheet.shape == (5 * 68 - 4, 2 * 68 - 4, 4)  # image and one map: 64 pixels, 4 between
    wanted = make_batch(0, 1).image
    assert wanted is not None
    assert np.array_equal(sheet[:64, :64, :3], enlarge(wanted[0], 64))
    assert len(np.unique(sheet[:64, 68:, :3].reshape(-1, 3), axis=0)) > 1


def test_inspect_shows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    dataset = make_dataset(tmp_path / "root")
    fill(dataset, N)
    picture = tmp_path / "sheet.png"
    assert inspect([dataset.url, "--samples", "8", "--sheet", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "dead channels" in out and "over 8 samples" in out and str(picture) in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert inspect([dataset.url, "--samples", "0"]) == 0
    assert "dead channels" not in capsys.readouterr().out
