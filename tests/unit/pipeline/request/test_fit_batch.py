from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.errors import TeacherError
from pipeline.cluster.worker import is_out_of_memory
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request import fit_batch
from pipeline.request.config import EncodeConfig
from pipeline.request.fit_batch import choose, settle_micro_batch, try_sizes
from pipeline.request.resolve import resolve
from pipeline.request.trial import Trial
from pipeline.teachers.base import TeacherConfig
from storage.schema import Pins

PINS = Pins(micro_batch=1, compute_dtype="float32", device="cpu", threads=1)


def test_it_doubles_while_it_pays() -> None:
    tried: list[int] = []

    def attempt(size: int) -> Trial:
        tried.append(size)
        return Trial(rate=min(size, 12), memory=0.001 * size)

    assert choose(attempt) == 16 and tried == [1, 2, 4, 8, 16, 32]


def test_it_stops_where_memory_ends() -> None:
    assert choose(lambda size: Trial(size, 0.0) if size <= 4 else None) == 4
    tried: list[int] = []
    choose(lambda size: (tried.append(size), Trial(size, size / 10))[1])
    assert tried == [1, 2, 4, 8]  # the next would take 1.6 of the memory
    with pytest.raises(TeacherError, match="not even one image"):
        choose(lambda size: None)


def test_a_real_teacher_is_tried_until_memory_is_out(
    unet_teacher: TeacherConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fit_batch.try_out
    monkeypatch.setattr(fit_batch, "GAIN", 0.0)

    def limited(asked, image_size, pins, *, num_gpus):  # type: ignore[no-untyped-def]
        if pins.micro_batch > 4:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        return original(asked, image_size, pins, num_gpus=num_gpus)

    monkeypatch.setattr(fit_batch, "try_out", limited)
    asked = EncodeConfig(teacher=unet_teacher).request()
    assert try_sizes(asked, (16, 16), PINS, 0.0) == 4
    monkeypatch.setattr(
        fit_batch, "try_out", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("other"))
    )
    with pytest.raises(RuntimeError, match="other"):
        try_sizes(asked, (16, 16), PINS, 0.0)


def test_a_begun_dataset_keeps_its_own(tmp_path: Path) -> None:
    config = EncodeConfig(
        root=str(tmp_path), micro_batch=0, image=ImageConfig(size=16), samples=8,
        source=SourceConfig(kind="digits"),
        teacher=TeacherConfig(kind="noise", levels=["s4"]),
    )  # fmt: skip
    request = resolve(config.request())
    begun = Pins(micro_batch=24, compute_dtype="float32", device="cpu", threads=1)
    size = config.actor_size()
    settled = settle_micro_batch(request, begun, ray_config=config.ray, size=size)
    assert settled.pins.micro_batch == 24 and settled.pins != request.pins


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.fixture
def unet_teacher(tmp_path: Path) -> TeacherConfig:
    from diffusers import UNet2DModel

    from tests.unit.pipeline.teachers.conftest import UNET

    UNet2DModel(**UNET).save_pretrained(tmp_path / "unet")  # type: ignore[arg-type]
    return TeacherConfig(path=str(tmp_path / "unet"), levels=["s2"], timesteps=[5])
