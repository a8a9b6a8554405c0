"""What README and documentation tell to type is typed: the cheap commands, on small things.

The pages of `test_own_images.PAGES`, the README's sections and the demo are typed by their own
tests; what begins like ELSEWHERE, trains, serves or waits is parsed (tests/unit/test_docs.py).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamshard.console.cli import VERBS, load_verb
from tests.e2e.test_own_images import PAGES
from tests.fuzz.bases import train_config
from tests.unit.distill import small_data
from tests.unit.dreamshard.console.importing.folders import make_folder
from tests.unit.test_docs import commands

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "recipes" / "cifar10" / "teacher"
TYPED = {
    "ls", "inspect", "inspect teacher", "list teachers", "list students", "verify", "export",
    "import", "publish", "plan", "report", "completion",
}  # fmt: skip
ELSEWHERE = "inspect teacher teachers/"
"""Beginning of commands that would need what `pretrain` and `clean` train in minutes or hours."""
PLAN = f"""
teacher: {{kind: diffusers, path: {TEACHER}, levels: [s4], timesteps: [50]}}
source: {{kind: digits}}
image: {{size: 32}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what the pages' names stand for: datasets, a student, a teacher, a folder of shards."""
    root = tmp_path_factory.mktemp("documented")
    for name, count in (("photos-1a2b", 1536), ("NAME", 16), ("ddpm-digits-encode", 32)):
        unit = 768 if count > 768 else 16
        small_data.make_dataset(root / "data", name=name, num_samples=count, samples_per_unit=unit)
    from distill.train import train

    run, data = root / "runs" / "train", next((root / "data").glob("ddpm-digits-*"))
    run.mkdir(parents=True)
    train(train_config(run, str(data)))
    shutil.copytree(run, root / "runs" / "digits-train")
    shutil.copytree(TEACHER, root / "runs" / "demo" / "teacher")
    shutil.copytree(TEACHER, root / "recipes" / "cifar10" / "teacher")
    shutil.copytree(TEACHER, root / "PATH")
    for name in ("theia-imagenet", "FOLDER"):
        make_folder(root / name)
    (root / "encode.yaml").write_text(PLAN)
    return root


def wanted() -> list[str]:
    pages = {f"docs/{page}" for page in PAGES}
    found = []
    for page, command in commands():
        words = shlex.split(command.partition(" > ")[0].removesuffix(')"'))[1:]
        two = " ".join(words[:2])
        verb = two if two in VERBS else words[0]
        if page not in pages and verb in TYPED and ELSEWHERE not in command:
            found.append(shlex.join(["dreamshard", *words]))
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_cheap_commands_do_what_the_pages_say(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(place)
    for command in wanted():
        words = shlex.split(command)[1:]
        count = 2 if " ".join(words[:2]) in VERBS else 1
        code = load_verb(" ".join(words[:count]))(words[count:])
        assert not code, f"{command}\n{capsys.readouterr().err}"
        said = capsys.readouterr()
        assert said.out.strip() or said.err.strip(), command
    read_what_is_published(place)


def read_what_is_published(place: Path) -> None:
    """Type the page's Python in the folder where its commands have published."""
    pytest.importorskip("datasets")
    text = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    own = {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=place, env=os.environ | own, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
