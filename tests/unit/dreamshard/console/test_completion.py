"""Completion in a real bash."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dreamshard.console.completion import options_of, script

SETTINGS = {"ls": ["--json"], "list teachers": ["--json"], "encode": ["--teacher.path", "--root"]}
BASH = shutil.which("bash")


def replies(*words: str) -> list[str]:
    assert BASH is not None
    line = " ".join(f"'{word}'" for word in ("dreamshard", *words))
    command = f"{script(SETTINGS, shell='bash')}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
    command += '_dreamshard; printf "%s\\n" "${COMPREPLY[@]}"'
    told = subprocess.run([BASH, "-c", command], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    return told.stdout.split()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("l",), ["ls", "list"]),
        (("encode", "--te"), ["--teacher.path"]),
        (("encode", "--root", "x", "--t"), ["--teacher.path"]),
        (("list", "te"), ["teachers"]),
        (("list", "teachers", "--"), ["--json"]),
        (("ls", "--j"), ["--json"]),
    ],
)
def test_bash_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert replies(*words) == expected


@pytest.mark.parametrize(
    ("verb", "option"), [("ls", "--json"), ("encode", "--teacher.path"), ("plan", "--rate")]
)
def test_options_are_those_of_the_verb_s_help(verb: str, option: str) -> None:
    assert option in options_of(verb)
