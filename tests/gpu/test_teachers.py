"""Teachers of every family on the device, against the CPU in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.teachers.base import TeacherConfig
from storage.schema import FeatureBatch
from tests.gpu import networks

pytestmark = pytest.mark.gpu

TOLERANCE = {"float32": 1e-3, "bfloat16": 4e-2, "float16": 6e-3}
"""Relative L2: recorded values are float16 (5e-4); formats have 23, 7 and 10 bits after the first,
and their roundings add up over some twenty layers."""


@pytest.fixture(scope="module", params=networks.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[TeacherConfig, FeatureBatch]:
    config = networks.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return config, networks.record(networks.load(config, "cpu"))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_device_agrees_with_the_cpu(family, dtype: str, device: str) -> None:
    config, expected = family
    teacher = networks.load(replace(config, compute_dtype=dtype), device)
    found = networks.record(teacher)
    assert list(found.levels) == list(expected.levels)
    for name, value in expected.levels.items():
        got = networks.distance(found.levels[name], value)
        assert got < TOLERANCE[dtype], f"{name}: {got:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_batch_twice_gives_the_same_bytes(family, dtype: str, device: str) -> None:
    config = replace(family[0], compute_dtype=dtype)
    first = networks.record(networks.load(config, device))
    again = networks.load(config, device)
    for _ in range(2):
        second = networks.record(again)
        for name, value in first.levels.items():
            assert np.array_equal(second.levels[name], value), name


def test_pooled_features_agree_with_the_cpu(family, device: str) -> None:
    config = replace(family[0], pool="gap")
    expected = networks.record(networks.load(config, "cpu"))
    found = networks.record(networks.load(config, device))
    for name, value in expected.levels.items():
        assert networks.distance(found.levels[name], value) < 1e-3, name
