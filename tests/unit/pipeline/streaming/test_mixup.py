"""Mixtures by hand, and a stream whose teacher saw what its images show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dreamshard.errors import ConfigError
from dreamshard.rng import generator
from pipeline.images.source import SourceConfig
from pipeline.streaming.client import Share, StreamReader
from pipeline.streaming.config import PartConfig, StreamConfig
from pipeline.streaming.live import LiveTransport
from pipeline.streaming.mixup import PURPOSE, mix_images
from pipeline.streaming.stream import resolve_stream

Configure = Callable[..., StreamConfig]


def flat(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def test_each_usable_image_is_mixed_with_another_by_one_share() -> None:
    images, samples = flat(0, 99, 200, 100, 100), np.array([7, 8, 9, 10])
    valid = np.array([True, False, True, True])
    drawn = generator(5, 7, 2, PURPOSE)
    share, order = drawn.random(), np.array([0, 2, 3])[drawn.permutation(3)].tolist()
    mixed = mix_images(images, valid, samples=samples, seed=5, epoch=2)
    for place, row in enumerate(order):
        other = int(images[order[place - 1], 0, 0, 0])
        expected = share * int(images[row, 0, 0, 0]) + (1 - share) * other
        assert (mixed[row] == round(expected)).all()
    assert np.array_equal(mixed[[1, 4]], images[[1, 4]]), "one that cannot be used, and padding"
    again = mix_images(images, valid, samples=samples, seed=5, epoch=2)
    assert np.array_equal(mixed, again)
    other = mix_images(images, valid, samples=samples, seed=5, epoch=3)
    assert not np.array_equal(mixed, other)


def test_an_image_alone_stays_what_it_is() -> None:
    images = flat(3, 4)
    alone = mix_images(images, np.array([False, True]), samples=np.arange(2), seed=0, epoch=0)
    assert np.array_equal(alone, images)


def test_the_teacher_sees_the_mixture_that_the_student_sees(configure: Configure) -> None:
    """Mixed images come with what the teacher says of them, not of the images they are of."""
    config = configure(samples=32, mixup=True, micro_batch=16)
    stream, plain = (
        resolve_stream(one.stream()) for one in (config, configure(samples=32, micro_batch=16))
    )
    transport = LiveTransport(stream)
    samples = np.arange(16)
    answer = transport._server.serve(0, samples, 0)
    before = LiveTransport(plain)
    unmixed = before._server.serve(0, samples, 0)
    assert np.array_equal(answer["index"], unmixed["index"])
    seed = stream.parts[0].served.request.asked.seed  # type: ignore[union-attr]
    expected = mix_images(unmixed["image"], np.ones(16, bool), samples=samples, seed=seed, epoch=0)
    assert np.array_equal(answer["image"], expected)
    told = before._server._teachers[0].encode(expected, samples).levels["b4"]
    seen = stream.codec("b4")
    assert seen.name == "float16"
    assert np.array_equal(answer["b4"], told.astype(np.float16))
    for each in (transport, before):
        each.close()


def test_a_mixed_stream_is_another_stream_and_the_same_again(configure: Configure) -> None:
    def first(**changes: Any) -> tuple[Any, np.ndarray]:
        stream = resolve_stream(configure(samples=32, **changes).stream())
        share = Share(batch_size=32, shuffle="none")
        with StreamReader(stream, LiveTransport(stream), levels=["b4"], share=share) as reader:
            image = reader.next().image
            assert image is not None
            return stream.identity, image.copy()

    (identity, mixed), (_, again), (usual, plain) = (
        first(mixup=True), first(mixup=True), first()
    )  # fmt: skip
    assert np.array_equal(mixed, again) and not np.array_equal(mixed, plain)
    assert identity == usual | {"mixup": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep": True}, "true with keep"),
        ({"mode": "synthesize"}, "true with mode synthesize"),
        ({"mix": [PartConfig(dataset="x")]}, "true with mode shards"),
        ({"source": SourceConfig(kind="latents", path="x")}, "true with source.kind latents"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changes: dict[str, Any], words: str) -> None:
    found = [p for p in StreamConfig(mixup=True, **changes).problems() if p.key == "mixup"]
    assert [problem.got for problem in found] == [words]
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(found)
