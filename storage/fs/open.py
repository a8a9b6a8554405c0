"""The one door to files, local or remote: a path or URL in, its operations out."""

from __future__ import annotations

import os
from pathlib import Path

from storage.fs.local import Files, LocalFiles
from storage.fs.remote import RemoteFiles


def open_files(url: str | Path) -> Files:
    """Return the files of a dataset folder or root, given by path or URL.

    Args:
        url: a path, `file://...`, or a folder of an object store such as `s3://bucket/folder`.

    Raises:
        DataError: for a URL of a kind that is not supported.
    """
    text = os.fspath(url)
    scheme, mark, rest = text.partition("://")
    if not mark:
        return LocalFiles(os.path.expanduser(text))
    if scheme in ("file", "local"):
        return LocalFiles("/" + rest.lstrip("/"))
    return RemoteFiles(text)
