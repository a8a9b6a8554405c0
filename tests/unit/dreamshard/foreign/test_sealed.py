"""A changed bit of a sealed file never passes; what was never sealed is not damaged."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from dreamshard.foreign.guard import UnreadableError
from dreamshard.foreign.sealed import (
    PARQUET_PAIR,
    SEAL,
    check_seal,
    check_sealed_parquet,
    parse_sealed,
    seal_end,
    sealed_json,
)

RECORD = {"unit": 3, "reason": 'a "quoted" text', "extra": {"a": [1, 2]}}
FORMS = [
    sealed_json(RECORD),
    sealed_json(RECORD, indent=1),
    sealed_json({"a": float("inf")}, indent=2, infinite=True),
    sealed_json(RECORD, inside="extra"),
    sealed_json({"extra": {}, "unit": 1}, inside="extra"),
]


@pytest.mark.parametrize("data", FORMS)
def test_every_bit_counts(data: bytes) -> None:
    assert check_seal(data)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="digest"):
            check_seal(bytes(changed))


@pytest.mark.parametrize("data", FORMS)
def test_what_is_cut_short_or_longer_is_refused(data: bytes) -> None:
    for changed in [*(data[:end] for end in range(len(data))), data + b"}", data + b" "]:
        with pytest.raises(UnreadableError, match=r"^x\.json: "):
            parse_sealed(changed, where="x.json", infinite=True)


def test_the_value_is_read_by_those_who_know_nothing_of_it() -> None:
    assert json.loads(sealed_json({"a": 1}))["a"] == 1
    value, sealed = parse_sealed(sealed_json(RECORD, inside="extra"), where="x")
    assert sealed and list(value) == ["unit", "reason", "extra"]
    assert value["extra"].pop(SEAL) and value == RECORD


@pytest.mark.parametrize(
    "value", [{}, RECORD, {"xxh3": "1"}, {"digest": "0" * 32}, [], {"a": SEAL}]
)
def test_what_earlier_versions_wrote_is_unsealed(value: object) -> None:
    for indent in (None, 1):
        data = json.dumps(value, indent=indent).encode()
        assert parse_sealed(data, where="x") == (value, False)


def test_every_bit_of_a_parquet_file_counts() -> None:
    table, sink = pa.table({"label": list(range(9))}), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"classes": "[]", **PARQUET_PAIR})
    written = sink.getvalue().to_pybytes()
    data = written[:100] + seal_end(written[100:], xxhash.xxh3_128(written[:100]))
    assert check_sealed_parquet(io.BytesIO(data))
    assert pq.read_table(pa.BufferReader(data))["label"].to_pylist() == list(range(9))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="digest"):
            check_sealed_parquet(io.BytesIO(changed))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert not check_sealed_parquet(io.BytesIO(sink.getvalue().to_pybytes()))
