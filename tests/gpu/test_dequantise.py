"""Stored codes become the same features on the device as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.dequantise import Dequantiser
from storage.codecs.base import LearnedCodec
from storage.codecs.table import find_codec
from storage.schema import Level

pytestmark = pytest.mark.gpu

CODECS = ["float16", "float32", "bfloat16", "int8", "int4", "int8+zstd", "lowrank4-int8"]
CODECS += ["lowrank6-int4", "dct3", "dct16"]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 3, 3)])
def test_the_device_decodes_as_the_cpu_does(name: str, shape: tuple[int, ...], device: str) -> None:
    level = Level("up", "feature", "up", 0, 0, "", 4, shape, "float32")
    values = np.random.default_rng(0).standard_normal((7, *shape)).astype(np.float32) + 1
    codec = find_codec(name)
    assert codec is not None
    if isinstance(codec, LearnedCodec):
        codec = codec.fitted(level, codec.fit(level, values))
    stored = codec.encode(level, values)
    here, there = (Dequantiser(level, codec, device=where) for where in ("cpu", device))
    found, expected = there(stored), here(stored)
    assert found.device.type == device and found.dtype == torch.float32
    exact = name in ("float16", "float32", "bfloat16", "int8", "int8+zstd")
    tolerance = 0.0 if exact else 1e-5  # sums over components may take another order
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)
