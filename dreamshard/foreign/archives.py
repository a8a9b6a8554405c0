"""Headers of tar archives."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dreamshard.foreign.guard import UnreadableError, reading


@contextmanager
def open_tar(file: Any, *, where: str) -> Iterator[tarfile.TarFile]:
    """Open an archive that is not packed, to look at its headers.

    Args:
        file: a file object.
        where: the file, for messages.
    """
    with (
        reading(where, "a tar archive", error=UnreadableError),
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        yield tar
