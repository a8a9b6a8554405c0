"""Completion in real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dreamshard.console.completion import options_of, script

SETTINGS = {"ls": ["--json"], "list teachers": ["--json"], "encode": ["--teacher.path", "--root"]}
BASH, ZSH, FISH = (shutil.which(name) for name in ("bash", "zsh", "fish"))


def replies(*words: str) -> list[str]:
    assert BASH is not None
    line = " ".join(f"'{word}'" for word in ("dreamshard", *words))
    command = f"{script(SETTINGS, shell='bash')}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
    command += '_dreamshard; printf "%s\\n" "${COMPREPLY[@]}"'
    told = subprocess.run([BASH, "-c", command], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    return told.stdout.split()


CASES = pytest.mark.parametrize(
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


@pytest.mark.skipif(BASH is None, reason="needs bash")
@CASES
def test_bash_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert replies(*words) == expected


@pytest.mark.skipif(FISH is None, reason="needs fish")
@CASES
def test_fish_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert FISH is not None
    asked = f"{script(SETTINGS, shell='fish')}\ncomplete -C 'dreamshard {' '.join(words)}'"
    told = subprocess.run(
        [FISH, "--no-config", "-c", asked], capture_output=True, text=True, check=True
    )
    assert told.stderr == "" and told.stdout.split() == sorted(expected)


@pytest.mark.skipif(ZSH is None, reason="needs zsh")
def test_zsh_takes_the_script_without_a_configuration_of_its_own() -> None:
    assert ZSH is not None
    asked = f"{script(SETTINGS, shell='zsh')}\nprint -r -- $_comps[dreamshard]"
    told = subprocess.run([ZSH, "-f", "-c", asked], capture_output=True, text=True, check=True)
    assert told.stderr == "" and "_dreamshard" in told.stdout


@pytest.mark.parametrize(
    ("verb", "option"), [("ls", "--json"), ("encode", "--teacher.path"), ("plan", "--rate")]
)
def test_options_are_those_of_the_verb_s_help(verb: str, option: str) -> None:
    assert option in options_of(verb)
