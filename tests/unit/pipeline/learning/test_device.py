"""Where networks run."""

from __future__ import annotations

import pytest
import torch

from dreamshard.errors import ConfigError
from pipeline.learning.device import choose_device


@pytest.mark.parametrize(
    ("visible", "chosen"), [(True, ["cuda", "cpu", "cuda"]), (False, ["cpu", "cpu"])]
)
def test_a_gpu_is_taken_where_there_is_one(
    visible: bool, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    names = ["auto", "cpu", "cuda"][: len(chosen)]
    assert [choose_device(name) for name in names] == chosen
    if not visible:
        with pytest.raises(ConfigError, match=r"device: got 'cuda'.*--device auto"):
            choose_device("cuda")
