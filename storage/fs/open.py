"""The one door to files, local or remote: a path or URL in, its operations out."""

from __future__ import annotations

import os
from pathlib import Path

from dreamshard.errors import DataError
from dreamshard.owner.urls import mended_url
from storage.fs.local import Files, LocalFiles
from storage.fs.remote import RemoteFiles


def open_files(url: str | Path) -> Files:
    """Return the files of a dataset folder or root, given by path or URL.

    Args:
        url: a path, `file://...`, or a folder of an object store such as `s3://bucket/folder`.

    Raises:
        DataError: for a URL of a kind that is not supported, or with one slash too few.
    """
    text = os.fspath(url)
    scheme, mark, rest = text.partition("://")
    if meant := mended_url(text):
        raise DataError(f"{text}: got one slash, allowed a path or URL. Did you mean {meant}?")
    if not mark:
        return LocalFiles(os.path.expanduser(text))
    if scheme in ("file", "local"):
        return LocalFiles("/" + rest.lstrip("/"))
    return RemoteFiles(text)
