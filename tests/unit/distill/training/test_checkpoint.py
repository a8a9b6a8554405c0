"""A training run goes on only as itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distill.training.checkpoint import check_same_run, resume_point
from distill.training.state import TrainState
from dreamshard.config import flatten
from dreamshard.errors import ConfigError, DataError
from dreamshard.runfolder import trim_metrics
from pipeline.learning.checkpoint import save_checkpoint

FRESH = TrainState(config={"seed": 0, "optimizer": {"lr": 0.1}, "keep": 2}, content_key="a")


def save(run_dir: Path, *steps: int) -> None:
    for step in steps:
        state = replace(FRESH, step=step, position=8 * step)
        save_checkpoint(run_dir, {}, state=asdict(state), keep=9)


def test_a_run_begins_at_the_start_or_goes_on_at_its_last_checkpoint(tmp_path: Path) -> None:
    assert resume_point(tmp_path, fresh=FRESH) == (FRESH, None)
    save(tmp_path, 2, 4)
    state, last = resume_point(tmp_path, fresh=FRESH)
    assert (state.step, state.position) == (4, 32)
    assert last is not None and last.name == "checkpoint-000004"


def test_the_snapshot_of_the_first_start_is_kept(tmp_path: Path) -> None:
    began = replace(FRESH, step=2, snapshot="64-1-abc")
    save_checkpoint(tmp_path, {}, state=asdict(began), keep=1)
    state, _ = resume_point(tmp_path, fresh=replace(FRESH, snapshot="96-2-def"))
    assert state.snapshot == "64-1-abc"


def test_other_settings_are_named_with_two_ways_out(tmp_path: Path) -> None:
    save(tmp_path, 2)
    changed = replace(FRESH, config={"seed": 1, "optimizer": {"lr": 0.2}, "keep": 2})
    with pytest.raises(ConfigError) as caught:
        resume_point(tmp_path, fresh=changed)
    text = str(caught.value)
    assert "optimizer.lr: 0.1 there, 0.2 asked for" in text
    assert "seed: 0 there, 1 asked for" in text
    assert "--run_dir" in text and "--restart true" in text


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    save(tmp_path, 2)
    state, _ = resume_point(tmp_path, fresh=replace(FRESH, config=FRESH.config | {"keep": 7}))
    assert state.step == 2 and state.config["keep"] == 7


def test_a_setting_that_is_newer_than_the_run_had_its_default(tmp_path: Path) -> None:
    save(tmp_path, 1)
    known = replace(FRESH, config={**FRESH.config, "accumulate": 1})
    assert resume_point(tmp_path, fresh=known)[0].step == 1
    other = replace(FRESH, config={**FRESH.config, "batch_size": 7})
    with pytest.raises(ConfigError, match="batch_size: 256 there, 7 asked for"):
        resume_point(tmp_path, fresh=other)


def test_another_dataset_is_another_run(tmp_path: Path) -> None:
    save(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        resume_point(tmp_path, fresh=replace(FRESH, content_key="b"))


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4', encoding="utf-8")
    trim_metrics(path, step=20)
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == [10, 20]
    trim_metrics(tmp_path / "absent.jsonl", step=0)


def test_a_state_of_other_fields_is_damage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {}, state={"step": 2, "colour": "red"}, keep=1)
    with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
        resume_point(tmp_path, fresh=FRESH)


def test_settings_are_flattened_to_dotted_keys() -> None:
    settings = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert flatten(settings) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_a_state_holds_no_secrets_and_is_still_that_of_its_run(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from distill.training.state import first_state

    recipe = SimpleNamespace(content_key="a", layout_key="b")
    source = SimpleNamespace(recipe=recipe, url="s3://u:S3CR3T@b/x", version="1")
    settings = {"data": {"dataset": source.url, "stream": {"teacher": {"hf_token": "S3CR3T"}}}}
    state = first_state(
        cast(Any, settings),
        training_set=cast(Any, SimpleNamespace(source=source, real=None)),
        processes=1,
    )
    assert "S3CR3T" not in json.dumps(vars(state)) and settings["data"]["dataset"] == source.url
    again = replace(state, config=settings)  # as an older version kept it
    check_same_run(again, now=state, run_dir=tmp_path)
