"""A newcomer reads five short files, and no part of the product needs a whole run's settings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 900
WHOLE = {
    "TrainConfig", "EvaluateConfig", "PipelineConfig", "OfflineConfig", "EncodeConfig",
    "SynthesizeConfig", "PretrainConfig", "CleanConfig", "InterpretConfig", "ServeConfig",
    "PublishConfig",
}  # fmt: skip
COMPOSITION = {
    "pipeline/run.py", "pipeline/encode.py", "pipeline/synthesize.py", "pipeline/pretrain.py",
    "pipeline/pretrain_gan.py",
    "pipeline/learning/pretraining/cleaning/command.py",
    "pipeline/interpret.py", "pipeline/serve.py", "pipeline/request/plan_command.py",
    "distill/train.py", "distill/evaluate.py", "distill/publish.py", "distill/training/start.py",
}  # fmt: skip
"""The scripts: they take a command's settings apart and give each part its own. What starts a
training run compares and records all of them."""


def test_five_files_are_read_in_ten_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.split("## Read these five files")[1].split("Then the doors")[0]
    files = re.findall(r"^\d\. \[[^]]+\]\(([^)]+)\)", listed, re.M)
    assert len(files) == 5
    lines = {name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in files}
    assert sum(lines.values()) <= MOST_LINES, lines
    assert "pipeline/offline/actor.py" in files, "where teacher meets writer"


def test_only_scripts_take_a_whole_command_s_settings() -> None:
    taken = []
    for package in ("dreamshard", "storage", "pipeline", "distill"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name in COMPOSITION:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    asked = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    words = {
                        word
                        for argument in asked
                        if argument.annotation is not None
                        for word in re.findall(r"\w+", ast.unparse(argument.annotation))
                    }
                    taken += [f"{name}: {node.name} takes {word}" for word in words & WHOLE]
    assert not taken


def test_scripts_are_there() -> None:
    assert not [name for name in COMPOSITION if not (ROOT / name).is_file()]
