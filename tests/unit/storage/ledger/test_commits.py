import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.fs.local import LocalFiles
from storage.ledger.commits import (
    Commit,
    latest_version,
    list_records,
    read_commit,
    record_key,
    withdraw,
    withdrawal_key,
)

COMMIT = Commit(
    unit=1234,
    version=0,
    first=3702,
    count=3,
    bytes=300,
    digests={"image": "a" * 32, "up": "b" * 32},
    input_digest="in",
    seconds=1.5,
    host="here",
    run_id="run",
    keys=["a", "b", "ü"],
    invalid=[1],
    errors={1: "truncated"},
    labels=[0, -1, 2],
    extra={"halved": True},
)


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path)


def put(files: LocalFiles, commit: Commit) -> None:
    files.write(record_key(commit.unit, commit.version), commit.to_json())


def test_a_record_survives_json() -> None:
    again = Commit.from_json(COMMIT.to_json(), where="x")
    assert again == COMMIT
    assert again.valid.tolist() == [True, False, True]
    assert again.digest == COMMIT.digest and len(COMMIT.digest) == 32


def test_the_digest_covers_every_array() -> None:
    other = dataclasses.replace(COMMIT, digests={**COMMIT.digests, "up": "c" * 32})
    renamed = dataclasses.replace(COMMIT, digests={"image": "a" * 32, "uq": "b" * 32})
    assert len({COMMIT.digest, other.digest, renamed.digest}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"unit": -1},
        {"unit": 1 << 60},
        {"first": (1 << 50) + 1},
        {"count": 0},
        {"count": 1 << 40},
        {"count": True},
        {"keys": ["a"]},
        {"keys": [1, 2, 3]},
        {"labels": [1, 2]},
        {"labels": ["x", 1, 2]},
        {"invalid": [3]},
        {"invalid": [-1]},
        {"errors": {"9": "x"}},
        {"errors": {"x": "x"}},
        {"digests": {"image": 3}},
        {"digests": {"image": "other"}},
        {"digests": None},
        {"host": 3},
        {"surprise": 1},
    ],
)
def test_a_strange_record_is_refused(change: dict[str, object]) -> None:
    value = {**json.loads(COMMIT.to_json()), **change}
    with pytest.raises(DataError, match=r"^there: got a damaged commit record"):
        Commit.from_json(json.dumps(value).encode(), where="there")


def test_every_truncation_is_refused() -> None:
    data = COMMIT.to_json()
    for end in range(0, len(data), 7):
        with pytest.raises(DataError):
            Commit.from_json(data[:end], where="x")


def test_mutations_never_do_worse_than_an_error() -> None:
    rng, data = np.random.default_rng(0), bytearray(COMMIT.to_json())
    for _ in range(500):
        mutated = bytearray(data)
        mutated[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            Commit.from_json(bytes(mutated), where="x")
        except DataError:
            continue


def test_keys_are_sharded_and_changes_lie_apart() -> None:
    assert record_key(1234567, 0) == "commits/001234/001234567.0.json"
    assert record_key(12, 3) == "commits/revised/000000012.3.json"
    assert withdrawal_key(12, 3) == "commits/withdrawn/000000012.3.json"


def test_the_highest_version_counts(files: LocalFiles) -> None:
    assert latest_version(files, 1234) == (-1, False)
    put(files, COMMIT)
    assert latest_version(files, 1234) == (0, True)
    assert withdraw(files, 1234, 0, reason="test")
    assert not withdraw(files, 1234, 0, reason="again")
    assert latest_version(files, 1234) == (0, False)
    put(files, dataclasses.replace(COMMIT, version=1))
    assert latest_version(files, 1234) == (1, True)
    assert latest_version(files, 123) == (-1, False)


def test_other_names_in_the_folder_are_passed_over(files: LocalFiles) -> None:
    put(files, COMMIT)
    for name in ("x.json", "1.json", "1.2.txt", "-1.0.json", "1.0.json.tmp", "9" * 40 + ".0.json"):
        files.write(f"commits/000001/{name}", b"")
    assert list_records(files, "commits/000001") == [(1234, 0)]


def test_a_record_under_another_units_name_is_refused(files: LocalFiles) -> None:
    files.write(record_key(7, 0), COMMIT.to_json())
    with pytest.raises(DataError, match="got the record of unit 1234"):
        read_commit(files, 7, 0)
    with pytest.raises(DataError, match="no such record"):
        read_commit(files, 8, 0)
