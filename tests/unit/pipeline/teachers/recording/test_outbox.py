"""Levels reach the host whole, whatever the order in which a device runs its streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import DataError
from pipeline.teachers.door import open_teacher
from pipeline.teachers.recording.outbox import Outbox, as_recorded
from storage.schema import Level
from tests.late_device import LateDevice
from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import Reference

SHAPE = (2, 3, 4, 4)


def level(pool: str = "none") -> Level:
    shape = SHAPE[1:2] if pool == "gap" else SHAPE[1:]
    return Level(
        name="up.1", kind="feature", tap="up.1", timestep=-1, draw=0, pool=pool, stride=1,
        shape=shape, dtype="float16",
    )  # fmt: skip


def test_maps_are_pooled_in_float32_and_kept_as_float16() -> None:
    maps = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    whole = as_recorded(maps, level())
    assert whole.dtype == torch.float16 and whole.is_contiguous()
    assert torch.equal(whole, maps.half())
    large = torch.full((1, 3, 64, 64), 30.0, dtype=torch.float16)  # their sum is beyond float16
    pooled = as_recorded(large, level("gap"))
    assert pooled.shape == (1, 3) and pooled.unique().tolist() == [30.0]


def test_the_first_level_that_is_not_finite_is_named() -> None:
    outbox = Outbox(torch.device("cpu"))
    fine, broken = torch.ones(SHAPE).half(), torch.ones(SHAPE).half()
    outbox["fine"] = fine
    assert np.array_equal(outbox.collect()["fine"], fine.numpy())
    for value in (float("nan"), float("inf")):
        broken[1, 2, 3, 3] = value
        outbox["broken"], outbox["worse"] = broken, broken * 2
        with pytest.raises(DataError, match=r"^level broken: .*65504"):
            outbox.collect()


def test_a_late_copy_has_the_values_of_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice(monkeypatch)
    outbox = Outbox(torch.device("cuda"))
    values = {name: torch.randn(SHAPE).half() for name in ("a", "b", "c")}
    for name, value in values.items():
        sent = device.computed(value)
        outbox[name] = sent
        device.free(sent)
    found = outbox.collect()
    assert list(found) == list(values)
    for name, value in values.items():
        assert np.array_equal(found[name], value.numpy()), name
    assert not device.blocking and not device.pageable


def test_an_early_copy_waits_for_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice(monkeypatch)
    outbox = Outbox(torch.device("cuda"))
    value = torch.randn(SHAPE).half()
    outbox["a"] = device.computed(value)
    side: Any = outbox._stream
    side.synchronize()  # the earliest that a device may run it: before anything was computed
    assert np.array_equal(outbox.collect()["a"], value.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_copies_overlap_and_are_whole_on_a_gpu() -> None:
    kind: Any = {"device": torch.device("cuda"), "dtype": torch.float16}
    for _ in range(2):  # the second round finds host memory pinned already, so nothing waits
        outbox = Outbox(kind["device"])
        for number in range(8):
            torch.cuda._sleep(20_000_000)  # the level is computed long after it is sent
            value = torch.full((16, 64, 64, 64), float(number), **kind)
            outbox[f"l{number}"] = value
            del value  # and its memory asked for again while it is copied
            torch.full((16, 64, 64, 64), -1.0, **kind)
        values = [np.unique(array).tolist() for array in outbox.collect().values()]
        assert values == [[float(number)] for number in range(8)]


def test_what_is_asked_for_pooled_leaves_the_device_pooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a generator, whose maps are the larger the finer they are."""
    path = Reference(side=8).write(tmp_path / "n.pkl")
    teacher = open_teacher(path, kind="stylegan2", levels=["b4", "b8"], pool="gap")
    sent: dict[str, torch.Size] = {}
    original = Outbox.__setitem__

    def noted(self: Outbox, name: str, value: torch.Tensor) -> None:
        sent[name] = value.shape[1:]
        original(self, name, value)

    monkeypatch.setattr(Outbox, "__setitem__", noted)
    batch = teacher.synthesize(np.arange(2))
    assert sent == {"b4.gap": (7,), "b8.gap": (8,)}
    assert {name: values.shape for name, values in batch.levels.items()} == {
        name: (2, *shape) for name, shape in sent.items()
    }
