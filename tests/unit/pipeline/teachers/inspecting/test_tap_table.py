from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.errors import ConfigError
from pipeline.teachers.inspecting.tap_table import format_table, tap_table


def test_table_names_shapes_and_costs(unet_folder: Path) -> None:
    description, rows = tap_table(str(unet_folder), costs=True)
    by_name = {row.name: row for row in rows}
    assert [tap.name for tap in description.taps] == [row.name for row in rows]
    assert by_name["up.1"].shape == (16, 8, 8) and by_name["up.1"].aliases == ("s2",)
    costs = [row.cost for row in rows if row.cost is not None]
    assert len(costs) == len(rows) and costs == sorted(costs)
    assert 0 < costs[0] < costs[-1] < 1
    text = format_table(rows).splitlines()
    assert len(text) == len(rows) + 1 and "16x16" in text[1] and "%" in text[1]


def test_table_without_costs_reads_no_weights(unet_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(unet_folder, folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    _, rows = tap_table(str(folder))
    assert rows[0].cost is None and rows[0].megabytes == pytest.approx(8 * 256 * 2 / 1e6)
    with pytest.raises(ConfigError, match="inversion_steps"):
        tap_table(str(folder), settings={"inversion_step": 3})
