"""What reaches the teacher: padded micro-batches, invalid rows named, storage errors retried."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamshard.foreign.guard import CannotReadError
from pipeline.images import reading
from pipeline.images.inputs import ImageInput, LatentInput, Work
from pipeline.images.reading import read_retrying
from pipeline.images.source import ImageConfig, Record
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.schema import Pins


class ListSource:
    """Images in memory; `failures` reads fail before one succeeds."""

    kind, rule = "list", ""

    def __init__(self, images: Sequence[np.ndarray | bytes | None], *, masks: bool = False) -> None:
        self.images, self.has_masks, self.has_labels = images, masks, True
        self.failures = 0
        self.reads: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.images)

    def entry(self, index: int) -> tuple[str, int]:
        return f"k{index}", 1

    def read(self, indices: Sequence[int]) -> list[Record]:
        self.reads.append(list(indices))
        if self.failures:
            self.failures -= 1
            raise TimeoutError("the store does not answer")
        mask = np.full((8, 8), 3, np.uint8) if self.has_masks else None
        return [Record(f"k{i}", self.images[i], label=i % 3, mask=mask) for i in indices]


def grey(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def image_input(source: ListSource, **config: int) -> ImageInput:
    image = ImageConfig(**config)  # pyright: ignore[reportArgumentType]
    return ImageInput(source, config=image, image_size=(8, 8), seed=0)


def test_micro_batches_are_padded_and_in_order() -> None:
    source = ListSource([grey(value) for value in range(30)])
    works = list(image_input(source).works(8, 10, micro_batch=4))
    assert [(work.offset, work.count) for work in works] == [(0, 4), (4, 4), (8, 2)]
    assert np.concatenate([work.indices[: work.count] for work in works]).tolist() == list(
        range(8, 18)
    )
    last = works[-1]
    assert last.indices.tolist() == [16, 17, 17, 17]
    assert last.images is not None and last.images.shape == (4, 8, 8, 3)
    assert last.images[:, 0, 0, 0].tolist() == [16, 17, 0, 0]
    assert last.keys == ["k16", "k17"] and last.labels is not None
    assert last.labels.tolist() == [1, 2]


def test_views_read_each_image_once_per_batch() -> None:
    source = ListSource([grey(value) for value in range(4)])
    both = image_input(source, views=3)
    assert both.num_samples == 12
    (work,) = both.works(2, 5, micro_batch=8)
    assert source.reads == [[0, 1, 2]]
    assert work.keys == ["k0.v2", "k1.v0", "k1.v1", "k1.v2", "k2.v0"]


def test_invalid_rows_are_named_and_the_rest_is_there() -> None:
    source = ListSource([grey(5), b"no image", None, grey(6)])
    (work,) = image_input(source).works(0, 4, micro_batch=4)
    assert work.valid is not None and work.valid.tolist() == [True, False, False, True]
    assert work.errors[1].startswith("k1: no JPEG | PNG")
    assert work.errors[2] == "k2: empty: the source has no bytes for it"


def test_a_mask_of_another_size_makes_the_row_invalid() -> None:
    source = ListSource([grey(5), np.zeros((9, 8, 3), np.uint8)], masks=True)
    (work,) = image_input(source).works(0, 2, micro_batch=2)
    assert work.masks is not None and work.masks[0].tolist() == [[3] * 8] * 8
    assert work.valid is not None and work.valid.tolist() == [True, False]
    assert "k1: mask of" in work.errors[1]


def test_storage_errors_are_retried_and_then_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_BACKOFF_S", 0.001)
    source = ListSource([grey(1)])
    source.failures = 2
    assert read_retrying(source, [0])[0].key == "k0"
    source.failures = 3
    with pytest.raises(TimeoutError):
        list(image_input(source).works(0, 1, micro_batch=1))


class Answer(Exception):
    """What an HTTP client raises for a server's 500."""


Answer.__module__ = "aiohttp.client_exceptions"
REFUSALS = (
    *(OSError(n, os.strerror(n)) for n in (errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE)),
    *(PermissionError("Forbidden"), ConnectionResetError("x"), Answer("500")),
    *(MemoryError(), CannotReadError("a file: cannot be read.")),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=repr)
def test_what_is_refused_for_one_image_is_no_bad_image(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BACKOFF_S", 0.001)
    source = ListSource([grey(value) for value in range(4)])
    plainly, refused = source.read, [9]

    def read(indices: Sequence[int]) -> list[Record]:
        if 2 in indices and refused[0]:
            refused[0] -= 1
            raise refusal
        return plainly(indices)

    monkeypatch.setattr(source, "read", read)
    with pytest.raises(type(refusal)):
        list(image_input(source).works(0, 4, micro_batch=4))
    assert refused[0] == 9 - reading.READ_ATTEMPTS - 1
    refused[0] = 2
    (work,) = image_input(source).works(0, 4, micro_batch=4)
    assert work.valid is not None and work.valid.all()


@pytest.mark.parametrize("broken", [FileNotFoundError("x"), ValueError("x"), OSError("not JPEG")])
def test_what_is_missing_or_broken_costs_only_itself(
    broken: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BACKOFF_S", 0.001)
    source = ListSource([grey(value) for value in range(4)])
    plainly = source.read

    def read(indices: Sequence[int]) -> list[Record]:
        if 2 in indices:
            raise broken
        return plainly(indices)

    monkeypatch.setattr(source, "read", read)
    (work,) = image_input(source).works(0, 4, micro_batch=4)
    assert work.valid is not None and work.valid.tolist() == [True, True, False, True]
    assert type(broken).__name__ in work.errors[2]


@pytest.mark.parametrize("place", ["PIL.Image.Image.convert", "pipeline.images.prepare.fit"])
def test_no_memory_to_decode_is_no_bad_image(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(place, refuse)
    source = ListSource([grey(1)[..., 0] if "convert" in place else np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(MemoryError, match="k0: not enough memory"):
        list(image_input(source).works(0, 1, micro_batch=1))


def test_the_digest_is_of_what_was_read() -> None:
    def digest(values: list[int]) -> list[bytes]:
        source = ListSource([grey(value) for value in values])
        return [work.digest for work in image_input(source).works(0, 4, micro_batch=2)]

    assert digest([1, 2, 3, 4]) == digest([1, 2, 3, 4])
    first, second = digest([1, 2, 3, 5]), digest([1, 2, 3, 4])
    assert first[0] == second[0] and first[1] != second[1]


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_a_teacher_foresees_its_micro_batches_in_other_threads(kind: str) -> None:
    told: list[tuple[list[int], str]] = []

    def foresee(indices: np.ndarray) -> object:
        told.append((indices.tolist(), threading.current_thread().name))
        return f"for {indices[0]}"

    source = ListSource([grey(value) for value in range(20)])
    given = image_input(source) if kind == "images" else LatentInput(image_size=(8, 8))
    works = given.works(0, 20, micro_batch=2, foresee=foresee)
    first = next(works)
    assert first.foreseen == "for 0" and len(told) >= 1
    assert [work.foreseen for work in works] == [f"for {n}" for n in range(2, 20, 2)]
    assert sorted(indices for indices, _ in told) == [[n, n + 1] for n in range(0, 20, 2)]
    assert threading.current_thread().name not in {name for _, name in told}
    with ThreadPoolExecutor(1) as pool:
        work = given.gather(np.array([7, 3]), micro_batch=3, pool=pool, foresee=foresee)
    assert work.foreseen == "for 7" and told[-1][0] == [7, 3, 3]


def test_padding_is_dropped_after_the_teacher() -> None:
    config = TeacherConfig(kind="noise", levels=["w"])
    pins = Pins(4, "float32", "cpu", 1)
    encoder = load_teacher(config, mode="encode", seed=0, pins=pins, image_size=(8, 8))
    source = image_input(ListSource([grey(value) for value in range(6)]))
    batches = [source.forward(encoder, work) for work in source.works(0, 6, micro_batch=4)]
    assert [len(batch) for batch in batches] == [4, 2]
    assert batches[1].levels["w"].shape == (2, 32) and batches[1].key == ["k4", "k5"]
    latents = LatentInput(image_size=(8, 8))
    dreamer = load_teacher(config, mode="synthesize", seed=0, pins=pins, image_size=(8, 8))
    works: list[Work] = list(latents.works(8, 6, micro_batch=4))
    dreamt = [latents.forward(dreamer, work) for work in works]
    assert [batch.index.tolist() for batch in dreamt] == [[8, 9, 10, 11], [12, 13]]
    assert dreamt[1].image is not None and len(dreamt[1].image) == 2


def test_the_rule_leaves_out_what_has_no_effect(tmp_path: Path) -> None:
    source = ListSource([grey(0)])
    assert image_input(source).image_rule() == image_input(source, rotate=5).image_rule()
    assert (
        image_input(source, views=2).image_rule()
        != image_input(source, views=2, rotate=5).image_rule()
    )
    Image.fromarray(grey(0)).save(tmp_path / "x.png")
    pickle.loads(pickle.dumps(image_input(source)))
