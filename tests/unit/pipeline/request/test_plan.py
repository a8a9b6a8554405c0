"""Units and bytes, by arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.request.layout import choose_codecs
from pipeline.request.plan import (
    UNIT_BYTES,
    Speed,
    bytes_per_sample,
    choose_samples_per_unit,
    describe,
    format_bytes,
    make_plan,
)
from storage.schema import Level

MAP = Level("up.1.t100", "feature", "up.1", 100, 0, "none", 2, (64, 8, 8), "float16")
IDS = Level("ids", "soft_label", "ids", -1, 0, "none", 0, (5,), "int64")


def test_bytes_of_a_sample() -> None:
    codecs = choose_codecs([MAP, IDS])
    assert codecs == {"up.1.t100": "float16", "ids": "raw"}
    sizes = bytes_per_sample(
        [MAP, IDS], codecs=codecs, image_size=(16, 16), has_labels=True, has_masks=True
    )
    assert sizes == {"image": 768, "label": 8, "mask": 256, "up.1.t100": 8192, "ids": 40}


@pytest.mark.parametrize(
    ("wanted", "available", "num_samples", "units", "last"),
    [
        (1000, None, 1200, 4, 300),
        (1, None, 300, 1, 300),
        (1000, 1000, 1000, 4, 100),
        (900, 1000, 900, 3, 300),
        (901, 1000, 1000, 4, 100),
    ],
)
def test_requests_round_up_to_units_but_not_beyond_the_source(
    wanted: int, available: int | None, num_samples: int, units: int, last: int
) -> None:
    plan = make_plan(wanted, available=available, samples_per_unit=300, sizes={"x": 2})
    assert (plan.num_samples, plan.num_units, plan.count(units - 1)) == (num_samples, units, last)
    assert plan.total_bytes == 2 * num_samples


@given(
    wanted=st.integers(1, 10**6),
    extra=st.integers(0, 10**6) | st.none(),
    per_unit=st.integers(1, 5000),
)
def test_units_cover_every_sample_once(wanted: int, extra: int | None, per_unit: int) -> None:
    available = None if extra is None else wanted + extra
    plan = make_plan(wanted, available=available, samples_per_unit=per_unit, sizes={"x": 1})
    assert plan.num_samples >= wanted
    whole = (plan.num_units - 1) * per_unit
    assert 1 <= plan.count(plan.num_units - 1) == plan.num_samples - whole <= per_unit
    more = make_plan(wanted + per_unit, available=None, samples_per_unit=per_unit, sizes={})
    assert more.count(0) == per_unit


@given(st.integers(1, 10**9))
def test_units_are_sized_in_bytes(sample_bytes: int) -> None:
    count = choose_samples_per_unit(sample_bytes)
    assert count.bit_count() == 1
    assert count == 1 or UNIT_BYTES / 2 < count * sample_bytes <= UNIT_BYTES


def test_the_table() -> None:
    sizes = {"image": 768, "b8": 8192}
    plan = make_plan(1000, available=None, samples_per_unit=500, sizes=sizes, codecs={"b8": "int8"})
    assert "8.19 MB  int8" in describe(plan)
    text = describe(plan, speed=Speed(rate=100.0))
    assert "samples   1,000" in text and "shards    2 of 500 samples" in text
    assert "8.96 MB" in text and "0.00 h at 100 img/s" in text and "896 kB/s" in text
    assert format_bytes(0) == "0 B" and format_bytes(5e15) == "5.0 PB"


def test_the_bottleneck_and_the_cost_are_named() -> None:
    sizes = {"b8": 10_000}
    plan = make_plan(
        360_000, available=None, samples_per_unit=500, sizes=sizes, codecs={"b8": "int8"}
    )
    speed = Speed(rate=100.0, write_bytes_per_s=2e6, gpus=4, gpu_hour_price=2.5)
    text = describe(plan, speed=speed)
    assert "3.6 GB  int8" in text and "1.00 h at 100 img/s" in text and "memory" not in text
    assert "write     1 MB/s needed, 2 MB/s measured from here\n" in text
    assert "cost      10.00 at 2.5 per GPU hour, 4 GPUs" in text
    slow = describe(plan, speed=Speed(rate=100.0, write_bytes_per_s=5e5, memory_bytes=3 << 30))
    assert "the root is the bottleneck, 2.00 h" in slow and "memory    3.22 GB per actor" in slow
