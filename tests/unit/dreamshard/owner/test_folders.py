"""A run folder has one owner: nobody else writes into it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dreamshard.errors import ConfigError
from dreamshard.owner.folders import OWNER, check_command
from dreamshard.runfolder import RunFolder


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = 1


@dataclass(kw_only=True)
class EncodeConfig:
    steps: int = 1


def start(path: Path, config: object = TrainConfig(), **given: Any) -> RunFolder:
    return RunFolder(path, config=config, command=["dreamshard", "x"], **given)


def test_the_same_run_comes_back(tmp_path: Path) -> None:
    start(tmp_path, of={"a": 1, "b": (1, 2)}).log(step=1)
    start(tmp_path, of={"b": [1, 2], "a": 1}).log(step=2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / OWNER).read_text()) == {
        "command": "train",
        "of": {"a": 1, "b": [1, 2]},
    }


def test_another_command_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    start(tmp_path).stats(steps=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, EncodeConfig())
    text = str(caught.value)
    assert "holds a run of `dreamshard train`" in text and f"{tmp_path.name}-2" in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_teacher_is_not_put_into_the_run_of_another_command(tmp_path: Path) -> None:
    check_command(tmp_path, "pretrain", key="out")
    start(tmp_path, of={"a": 1})
    check_command(tmp_path, "train", key="out")
    with pytest.raises(ConfigError, match="out: .*holds a run of `dreamshard train`"):
        check_command(tmp_path, "pretrain", key="out")


def test_another_run_of_the_same_command_is_refused_by_name(tmp_path: Path) -> None:
    start(tmp_path, of={"tasks": ["knn"], "student": "a", "seed": 0})
    (tmp_path.parent / f"{tmp_path.name}-2").mkdir()
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, of={"tasks": ["few_label"], "student": "a", "seed": 0})
    text = str(caught.value)
    assert 'tasks ["knn"] there, ["few_label"] asked for' in text and "student" not in text
    assert f"--run_dir {tmp_path}-3" in text


def test_where_a_digest_differs_the_settings_are_named(tmp_path: Path) -> None:
    start(tmp_path, TrainConfig(steps=400), of={"recipe": "0" * 64})
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, TrainConfig(steps=4000), of={"recipe": "1" * 64})
    assert "another run (steps 400 there, 4000 asked for)" in str(caught.value)
    with pytest.raises(ConfigError, match="recipe 0{64} there, 1{64} asked for"):  # other images
        start(tmp_path, TrainConfig(steps=400), of={"recipe": "1" * 64})
    (tmp_path / "config.resolved.yaml").write_text("steps: [")
    with pytest.raises(ConfigError, match="recipe 0{64} there, 1{64} asked for"):
        start(tmp_path, TrainConfig(steps=4000), of={"recipe": "1" * 64})


def test_one_that_is_replaced_leaves_no_figures(tmp_path: Path) -> None:
    first = start(tmp_path, of={"recipe": "a"})
    first.log(step=1)
    first.stats(steps=3)
    start(tmp_path, of={"recipe": "b"}, replace=True).log(step=9)
    assert '"step": 9' in (tmp_path / "metrics.jsonl").read_text()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "stats.json").exists()
    start(tmp_path, of={"recipe": "b"}, replace=True).log(step=10)  # itself: it goes on
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match="dreamshard train"):
        start(tmp_path, EncodeConfig(), replace=True)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("dreamshard train --steps 3", "train"),
        ("/usr/bin/python3 /repo/distill/train.py --steps 3", "train"),
        ("dreamshard encode --name x/y.py", "encode"),
    ],
)
def test_a_folder_of_an_older_version(tmp_path: Path, line: str, command: str) -> None:
    (tmp_path / "command.txt").write_text(f"# 2026-01-01 00:00:00\n{line}\n")
    config, other = TrainConfig(), EncodeConfig()
    if command == "encode":
        config, other = other, config
    with pytest.raises(ConfigError, match=f"`dreamshard {command}`"):
        start(tmp_path, other)
    start(tmp_path, config, of={"any": 1})


def test_of_two_that_begin_at_once_one_is_first(tmp_path: Path) -> None:
    """Twenty threads with two identities: every folder belongs to one of them alone."""
    outcomes: list[str] = []
    barrier = threading.Barrier(20)

    def begin(number: int) -> None:
        barrier.wait()
        try:
            from dreamshard.owner.folders import claim

            claim(tmp_path, "train", {"recipe": number % 2}, replace=False)
            outcomes.append(str(number % 2))
        except ConfigError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 20 and len(set(outcomes) - {"refused"}) == 1
    assert outcomes.count("refused") == 10
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_a_record_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("[")
    with pytest.raises(ConfigError, match=r"owner\.json: got .*Remove it"):
        start(tmp_path)


def test_secrets_are_not_in_it(tmp_path: Path) -> None:
    of = {"dataset": "s3://u:S3CR3T@b/x", "hf_token": "S3CR3T"}
    start(tmp_path, of=of)
    start(tmp_path, of=of)
    assert "S3CR3T" not in (tmp_path / OWNER).read_text()


def test_a_full_disk_under_the_record_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dreamshard import runfolder

    record = start(tmp_path)
    record.log(step=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runfolder, "write_text", full)
    monkeypatch.setattr(Path, "open", full)
    record.log(step=2)
    record.stats(steps=2)
    record.finish("dreamshard inspect x")
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text
    monkeypatch.undo()
    record.stats(steps=3)
    assert json.loads((tmp_path / "stats.json").read_text()) == {"steps": 3}


def test_a_full_disk_at_the_start_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamshard import runfolder

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runfolder, "write_text", full)
    with pytest.raises(ConfigError, match="No space left on device.*make room"):
        start(tmp_path)


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_text_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from dreamshard import runfolder

    (tmp_path / "stats.json").write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runfolder.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runfolder.write_text(tmp_path / "stats.json", "x" * size)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]
    assert (tmp_path / "stats.json").read_text() == "before"


def test_a_claim_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def broken(path: Path, text: str, **how: Any) -> int:
        write(path, text[:3], **how)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(ConfigError, match="Input/output error"):
        start(tmp_path)
    assert not list(tmp_path.iterdir())
