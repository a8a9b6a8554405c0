"""The Dockerfile, parsed: rules a linter would check, and that what it copies is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

dockerfile_parse = pytest.importorskip(
    "dockerfile_parse", reason="dockerfile-parse is not installed"
)
ROOT = Path(__file__).resolve().parents[3]
PATH = ROOT / "cluster_configs" / "docker" / "Dockerfile"
Steps = list[tuple[str, str]]


@pytest.fixture(scope="module")
def steps() -> Steps:
    parser = dockerfile_parse.DockerfileParser(fileobj=PATH.open("r+b"))
    return [
        (step["instruction"], step["value"])
        for step in parser.structure
        if step["instruction"] != "COMMENT"
    ]


def values(steps: Steps, name: str) -> list[str]:
    return [value for instruction, value in steps if instruction == name]


def test_the_base_is_pinned_and_the_user_is_not_root(steps: Steps) -> None:
    (base,) = values(steps, "FROM")
    assert ":" in base and not base.endswith(":latest")
    assert values(steps, "USER")[-1] not in ("root", "0")
    names = [instruction for instruction, _ in steps]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")


def test_layers_are_clean(steps: Steps) -> None:
    for command in values(steps, "RUN"):
        if "apt-get install" in command:
            assert "apt-get update" in command and "rm -rf /var/lib/apt/lists" in command
            assert "--no-install-recommends" in command and " -y" in command
        if "pip install" in command:
            assert "--no-cache-dir" in command
        assert "sudo" not in command and "curl" not in command
    assert not values(steps, "ADD") and not values(steps, "MAINTAINER")
    for command in values(steps, "CMD"):
        assert isinstance(json.loads(command), list)  # exec form: signals reach the program
    assert all(path.startswith("/") for path in values(steps, "WORKDIR"))


def test_versions_are_the_tested_ones_and_ray_is_authenticated(steps: Steps) -> None:
    assert any("-c constraints.txt" in command for command in values(steps, "RUN"))
    assert any("RAY_AUTH_MODE=token" in value for value in values(steps, "ENV"))


def test_what_is_copied_is_there_and_passes_dockerignore(steps: Steps) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    for value in values(steps, "COPY"):
        for source in value.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in allowed)
