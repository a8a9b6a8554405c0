"""Mutants with a name fit the product as it stands, and none of annotations is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mutate

TESTS = mutate.ROOT / "tests" / "unit"


@pytest.mark.parametrize("named", mutate.NAMED, ids=lambda named: named.name)
def test_what_a_named_mutant_changes_stands_there_once(named: mutate.Named) -> None:
    text = (mutate.ROOT / named.file).read_text(encoding="utf-8")
    assert text.count(named.was) == 1
    compile(text.replace(named.was, named.becomes), named.file, "exec")
    assert (TESTS / named.tests).is_file()


def test_files_and_their_tests_are_there() -> None:
    for name, tests in {**mutate.FILES, **mutate.EXTRA_TESTS}.items():
        assert (mutate.ROOT / name).is_file() and (TESTS / tests).exists(), name


def test_a_trial_tells_a_failing_test_from_a_passing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "half.py").write_text("def half(x):\n    return x / 2\n")
    tests = tmp_path / "tests" / "unit"
    tests.mkdir(parents=True)
    (tests / "test_half.py").write_text(
        "import half\n\n\ndef test_it():\n    assert half.half(4) == 2\n"
    )
    trial = mutate.Trial("half.py", ["test_half.py"])
    assert trial.notices("def half(x):\n    return x * 2\n")
    assert not trial.notices("def half(x):\n    return x - 2\n")
    assert (tmp_path / "half.py").read_text() == trial.text


def test_annotations_are_left_alone() -> None:
    text = "def f(a: int | None) -> str:\n    b: list[int] = []\n    return str(a)\n"
    spans = mutate.annotation_spans(text)
    assert sorted(spans) == [((1, 9), (1, 19)), ((1, 24), (1, 27)), ((2, 7), (2, 16))]
