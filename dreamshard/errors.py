"""Say what went wrong, what was allowed and what to do next; map each kind to an exit code."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from dreamshard.foreign.shown import plain, plain_streams

INTERRUPTED = 130  # 128 + SIGINT, the shell's own convention
OPTIONAL_MODULES = frozenset(
    "PIL accelerate datasets diffusers gcsfs huggingface_hub jinja2 matplotlib pycocotools ray "
    "s3fs safetensors segmentation_models_pytorch sklearn timm torch torchmetrics torchvision "
    "transformers webdataset".split()
)
"""Modules that only some commands need; the base installation goes without them."""

OF_THE_MACHINE = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENODEV),
    )
)
"""What a disk, a quota, permissions or limits refuse: the user's to mend, not a fault of ours."""
GOES_ON = "What was finished stays; mend that, and the same command goes on."
_TOO_LITTLE = re.compile(
    "failed to map segment|(cannot|can't|unable to) allocate|can't start new thread", re.IGNORECASE
)
"""What is said by whoever is given no memory or threads: Python, the loader, numpy, torch."""


@dataclass(frozen=True)
class Problem:
    """Describe one thing that is wrong with a value the user gave.

    Args:
        key: dotted key of the setting, or the path of the file.
        got: what was found there.
        allowed: what would have been accepted.
        hint: a full sentence that says what to do next.
    """

    key: str
    got: str
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: got {self.got}, allowed {self.allowed}."
        return f"{text} {self.hint}" if self.hint else text

    def under(self, prefix: str) -> Self:
        """Return the same problem with its keys below another."""
        return dataclasses.replace(self, key=f"{prefix}.{self.key}")


class DreamshardError(Exception):
    """Report a failure that the user can act on; shown without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return plain(super().__str__())


class ConfigError(DreamshardError):
    """Report everything that is wrong with a configuration, in one go.

    Args:
        problems: one problem or several; plain strings are taken as full sentences.
    """

    exit_code = 2

    def __init__(self, problems: Problem | str | Sequence[Problem | str]) -> None:
        if isinstance(problems, (Problem, str)):
            problems = (problems,)
        self.problems: tuple[Problem | str, ...] = tuple(problems)
        super().__init__(self.problems)  # keeps the error picklable across Ray

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return plain(str(self.problems[0]))
        lines = [f"{len(self.problems)} problems in the configuration:"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1)]
        return plain("\n".join(lines))

    def under(self, prefix: str) -> ConfigError:
        """Return the same problems with their keys below another; "" leaves them as they are."""
        if not prefix:
            return self
        return ConfigError(
            [
                f"{prefix}: {problem}" if isinstance(problem, str) else problem.under(prefix)
                for problem in self.problems
            ]
        )


class DataError(DreamshardError):
    """Report data that is missing, damaged, or not what its manifest says."""

    exit_code = 3


class TeacherError(DreamshardError):
    """Report a teacher that cannot be loaded or cannot do what is asked of it."""

    exit_code = 4


class Interrupted(DreamshardError):
    """Report a run that was asked to stop and kept what it had; say how it goes on."""

    exit_code = INTERRUPTED


POLICY = "OMP_WAIT_POLICY"
"""OpenMP's own variable; its libraries read it when they are loaded, GNU's and Intel's alike."""


def wait_asleep() -> None:
    """Let OpenMP's threads sleep where they wait for each other, unless the user said otherwise.

    They spin by default: on a machine with other work they burn the CPU that the thread waited for
    needs, at every operation of a network. Call it before torch is loaded; later it does nothing.
    """
    os.environ.setdefault(POLICY, "passive")


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Run a script's main and turn its errors into exit codes.

    Args:
        main: takes the arguments, returns an exit code or None for success.
        argv: arguments without the program's name; `--debug` shows tracebacks.

    Returns:
        0 on success, else the error's exit code (1 other, 2 configuration, 3 data, 4 teacher,
        130 interrupted). Errors that are not the user's keep their traceback: they are raised.
    """
    wait_asleep()
    try:
        with plain_streams():  # whatever a file holds, the terminal shows it
            return main(argv) or 0
    except Interrupted as error:
        return _fail(f"interrupted: {error}", INTERRUPTED, argv)
    except DreamshardError as error:
        return _fail(f"error: {error}", error.exit_code, argv)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL_MODULES:
            raise
        hint = "Install what this command needs: pip install 'dreamshard[all]'."
        return _fail(f"error: the package {error.name} is not installed. {hint}", 1, argv)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, argv)
    except BrokenPipeError:
        # The reader of our output is gone (`dreamshard ls | head`): not an error. Point stdout
        # elsewhere, or the interpreter complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        told = _refused(error)
        if told is None:
            raise
        return _fail(f"error: {told} {GOES_ON}", DataError.exit_code, argv)


def _refused(error: Exception) -> str | None:
    """Say what the machine would not give; None for an error that is none of the machine's."""
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if isinstance(error, MemoryError) or _TOO_LITTLE.search(str(error)):
        told = (str(error).splitlines() or ["out of memory"])[0][:160]
        hint = "Give this process more (ulimit -v, ulimit -u), or end others."
        return f"too little memory or threads: {told}. {hint}"
    return None


def _fail(text: str, exit_code: int, argv: Sequence[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(text, file=sys.stderr)
    return exit_code
