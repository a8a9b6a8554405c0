"""Torch decodes what storage encodes, as storage itself does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.dequantise import Dequantiser
from storage.codecs.base import LearnedCodec
from storage.codecs.table import find_codec
from storage.schema import Level

NAMES = ["float16", "float32", "bfloat16", "int8", "int4", "int8+zstd", "lowrank4-int8"]


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 3, 3)])
@pytest.mark.parametrize("name", [*NAMES, "lowrank6-int4", "dct3", "dct16"])
def test_torch_and_numpy_agree(name: str, shape: tuple[int, ...]) -> None:
    level = Level("up", "feature", "up", 0, 0, "", 4, shape, "float32")
    values = np.random.default_rng(0).standard_normal((7, *shape)).astype(np.float32) + 1
    codec = find_codec(name)
    assert codec is not None
    if isinstance(codec, LearnedCodec):
        codec = codec.fitted(level, codec.fit(level, values))
    stored = codec.encode(level, values)
    dequantise = Dequantiser(level, codec, device="cpu")
    found, wanted = dequantise(stored), torch.from_numpy(codec.decode(level, stored))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_vectors_are_decoded_too() -> None:
    level = Level("w", "embedding", "w", 0, 0, "", 0, (5,), "float32")
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    for name in ("int8", "int4", "lowrank2-int8", "dct4"):
        codec = find_codec(name)
        assert codec is not None
        if isinstance(codec, LearnedCodec):
            codec = codec.fitted(level, codec.fit(level, values))
        stored = codec.encode(level, values)
        found = Dequantiser(level, codec, device="cpu")(stored)
        torch.testing.assert_close(found, torch.from_numpy(codec.decode(level, stored)))


def test_the_buffers_read_into_are_not_kept() -> None:
    level = Level("up", "feature", "up", 0, 0, "", 4, (2, 2, 2), "float32")
    codec = find_codec("float32")
    assert codec is not None
    rows = codec.encode(level, np.ones((1, 2, 2, 2), np.float32))
    found = Dequantiser(level, codec, device="cpu")(rows)
    rows["up"][:] = 7
    assert (found == 1).all()
