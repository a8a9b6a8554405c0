"""A setting that no recipe, test or page on a paper's method names is one switch too many."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from dreamshard.config.allowed import nested
from tests.unit.test_unread_settings import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
LISTS = {"test_named_settings.py", "test_unread_settings.py"}
"""Tests of every setting: they tell nothing of what one is for."""


def test_every_setting_is_named_where_it_is_needed() -> None:
    recipes = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "cluster_configs").rglob("*.yaml")]
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in LISTS]
    pages = [*(ROOT / "docs" / "methods").rglob("*.md"), ROOT / "docs" / "pretraining-gans.md"]
    recipes += (ROOT / "recipes").rglob("*.md")
    text = "\n".join(p.read_text(encoding="utf-8") for p in (*recipes, *tests, *pages))
    words = set(re.findall(r"\w+", text))
    unnamed = [
        f"{cls.__name__}.{item.name}"
        for cls in CONFIGS
        for item in dataclasses.fields(cls)
        if item.name not in nested(cls) and item.name not in words
    ]
    assert not unnamed
