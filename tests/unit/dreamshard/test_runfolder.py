import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from dreamshard.errors import ConfigError, DataError
from dreamshard.redact import REDACTED
from dreamshard.runfolder import RunFolder, environment, trim_metrics


@dataclass(kw_only=True)
class RunConfig:
    steps: int = 600
    hub_token: str = "abc"
    size: tuple[int, int] = (16, 16)


def _folder(path: Path) -> RunFolder:
    return RunFolder(path, config=RunConfig(), command=["dreamshard", "train", "--api_key", "xyz"])


def test_a_run_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("UNRELATED", "private")
    run = _folder(tmp_path / "runs" / "first")
    config = yaml.safe_load((run.path / "config.resolved.yaml").read_text())
    assert config == {"steps": 600, "hub_token": REDACTED, "size": [16, 16]}
    assert f"dreamshard train --api_key '{REDACTED}'" in (run.path / "command.txt").read_text()
    record = json.loads((run.path / "environment.json").read_text())
    assert record["packages"]["numpy"] == np.__version__
    assert "HF_TOKEN" not in record["variables"], "names are an allow-list"
    assert record["variables"]["RAY_AUTH_MODE"] == "token"
    assert "UNRELATED" not in record["variables"]
    written = "".join(path.read_text() for path in run.path.iterdir())
    assert "hush" not in written and "xyz" not in written


def test_metrics_are_strict_json_lines(tmp_path: Path) -> None:
    run = _folder(tmp_path)
    run.log(step=1, loss=np.float64(0.5))
    run.log(step=np.int64(2).item(), loss=float("nan"), note="late")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 1.7e9 for line in lines] == [True, True]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan", "note": "late"}]


def test_stats_merge(tmp_path: Path) -> None:
    run = _folder(tmp_path)
    run.stats(images=10, seconds=np.float64(2.5), levels={"s4": np.int32(3)})
    run.stats(images=20)
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats == {"images": 20, "seconds": 2.5, "levels": {"s4": 3}}


def test_finish_names_the_next_command_and_every_file(tmp_path: Path) -> None:
    run = _folder(tmp_path)
    run.log(step=1)
    run.finish("dreamshard evaluate --config recipes/digits/evaluate.yaml")
    run.finish("dreamshard report")
    text = (tmp_path / "README.txt").read_text()
    assert text.startswith("Next:\n  dreamshard report\n")
    for name in ("command.txt", "config.resolved.yaml", "environment.json", "metrics.jsonl"):
        assert f"\n{name} " in text
    assert "README.txt" not in text and ".partial" not in "".join(map(str, tmp_path.iterdir()))


def test_a_rerun_keeps_the_history(tmp_path: Path) -> None:
    _folder(tmp_path).log(step=1)
    _folder(tmp_path).log(step=2)
    assert (tmp_path / "command.txt").read_text().count("dreamshard train") == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="Choose another folder"):
        _folder(tmp_path / "file" / "run")


def test_environment_is_json() -> None:
    assert json.loads(json.dumps(environment()))["cpus"] >= 1


def test_nothing_is_written_through_a_link_and_no_pipe_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = _folder(tmp_path / "run")
    metrics = run.path / "metrics.jsonl"
    metrics.symlink_to(outside)
    run.log(step=1)
    assert outside.read_text() == "mine" and "cannot be written" in caplog.text
    metrics.unlink()
    os.mkfifo(metrics)
    run.log(step=1)
    with pytest.raises(DataError, match="no regular file"):
        trim_metrics(metrics, step=1)
    metrics.unlink()
    metrics.write_bytes(b'{"step": 1}\n\xff\n[1]\n{"step": 3}\n')
    trim_metrics(metrics, step=2)
    assert metrics.read_text() == '{"step": 1}\n'
