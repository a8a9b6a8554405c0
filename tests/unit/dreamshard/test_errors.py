import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

import pytest

from dreamshard.errors import (
    OF_THE_MACHINE,
    ConfigError,
    DataError,
    DreamshardError,
    Problem,
    TeacherError,
    run_main,
)

TIMESTEP = Problem("teacher.timestep", "1200", "0..999", "Try --teacher.timestep 50.")


def test_a_problem_says_what_got_allowed_and_next() -> None:
    text = "teacher.timestep: got 1200, allowed 0..999. Try --teacher.timestep 50."
    assert str(TIMESTEP) == text
    assert str(Problem("a", "1", "2")) == "a: got 1, allowed 2."


def test_config_error_lists_all_problems_with_a_count() -> None:
    assert str(ConfigError(TIMESTEP)) == str(TIMESTEP)
    error = ConfigError([TIMESTEP, "There is no teacher."])
    lines = str(error).splitlines()
    assert lines[0] == "2 problems in the configuration:"
    assert lines[1] == f"  1. {TIMESTEP}"
    assert lines[2] == "  2. There is no teacher."
    assert error.problems == (TIMESTEP, "There is no teacher.")


def test_errors_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(ConfigError([TIMESTEP])))
    assert copy.problems == (TIMESTEP,) and str(copy) == str(TIMESTEP)
    assert str(pickle.loads(pickle.dumps(DataError("gone")))) == "gone"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DreamshardError("x"), 1),
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (TeacherError("x"), 4),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise error

    assert run_main(main, []) == code
    plain = capsys.readouterr()
    assert "Traceback" not in plain.err and not plain.out
    assert run_main(main, ["--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_success_and_unexpected_errors() -> None:
    assert run_main(lambda argv: None, []) == 0
    assert run_main(lambda argv: 5, []) == 5
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: 1 // 0, [])

    def broken_import(argv: Sequence[str]) -> int:
        raise ModuleNotFoundError("No module named 'pipelines'", name="pipelines")

    with pytest.raises(ModuleNotFoundError):
        run_main(broken_import, [])


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe")
def test_a_closed_pipe_is_no_error() -> None:
    code = """
import sys
from dreamshard.errors import run_main
def main(argv):
    while True:
        print("x" * 1000, flush=True)
sys.exit(run_main(main, []))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("number", sorted(OF_THE_MACHINE))
def test_what_the_machine_refuses_is_a_sentence(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> int:
        raise OSError(number, os.strerror(number), "runs/x/results.json")

    assert run_main(main, []) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: runs/x/results.json: {os.strerror(number)}. ")


def test_other_errors_of_the_system_are_ours_to_mend() -> None:
    def main(_: object) -> int:
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        run_main(main, [])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 4 GiB for an array"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nframe #0"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError("libllvmlite.so: cannot allocate memory in static TLS block"),
    ],
    ids=repr,
)
def test_too_little_memory_is_a_sentence(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> int:
        raise error

    assert run_main(main, []) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("goes on.\n")


@pytest.mark.parametrize("error", [RuntimeError("x"), ImportError("y"), ValueError("z")], ids=repr)
def test_faults_of_ours_keep_their_traceback(error: Exception) -> None:
    def main(_: object) -> int:
        raise error

    with pytest.raises(type(error)):
        run_main(main, [])
