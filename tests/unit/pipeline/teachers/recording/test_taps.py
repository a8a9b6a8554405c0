"""Taps: what is recorded, in which shape, and how much of a network runs for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.teachers.recording.taps import Recorder, Tap, costs, stride_aliases, table


class Network(nn.Module):
    """Three layers, the middle one with two outputs; counts how often each runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.pair = Pair()
        self.ran: list[str] = []
        for name, part in self.named_children():
            part.register_forward_hook(lambda *_, name=name: self.ran.append(name))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pair(self.first(x))[1])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


def test_shapes_follow_the_image_or_the_grid() -> None:
    taps = [Tap("map", "m", 8, 4), Tap("tokens", "t", 6, 16, grid=(2, 3))]
    found = {name: each[:2] for name, each in table(taps, (32, 48)).items()}
    assert found == {"map": ((8, 8, 12), 4), "tokens": ((6, 2, 3), 16)}


def test_the_last_of_a_stride_has_the_alias() -> None:
    taps = [Tap("a", "a", 1, 8), Tap("b", "b", 1, 8), Tap("c", "c", 1, 2), Tap("odd", "o", 1, 7)]
    assert stride_aliases(taps) == {"s2": "c", "s8": "b"}


def test_tokens_are_folded_row_by_row_after_the_text() -> None:
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    folded = Tap("t", "t", 3, 8, item=1, grid=(2, 2)).to_map((None, tokens))
    assert folded.shape == (2, 3, 2, 2)
    assert torch.equal(folded[1, :, 1, 0], tokens[1, 3 + 2])
    assert torch.equal(folded[0, :, 0, 1], tokens[0, 3 + 1])


def test_a_pass_ends_with_the_last_tap() -> None:
    network, x = Network(), torch.randn(2, 3, 4, 4)
    recorder = Recorder(network, [Tap("p", "pair", 4, 1, item=1), Tap("f", "first", 4, 1)])
    maps, output = recorder.run(lambda: network(x))
    assert output is None and network.ran == ["first", "pair"]
    first = network.first(x)
    assert torch.equal(maps["f"], first) and torch.equal(maps["p"], first * 2)


def test_a_whole_pass_gives_the_output_too() -> None:
    network, x = Network(), torch.randn(2, 3, 4, 4)
    recorder = Recorder(network, [Tap("f", "first", 4, 1)])
    maps, output = recorder.run(lambda: network(x), stop=False)
    assert output is not None and torch.equal(output, network(x)) and list(maps) == ["f"]


def test_outside_of_a_run_nothing_is_recorded_or_cut_short() -> None:
    network, x = Network(), torch.randn(1, 3, 2, 2)
    recorder = Recorder(network, [Tap("f", "first", 4, 1)])
    maps, _ = recorder.run(lambda: network(x))
    assert network(x * 3).shape == (1, 5, 2, 2)
    assert torch.equal(maps["f"], network.first(x))
    with pytest.raises(RuntimeError):
        recorder.run(lambda: network(torch.randn(1, 2, 2, 2)))
    assert network(x).shape == (1, 5, 2, 2), "after a pass that failed as well"
    recorder.close()
    assert recorder.run(lambda: network(x))[0] == {}


def test_costs_are_those_up_to_the_tap() -> None:
    network = Network()
    taps = [Tap("f", "first", 4, 1), Tap("l", "last", 5, 1)]
    found = costs(lambda: network(torch.randn(1, 3, 2, 2)), network, taps)
    first = 2 * 3 * 4 * 4
    assert found == {"f": first, "l": first + 2 * 4 * 5 * 4, "output": first + 2 * 4 * 5 * 4}
    network.ran.clear()
    network(torch.randn(1, 3, 2, 2))
    assert network.ran == ["first", "pair", "last"], "no hook is left"
