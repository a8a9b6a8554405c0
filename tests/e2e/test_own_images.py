"""The README's own-images road and its lines of Python, typed as they stand, at small settings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "dreamshard run": "--train.steps 10 --train.save_every 10 --encode.actors 1 --train.device cpu",
    "dreamshard train": "--steps 10 --save_every 10 --device cpu",
    "dreamshard encode": "--actors 1",
}
"""What makes a command of the README a test."""
DEADLINE_S = 900.0


PAGES = (
    "tutorials/own-images.md", "tutorials/second-experiment.md", "tutorials/several-teachers.md",
    "tutorials/label-distillation.md", "format.md",
)  # fmt: skip
"""Pages of the documentation whose blocks go on from one another, in this order."""


def commands_of(page: str) -> list[str]:
    """Return a page's lines of `sh` as they are, and its blocks of `python` as `python -c`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.S)
    assert blocks, page
    found: list[str] = []
    for language, block in blocks:
        lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
        whole = [f"python -c {shlex.quote(block)}"]
        found += lines if language == "sh" else whole
    # ResNet-50 is the text's example of another student; a smaller one shows the same here.
    return [line.replace("--student.name resnet50", "--student.name resnet10t") for line in found]


def section(title: str, language: str, number: int = 0) -> list[str]:
    """Return the lines of a code block of a section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {title}\n")[1]
    block = re.findall(rf"```{language}\n(.*?)```", text.split("\n## ")[0], re.S)[number]
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]


def draw(folder: Path, count: int = 120) -> None:
    rng = np.random.default_rng(2)
    for number in range(count):
        place = folder / ("cats", "dogs", "owls")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (32, 36, 3), np.uint8)
        pixels[..., number % 3] += 100
        Image.fromarray(pixels).save(place / f"{number:03d}.png")


def typed(command: str, folder: Path) -> str:
    """Run a line of the README in a folder, `dreamshard` and `python` being this interpreter's."""
    words = shlex.split(command)
    words += next((more.split() for start, more in SMALL.items() if command.startswith(start)), [])
    first = {"dreamshard": [sys.executable, "-m", "dreamshard"], "python": [sys.executable]}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*first[words[0]], *words[1:]], cwd=folder, env=environment, text=True, timeout=DEADLINE_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_own_images_in_three_commands_and_ten_lines(tmp_path: Path) -> None:
    draw(tmp_path / "photos")
    for name in ("storage", "pipeline"):  # whoever works there may have such files
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    begin, run, load = section("Own images in three commands", "sh")
    said = typed(begin, tmp_path)
    assert "3 classes: cats, dogs, owls" in said and "next: dreamshard run runs/photos" in said
    said = typed(run, tmp_path)
    assert "[4/4] dreamshard report runs/photos" in said
    assert (tmp_path / "runs" / "photos" / "report.html").stat().st_size > 1000
    assert typed(load, tmp_path).strip() == "512"
    again = typed(run, tmp_path)
    for words in ("already there: ", "is finished (10 steps)", "its results are reused"):
        assert words in again
    for name in ("storage", "pipeline"):
        (tmp_path / f"{name}.py").unlink()
    lines = "\n".join(section("Ten lines of Python", "python")).replace("steps=500", "steps=10")
    assert "steps=10" in lines
    (tmp_path / "ten.py").write_text(lines)
    said = typed("python ten.py", tmp_path)
    assert re.search(r"\(64, 3, 16, 16\)|\(64, 64, 16, 16\)", said), said
    for page in PAGES:
        for command in commands_of(page):
            typed(command, tmp_path)
