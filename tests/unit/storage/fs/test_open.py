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


@pytest.mark.parametrize("torn", ["s3:/bucket/x", "gs:/x", "file:/tmp/x", "https:/host/x"])
def test_a_url_of_one_slash_makes_no_folder_of_its_name(torn: str) -> None:
    with pytest.raises(DataError, match=rf"Did you mean {torn.replace(':/', '://')}\?"):
        open_files(torn)
    assert not open_files("C:/x").remote  # no protocol of ours
