"""Which run folder encode writes into, and that nothing is made where nothing can be written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamshard.errors import ConfigError, Problem
from dreamshard.runfolder import RunFolder
from pipeline.offline.folder import own_folder, whose
from pipeline.request.config import EncodeConfig, SynthesizeConfig
from pipeline.request.resolve import ResolvedRequest


def request(folder: str, unwritable: ConfigError | None = None) -> ResolvedRequest:
    fake = SimpleNamespace(recipe=SimpleNamespace(folder=folder), unwritable=unwritable)
    fake.check_writable = lambda: ResolvedRequest.check_writable(cast(Any, fake))
    return cast(ResolvedRequest, fake)


def choose(config: Any, folder: str, **given: Any) -> str:
    return own_folder(config, request(folder), given.pop("existing", None), **given).run_dir


def test_a_name_that_is_taken_makes_room_for_the_datasets(tmp_path: Path) -> None:
    config = EncodeConfig(run_dir=str(tmp_path / "x"), name="x")
    assert choose(config, "x-aa-bb", named=False) == str(tmp_path / "x")
    RunFolder(tmp_path / "x", config=config, command=["c"], of=whose("data/x-aa-bb"))
    assert choose(config, "x-aa-bb", named=False) == str(tmp_path / "x"), "the same run"
    assert choose(config, "x-cc-dd", named=False) == str(tmp_path / "x-cc-dd")
    other = SynthesizeConfig(run_dir=str(tmp_path / "x"), name="x")
    assert choose(other, "x-ee-ff", named=False) == str(tmp_path / "x-ee-ff")


def test_a_folder_that_was_named_is_kept_or_refused(tmp_path: Path) -> None:
    config = EncodeConfig(run_dir=str(tmp_path / "x"), name="x")
    RunFolder(tmp_path / "x", config=config, command=["c"], of=whose("data/x-aa-bb"))
    assert choose(config, "x-aa-bb", named=True) == str(tmp_path / "x")
    with pytest.raises(ConfigError, match="dataset x-aa-bb there, x-cc-dd asked for"):
        choose(config, "x-cc-dd", named=True)


def test_a_dataset_that_is_added_to_is_the_run_it_was(tmp_path: Path) -> None:
    """The recipe asked for may have another key: the source grew, or it has fewer levels."""
    config = EncodeConfig(run_dir=str(tmp_path / "x"), name="x")
    RunFolder(tmp_path / "x", config=config, command=["c"], of=whose("s3://b/x-aa-bb/"))
    existing = SimpleNamespace(dataset=SimpleNamespace(url="s3://b/x-aa-bb"))
    assert choose(config, "x-cc-dd", named=True, existing=existing) == str(tmp_path / "x")


def test_a_root_that_cannot_be_written_comes_first(tmp_path: Path) -> None:
    why = ConfigError(Problem("root", "data (Read-only file system)", "a folder"))
    config = EncodeConfig(run_dir=str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="Read-only"):
        own_folder(config, request("x-aa-bb", why), None, named=True)
