"""The k-NN task fills a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.tasks import KnnConfig
from distill.tasks.knn import Knn
from dreamshard.config import load_config
from dreamshard.errors import ConfigError, DataError
from tests.unit.distill.tasks.shape_bench import ShapeBench


def test_the_task_fills_a_table(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    task = Knn(KnnConfig(k=[1, 5]), seed=0)
    result = task.run(bench)
    assert list(result["rows"]) == bench.names
    assert result["rows"]["pixels"]["1"]["mean"] > 60
    (table,) = task.tables(result)
    assert table.header == ["representation", "k = 1", "k = 5"] and len(table.lines) == 3
    with pytest.raises(DataError, match=r"knn\.k: got 100, allowed up to 48"):
        Knn(KnnConfig(k=[100]), seed=0).run(bench)


def test_published_protocols_take_raw_features_and_both_distances(tmp_path: Path) -> None:
    config = KnnConfig(k=[1, 3], temperature=0, metric="both", scaling="raw", ties="random")
    task = Knn(config, seed=0)
    result = task.run(ShapeBench(tmp_path))
    row = result["rows"]["pixels"]
    assert list(row) == ["D1, k = 1", "D1, k = 3", "D2, k = 1", "D2, k = 3"]
    assert all(
        set(cell) == {"mean", "scaling"} and cell["scaling"] == "raw" for cell in row.values()
    )
    assert task.tables(result)[0].header[1:] == list(row)
    with pytest.raises(ConfigError, match=r"knn\.ties.*temperature 0"):
        load_config(
            EvaluateConfig, ["--tasks", "[knn]", "--knn.ties", "random"], prog="x", description=""
        )
