"""Blocks are compiled one by one, and it is said which; `torch.compile` itself takes minutes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import cpp_builder, exc

from dreamshard.errors import ConfigError
from pipeline.teachers.recording.compiled import compile_blocks


class Attention(nn.Linear):
    pass


class ResnetBlock2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(3, 3)  # inside a block: compiled with it

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) + x


def network() -> nn.Sequential:
    return nn.Sequential(ResnetBlock2D(), nn.Linear(3, 3), ResnetBlock2D(), Attention(3, 3))


def test_each_block_is_said_once_when_it_is_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = []

    def noted(forward, *, dynamic):
        compiled.append(dynamic)
        return forward

    monkeypatch.setattr(torch, "compile", noted)
    whole, x = network(), torch.ones(2, 3)
    expected = whole(x)
    assert compile_blocks(whole) == 3 and compiled == [False] * 3
    assert not capsys.readouterr().err
    for _ in range(2):
        torch.testing.assert_close(whole(x), expected)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "compile: block 1 of 3, 0", "compile: block 2 of 3, 2", "compile: block 3 of 3, 3",
    ]  # fmt: skip
    assert "C++ compiler" in lines[0]


def test_a_cpu_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"teacher\.compile: got no C\+\+ compiler"):
        compile_blocks(network(), key="teacher.compile")
    assert compile_blocks(nn.Sequential(nn.Linear(2, 2))) == 0  # there is nothing to compile
