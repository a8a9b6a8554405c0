"""Stores that do not refuse a second put: found out, written down, and written to by one run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import pytest

from dreamshard.console import doctor
from dreamshard.errors import DataError
from storage.dataset import Dataset
from storage.fs import objects
from storage.fs.cache import FOLDER_VARIABLE
from storage.fs.open import open_files
from storage.ledger import leases
from storage.verbs.verify import verify_dataset
from tests.feature_store import LEVELS, fill, make_dataset, make_recipe, stop_clocks, write_unit
from tests.s3_server import Proxy, serve_s3

pytest.importorskip("moto", reason="needs moto[server], an S3 server for tests")
pytest.importorskip("s3fs")

FEW = LEVELS[:1]
ELSEWHERE = "000000000000-1-1"
FAULTS = {"unconditional": "ignored", "412": "refuses all", "501": "not offered"}
_bucket = itertools.count()
every_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with serve_s3() as proxy:
        yield proxy


@pytest.fixture
def root(server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    for name, value in zip(names, ("x", "y", "us-east-1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "BACKOFF_S", 0.01)
    monkeypatch.setattr(objects, "_proofs", {})
    settings = {"config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    server.choose = lambda _method, _path: ""
    bucket = f"proof{next(_bucket)}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/features"


def make(root: str) -> Dataset:
    return make_dataset(root, recipe=make_recipe(count=12, levels=FEW), levels=FEW)


def said(dataset: Dataset) -> str:
    return json.loads(dataset.files.read("dataset.json"))["conditional_put"]


def test_a_store_that_refuses_is_proved(root: str) -> None:
    dataset = make(root)
    assert said(dataset) == Dataset.open(dataset.url).about.conditional_put == "proved"
    assert dataset.files.names("staging/put") == []  # nothing of the trial stays
    with dataset.lease("one"), Dataset.open(dataset.url).lease("two"):
        pass
    assert doctor._conditional_put(root).status == "ok"


@every_fault
def test_without_proof_one_run_at_a_time_writes(
    server: Proxy, root: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.choose = lambda method, _path: fault if method == "PUT" else ""
    dataset = make(root)
    assert said(dataset) == FAULTS[fault]
    assert fill(dataset, 12) == [0, 1] and fill(make(root), 12, run_id="again") == []
    assert dataset.drop(["key/3"], reason="x") == 1 == len(dataset.snapshot().drops)
    assert "one run at a time" in caplog.text
    with dataset.lease("one"):
        with pytest.raises(DataError, match="got a second run at work, allowed one at a time"):
            Dataset.open(dataset.url).lease("two").__enter__()
        with pytest.raises(DataError, match="conditional put is not proved"):
            dataset.drop(["key/4"], reason="x")
    with dataset.lease("two"):
        pass
    assert verify_dataset(dataset).findings == [] and dataset.snapshot().holes == ()
    check = doctor._conditional_put(root)
    assert check.status == "note" and FAULTS[fault] in check.value


@every_fault
def test_a_store_that_lost_it_since_is_found_out(server: Proxy, root: str, fault: str) -> None:
    """Somebody changed a setting after the dataset was made: each run tries again."""
    dataset = make(root)
    fill(dataset, 6)
    server.choose = lambda method, _path: fault if method == "PUT" else ""
    again = Dataset.open(dataset.url)
    assert said(again) == "proved"
    with again.lease("one"):
        assert again.files.proof() == FAULTS[fault]
        with pytest.raises(DataError, match="one at a time"):
            dataset.lease("two").__enter__()
    assert fill(again, 12, run_id="later") == [1]
    server.choose = lambda _method, _path: ""
    with again.lease("one"), dataset.lease("two"):
        assert again.files.proof() == "proved"


def test_a_store_that_begins_to_refuse_all_in_the_middle_of_a_run(server: Proxy, root: str) -> None:
    dataset = make(root)
    dataset.grow(12)
    with dataset.lease("one"):
        server.choose = lambda method, _path: "412" if method == "PUT" else ""
        assert write_unit(dataset, 0, num_samples=12).run_id == "run"
        assert dataset.committed().keys() == {0}
    assert dataset.files.proof() == "refuses all"


def test_a_run_that_writes_alone_keeps_others_out_that_had_their_proof(
    server: Proxy, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(root)
    record = {"owner": ELSEWHERE, "alone": True}
    dataset.files.write("staging/other.lease", json.dumps(record).encode())
    clock = stop_clocks(monkeypatch)
    with dataset.lease("one"):  # it was watched, and is dead
        assert clock.seconds >= 1000 + leases.LEASE_TTL_S
    dataset.files.write("staging/other.lease", json.dumps(record).encode())
    beats = itertools.count()

    def sleep(_seconds: float) -> None:
        record["beat"] = next(beats)
        dataset.files.write("staging/other.lease", json.dumps(record).encode())

    monkeypatch.setattr(leases.evidence, "sleep", sleep)
    with pytest.raises(DataError, match="one at a time"):
        dataset.lease("one").__enter__()


def test_the_answer_to_the_first_put_may_be_lost(server: Proxy, root: str) -> None:
    lost = iter(["lost answer"])

    def choose(method: str, path: str) -> str:
        return next(lost, "") if method == "PUT" and ".proof." in path else ""

    server.choose = choose
    assert open_files(f"{root}/x").proof() == "proved"
