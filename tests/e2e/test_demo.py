"""The whole road with the real commands: `dreamshard demo --fast`, installed, then once more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zarr

from dreamshard.console.cli import main

for package in ("ray", "diffusers", "sklearn", "matplotlib", "jinja2"):
    pytest.importorskip(package)

pytestmark = pytest.mark.ray


ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("dreamshard", "storage", "pipeline", "distill", "recipes")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of this tree and install it into a folder of its own."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        without = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, place / "tree" / name, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "tree")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(place), str(place / "tree")]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = place.glob("dreamshard-*.whl")
    target = ["install", "--no-deps", "--no-index", "--target", str(place / "site"), str(wheel)]
    subprocess.run([*pip, *target], check=True)
    return place / "site"


@pytest.fixture(scope="module")
def folder(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run one demo in a fresh working directory, from an installation outside of any checkout."""
    before, here = Path.cwd(), tmp_path_factory.mktemp("demo")
    os.chdir(here)
    try:
        command = [str(installed / "bin" / "dreamshard"), "demo", "--fast"]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        subprocess.run(command, check=True, env=environment)
        yield here / "runs" / "demo"
    finally:
        os.chdir(before)


def test_what_is_installed_has_every_recipe_and_teacher(installed: Path) -> None:
    wanted = {".py", ".yaml", ".json", ".safetensors", ".j2", ".typed"}
    for name in SHIPPED:
        files = [path for path in (ROOT / name).rglob("*") if path.suffix in wanted]
        files += [ROOT / name / "py.typed"] if name != "recipes" else []
        lacking = [str(f) for f in files if not (installed / f.relative_to(ROOT)).is_file()]
        assert not lacking
    assert not list(installed.glob("tests")) + list(installed.glob("benchmarks"))


def student(folder: Path, number: int) -> bytes:
    return (folder / f"train-fast-00{number}" / "student" / "model.safetensors").read_bytes()


def test_everything_is_there_and_opens_without_our_code(folder: Path) -> None:
    assert (folder / "teacher-fast" / "samples.png").stat().st_size > 0
    (dataset,) = (folder / "datasets").iterdir()
    group = zarr.open_group(dataset / "data.zarr", mode="r")
    shapes = {name: array.shape for name, array in group.arrays()}
    maps = {shape[2:] for shape in shapes.values() if len(shape) == 4 and shape[-1] != 3}
    assert maps == {(4, 4), (8, 8), (16, 16)}
    assert {shape[0] for shape in shapes.values()} == {256}
    parts = (dataset / "manifest").glob("part-*.parquet")
    assert sum(pq.read_table(part).num_rows for part in parts) == 256
    results = json.loads((folder / "train-fast-001" / "evaluate" / "results.json").read_text())
    rows = results["few_label"]["rows"]
    assert list(rows) == ["pixels", "teacher", "random student", "distilled student"]


def test_report_shows_every_part(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Cannot be shown" not in html
    assert html.count("data:image/png;base64,") >= 1 + 1 + 4 + 2 * 2
    assert html.count("<svg") == 2  # both loss curves
    assert len(html) < 3_000_000


def test_a_second_demo_reuses_teacher_and_features_and_trains_the_same_student(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--fast"]) == 0
    shown = capfd.readouterr()
    assert "is already trained (12 steps): reused" in shown.err
    assert "already there: 256 samples" in shown.out
    assert "[2/5] encode: reused" in shown.err
    assert "next    dreamshard synthesize --config" in shown.out
    assert student(folder, 2) == student(folder, 1)


def test_the_commands_shown_do_the_same(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = (folder / "train-fast-001" / "command.txt").read_text().splitlines()
    words = lines[-1].split()
    assert words[:2] == ["dreamshard", "train"]
    words[words.index("--run_dir") + 1] = str(tmp_path / "again")
    assert not main([word.strip("'") for word in words[1:]])
    weights = (tmp_path / "again" / "student" / "model.safetensors").read_bytes()
    assert weights == student(folder, 1)
