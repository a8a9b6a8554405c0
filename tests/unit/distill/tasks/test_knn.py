"""The k-NN task fills a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.configs.tasks import KnnConfig
from distill.tasks.knn import Knn
from dreamshard.errors import DataError
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
