"""Where networks run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dreamshard.errors import ConfigError
from pipeline.learning.device import avoid_narrow_kernels, choose_device


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


@pytest.mark.parametrize(
    ("channels", "capability", "off"), [(4, "AVX2", True), (8, "AVX2", False), (4, "AVX512", False)]
)
def test_narrow_convolutions_are_kept_from_kernels_that_damage_memory(
    channels: int,
    capability: str,
    off: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with torch.backends.mkldnn.flags(enabled=True):
        avoided = avoid_narrow_kernels(nn.Conv2d(channels, 16, 1, stride=2), torch.device("cpu"))
        assert torch.backends.mkldnn.enabled is not off
    assert avoided is off
    assert ("4 channels" in capsys.readouterr().err) is off
