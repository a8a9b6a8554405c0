import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dreamshard
from dreamshard.console.cli import VERBS, load_verb, main, usage
from dreamshard.errors import ConfigError, run_main


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        assert capsys.readouterr().out == usage()
    assert all(f"  {verb} " in usage() for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dreamshard {dreamshard.__version__}\n"


def test_unknown_verb_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["enocde"]) == 2
    assert "Did you mean `dreamshard encode`?" in capsys.readouterr().err
    assert run_main(main, ["zzz"]) == 2
    assert "See `dreamshard --help`." in capsys.readouterr().err


def test_arguments_reach_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("dreamshard.console.doctor.main", lambda argv: seen.append(argv))
    assert run_main(main, ["doctor", "--json", "--root", "x"]) == 0
    assert seen == [["--json", "--root", "x"]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_main(verb: str) -> None:
    assert callable(load_verb(verb))


def test_load_verb_refuses_others() -> None:
    with pytest.raises(ConfigError):
        load_verb("__init__")


def test_module_entry(repo_root: Path) -> None:
    command = [sys.executable, "-m", "dreamshard", "incpect"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
    assert "Did you mean `dreamshard inspect`?" in result.stderr


ENDING = """
import atexit, signal, sys, time
from dreamshard.console.cli import entry
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def end():  # as Ray's own
    print("at its end", flush=True)
    for _ in range(600):  # a signal just before one long sleep would be heeded after it
        time.sleep(0.1)
atexit.register(end)
sys.argv = ["dreamshard", *sys.argv[1:]]
raise SystemExit(entry())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("nothing", 2)])
def test_a_stop_while_libraries_end_is_no_traceback(
    number: signal.Signals, word: str, code: int
) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", ENDING, word]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while "at its end" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in told and "ignored" not in told
