import re
import tomllib
from pathlib import Path

from dreamshard.versions import BASE, EXTRAS, all_versions, package_versions


def _names(requirements: list[str]) -> set[str]:
    return {_plain(re.split(r"[\[<>=~! ]", text, maxsplit=1)[0]) for text in requirements}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


BY_NAME = {"bench", "docs", "mlflow", "mutate", "onnx", "tensorboard", "trackio", "wandb"}
"""Extras asked for by name alone: trackers, one export format, rivals, mutants, a site."""


def test_the_lists_agree_with_pyproject(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    assert set(map(_plain, BASE)) == _names(project["dependencies"])
    optional = project["optional-dependencies"]
    for extra, names in EXTRAS.items():
        assert set(map(_plain, names)) == _names(optional[extra]), extra
    assert set(optional) == {*EXTRAS, *BY_NAME, "all", "dev"}
    for extra in EXTRAS:
        assert extra in optional["all"][0]


def test_constraints_cover_every_direct_requirement(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = {_plain(name) for names in (BASE, *EXTRAS.values()) for name in names}
    assert wanted <= set(pinned)
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_missing_packages_are_left_out() -> None:
    assert set(package_versions(["numpy", "no-such-package-here"])) == {"numpy"}
    assert set(BASE) <= set(all_versions())
