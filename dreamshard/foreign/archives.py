"""Headers of tar archives."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dreamshard.errors import DreamshardError
from dreamshard.foreign.guard import UnreadableError, reading


@contextmanager
def open_tar(
    file: Any, *, where: str, error: type[DreamshardError] = UnreadableError
) -> Iterator[tarfile.TarFile]:
    """Open an archive that is not packed, to look at its headers.

    Args:
        file: a file object.
        where: the file, for messages.
        error: class to raise.
    """
    with reading(where, "a tar archive", error=error), tarfile.open(fileobj=file, mode="r:") as tar:
        yield tar
