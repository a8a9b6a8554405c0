"""One place that turns whatever a parser raises into our error, with the file's name."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from dreamshard.errors import DataError, DreamshardError


class UnreadableError(DataError, ValueError):
    """Report a file that is not what it should be; a ValueError to those who go on without it."""


class CannotReadError(DataError):
    """Report a file that the system would not give: missing, forbidden, a failing disk, no memory.

    It says nothing of what the file holds, and is never taken for damage.
    """


MAX_REASON = 160
_OF_WHAT_IT_HOLDS = (None, errno.EINVAL, errno.EOVERFLOW)
"""Of an OSError that tells of the file: pyarrow gives no number, and a place that a file names may
be none that can be sought."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@contextmanager
def reading(
    where: str, what: str, *, error: type[DreamshardError] = UnreadableError, hint: str = ""
) -> Iterator[None]:
    """Raise `error` for whatever goes wrong inside.

    Args:
        where: the file.
        what: it should be, such as "JSON".
        error: class to raise.
        hint: what to do next, a full sentence.
    """
    try:
        yield
    except DreamshardError:
        raise
    except Exception as failed:
        if isinstance(failed, OSError) and failed.errno not in _OF_WHAT_IT_HOLDS:
            kind = CannotReadError if error is UnreadableError else error
            raise kind(
                f"{where}: cannot be read ({failed.strerror or reason(failed)})."
            ) from failed
        if isinstance(failed, MemoryError) and error is UnreadableError:
            raise CannotReadError(f"{where}: cannot be read (out of memory).") from failed
        raise _worded(where, what, failed, error=error, hint=hint) from failed


def _worded(
    where: str, what: str, failed: Exception, *, error: type[DreamshardError], hint: str
) -> DreamshardError:
    """Word what a parser raised.

    That depends on the byte that is wrong: Overflow-, Recursion-, Attribute-, Key-, UnicodeErrors,
    and those of its own.
    """
    text = f"{where}: not readable as {what} ({reason(failed)})."
    return error(f"{text} {hint}" if hint else text)


def reason(error: BaseException) -> str:
    """Return an error's first line, short and printable; its class where it has no words."""
    text = _CONTROL.sub(" ", str(error)).strip()
    return text[:MAX_REASON] or type(error).__name__
