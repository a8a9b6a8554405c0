from __future__ import annotations

from pathlib import Path

from dreamshard.permissions import apply_umask


def test_a_private_file_becomes_as_readable_as_an_opened_one(tmp_path: Path) -> None:
    opened, private = tmp_path / "opened", tmp_path / "private"
    opened.write_text("x")
    private.write_text("x")
    private.chmod(0o600)
    apply_umask(private)
    assert private.stat().st_mode == opened.stat().st_mode
