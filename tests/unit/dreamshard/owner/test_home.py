"""A user without a home, and paths that name one."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from dreamshard.owner.home import expanded, user_cache, user_home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user: no HOME, no line in passwd."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_no_cache() -> None:
    assert user_home() is None and user_cache() is None
    assert expanded("~/x") == Path("~/x") and expanded("~nobody-of-that-name/x").name == "x"


@pytest.mark.parametrize("home", ["", "relative"])
def test_no_folder_of_the_working_folder_is_taken_for_a_home(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert user_cache() is None


def test_caches_are_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert user_cache() == tmp_path / "dreamshard"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "dreamshard" and user_home() == tmp_path
