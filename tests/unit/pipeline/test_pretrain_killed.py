"""Pretraining that is killed at its end, when weights and card are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamshard.errors import ConfigError
from pipeline import pretrain as script
from pipeline.learning.pretraining import state
from tests.unit.pipeline.pretraining_runs import tiny, weights_of


class Killed(BaseException):
    """Stand for SIGKILL: nothing that follows is done."""


AT_THE_END = [
    *(state.WEIGHTS, "config.json", "scheduler_config.json", "stats.json", "README.txt"),
    state.CARD,
]


@pytest.mark.parametrize("apart", [False, True], ids=["run inside", "run elsewhere"])
@pytest.mark.parametrize(
    "at",
    [state.WEIGHTS, "config.json", "scheduler_config.json", "stats.json", "README.txt", state.CARD],
)
def test_killed_at_its_end_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, apart: bool
) -> None:
    given = {"run_dir": str(tmp_path / "run")} if apart else {}
    script.pretrain(tiny(tmp_path / "whole"))
    original = Path.replace

    def killed(self: Path, target: Path) -> Path:
        done = original(self, target)
        if Path(target).name == at:
            raise Killed
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            script.pretrain(tiny(tmp_path / "t", **given))
    (tmp_path / "t" / ".config.json.999999999.partial").write_text("half")
    script.pretrain(tiny(tmp_path / "t", **given))
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "t")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    names = {path.name for path in (tmp_path / "t").iterdir()} - {"run"}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()} - {"run"}
    run = tmp_path / ("run" if apart else "t/run")
    assert {p.name for p in run.iterdir()} == {p.name for p in (tmp_path / "whole/run").iterdir()}


def test_killed_at_the_end_of_an_extension_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "t"):
        script.pretrain(tiny(tmp_path / name))
    script.pretrain(tiny(tmp_path / "whole", steps=6))
    with monkeypatch.context() as patched:
        patched.setattr(state, "save_card", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            script.pretrain(tiny(tmp_path / "t", steps=6))
    script.pretrain(tiny(tmp_path / "t", steps=6))
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "t")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "t" / state.BEGUN).exists()


def test_weights_that_nobody_knows_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / state.WEIGHTS).write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="weights without a card"):
        script.pretrain(tiny(tmp_path / "t"))
    (tmp_path / "t" / state.BEGUN).write_text('{"recipe_key": "another"}')
    with pytest.raises(ConfigError, match="weights without a card"):
        script.pretrain(tiny(tmp_path / "t"))
    assert (tmp_path / "t" / state.WEIGHTS).read_bytes() == b"somebody's"
