"""One door to local and remote files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.fs.open import open_files


def test_urls(tmp_path: Path) -> None:
    assert open_files(f"file://{tmp_path}").url == str(tmp_path)
    assert open_files(tmp_path).url == str(tmp_path)
    assert open_files("memory://x/y").remote and not open_files(tmp_path).remote
    with pytest.raises(DataError, match=r"got a ftp:// URL, allowed .*s3://"):
        open_files("ftp://host/x")
