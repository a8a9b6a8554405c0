"""Datasets on a real S3 protocol server, over a network that fails in every way networks do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from dreamshard.console.view.answers import ANSWERS, Desk
from dreamshard.console.view.places import find_places
from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.catalog import find, find_dataset, list_datasets
from storage.dataset import Dataset
from storage.fs import objects
from storage.fs.cache import BYTES_VARIABLE, FOLDER_VARIABLE, shared_cache
from storage.rows.pick import read_rows
from storage.schema import Level
from storage.verbs.verify import repair, verify_dataset
from tests.feature_store import (
    LEVELS,
    all_keys,
    expected_keys,
    fill,
    make_batch,
    make_dataset,
    make_recipe,
    write_unit,
)
from tests.s3_server import Proxy, serve_s3

pytest.importorskip("moto", reason="needs moto[server], an S3 server for tests")
pytest.importorskip("s3fs")

N = 20
FEW = LEVELS[:2]
MOST_FAULTS = 2  # of the six tries that a request has
FORK = multiprocessing.get_context("fork")
_bucket = itertools.count()
both_formats = pytest.mark.parametrize("layout_format", ["zarr", "tar"])


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with serve_s3() as proxy:
        yield proxy


@pytest.fixture
def root(server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    keys = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in {**keys, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "BACKOFF_S", 0.01)
    waits = {"read_timeout": 1, "connect_timeout": 60}  # only a stalled machine is slow to connect
    settings = {"config_kwargs": {**waits, "retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    server.choose = lambda _method, _path: ""
    server.served.clear()
    bucket = f"bucket{next(_bucket)}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/features"


def make(root: str, *, layout_format: str = "zarr") -> Dataset:
    recipe = make_recipe(layout_format=layout_format, count=N, levels=FEW)
    return make_dataset(root, recipe=recipe, levels=FEW)


def both(root: str, tmp_path: Path, *, layout_format: str) -> tuple[Dataset, Dataset]:
    """Make a dataset in the bucket and its like in a folder."""
    local = str(tmp_path / "local")
    return make(root, layout_format=layout_format), make(local, layout_format=layout_format)


def some(faults: dict[str, float], *, seed: int) -> Callable[[str, str], str]:
    """Choose faults at random: by their share of requests, at most MOST_FAULTS on end of one kind.

    Six of six tries would fail once in some thousand requests, which is the network's fault, too,
    but not what is tested; and a machine that stalls takes tries of its own.
    """
    rng, lock = np.random.default_rng(seed), threading.Lock()
    on_end: dict[tuple[str, str], int] = {}

    def drawn(method: str, path: str) -> str:
        draw = float(rng.random())
        for fault, share in faults.items():
            if draw < share:
                return fault if fault != "short" or (method == "GET" and "?" not in path) else ""
            draw -= share
        return ""

    def choose(method: str, path: str) -> str:
        one = method, path.partition("?")[0]
        with lock:
            fault = drawn(method, path) if on_end.get(one, 0) < MOST_FAULTS else ""
            on_end[one] = on_end.get(one, 0) + 1 if fault else 0
        return fault

    return choose


def data_files(dataset: Dataset) -> dict[str, bytes]:
    """Return the bytes of all chunks or shards, without asking for those that are not there."""
    folder = dataset.store.array_key("emb", 0).partition("/")[0]
    keys = [key for key in dataset.files.walk(folder) if "/c/" in key or key.endswith(".tar")]
    assert len(keys) >= len(dataset.committed())
    return {key: dataset.files.read(key) for key in keys}


def check(dataset: Dataset, reference: Dataset, *, lossy: bool = False) -> None:
    """Compare two datasets; lossy: a claim may be left, whose removal the network lost.

    It goes stale by itself, as a reader's mark does.
    """
    assert data_files(dataset) == data_files(reference)
    keys = {key for key in all_keys(dataset) if not (lossy and key.startswith("staging/claims/"))}
    assert keys == expected_keys(dataset)
    assert verify_dataset(dataset).findings == []


@both_formats
def test_a_bucket_holds_what_a_folder_holds(root: str, tmp_path: Path, layout_format: str) -> None:
    dataset, local = both(root, tmp_path, layout_format=layout_format)
    assert fill(dataset, N, invalid=(7,)) == [0, 1, 2, 3] == fill(local, N, invalid=(7,))
    assert fill(dataset, N) == []
    check(dataset, local)
    assert dataset.snapshot().version == local.snapshot().version
    assert [url for url, _ in list_datasets(root)] == [dataset.url]
    assert find_dataset(f"{root}/noise-test").url == dataset.url
    match = find(root, dataset.recipe)
    assert match is not None and match.exact and match.url == dataset.url


@both_formats
def test_readers_see_the_same_through_a_small_cache(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout_format: str
) -> None:
    dataset, local = both(root, tmp_path, layout_format=layout_format)
    fill(dataset, N), fill(local, N)
    chunk = dataset.arrays["up.1.t100"].row_bytes * dataset.samples_per_unit
    limit = 3 * (chunk if layout_format == "zarr" else max(map(len, data_files(local).values())))
    monkeypatch.setenv(BYTES_VARIABLE, str(limit))
    names = [level.name for level in FEW]
    readers = [
        BatchReader(item.snapshot(), levels=names, batch_size=4, labels=True, max_open=1, seed=3)
        for item in (dataset, local)
    ]
    for _ in range(12):
        ours, theirs = (reader.next() for reader in readers)
        assert np.array_equal(ours.index, theirs.index) and np.array_equal(ours.label, theirs.label)
        assert all(np.array_equal(ours.levels[name], theirs.levels[name]) for name in names)
        assert np.array_equal(ours.image, theirs.image)
    assert shared_cache().size() <= limit
    for reader in readers:
        reader.close()


def test_a_chunk_is_downloaded_once(root: str, server: Proxy) -> None:
    fill(dataset := make(root), N)
    for _ in range(2):
        read_rows(Dataset.open(dataset.url).snapshot(), "emb", range(N))
    got = [path for method, path, _ in server.served if method == "GET" and "/emb/c/" in path]
    assert len(got) == len(set(got)) == 4


@both_formats
def test_what_is_looked_at_costs_the_rows_shown_alone(
    root: str, server: Proxy, layout_format: str
) -> None:
    level = Level("up.1", "feature", "up.1", 0, 0, "", 1, (8, 16, 16), "float32")  # 8 kB a sample
    recipe = make_recipe(
        layout_format=layout_format, count=240, unit=60, levels=(level,), codec="raw"
    )
    dataset = make_dataset(root, recipe=recipe, levels=(level,), masks=False)
    fill(dataset, 240)
    desk = Desk(find_places([root]))

    def cost(name: str, **query: object) -> tuple[int, int, Any]:
        """Ask; return requests for rows, bytes sent, and the answer."""
        served, sent = len(server.served), server.body_bytes
        told = ANSWERS[name](desk, {key: str(value) for key, value in query.items()})
        asked = [path for _, path, _ in server.served[served:]]
        rows = [path for path in asked if "/data.zarr/" in path or "/shards/" in path]
        return len(rows), server.body_bytes - sent, told

    cost("places")
    cost("samples", d=0, first=0, count=24)
    shown = ",".join(map(str, range(10, 34)))
    row = 4 * 8 * 16 * 16
    requests, sent, told = cost("maps", d=0, level="up.1", i=shown)  # and 16 for the one basis
    assert sent < (24 + 16) * 1.3 * row + 40_000 and requests < 60, (requests, sent)
    # The page keeps them: a click on a cell fetches nothing.
    assert cost("likeness", d=0, level="up.1", of=12, y=0.5, x=0.5, i=shown)[0] == 0
    requests, sent, _ = cost("maps", d=0, level="up.1", i=shown.replace("10", "200"), own=1)
    assert sent < 2 * row + 40_000 and requests < 12, (requests, sent)
    picture = cost("images", d=0, i=shown)[2]["pictures"]["10"]
    local = read_rows(Dataset.open(dataset.url).snapshot(), "up.1", range(10, 34))
    ranged = read_rows(dataset.snapshot(), "up.1", range(10, 34), access="range")
    assert np.array_equal(local, ranged) and picture.startswith("data:image/png")
    assert len(told["pictures"]) == 24


def test_rows_that_are_not_there_are_damage_to_whoever_looks(root: str) -> None:
    dataset = make(root)
    fill(dataset, N)
    snapshot = dataset.snapshot()
    key = dataset.store.array_key("emb", 1)
    whole = dataset.files.read(key)
    dataset.files.write(key, whole[:13])
    with pytest.raises(DataError):
        read_rows(snapshot, "emb", [9], access="range")
    dataset.files.remove(key)
    with pytest.raises(DataError, match="verify --repair"):
        read_rows(snapshot, "emb", [9], access="range")


@pytest.mark.parametrize("seed", range(2))
def test_a_bad_network_costs_time_and_nothing_else(
    root: str, server: Proxy, tmp_path: Path, seed: int
) -> None:
    dataset, local = both(root, tmp_path, layout_format=("zarr", "tar")[seed])
    fill(local, N)
    faults = {"503": 0.06, "cut": 0.06, "lost answer": 0.06, "short": 0.06, "slow": 0.01}
    server.choose = some(faults, seed=seed)
    fill(dataset, N)
    rows = read_rows(dataset.snapshot(), "up.1.t100", range(N))
    seen = {fault for _, _, fault in server.served}
    server.choose = lambda _method, _path: ""
    assert np.array_equal(rows, read_rows(local.snapshot(), "up.1.t100", range(N)))
    assert seen >= {"503", "cut", "lost answer"}
    check(dataset, local, lossy=True)


def test_truncated_bodies_are_never_taken_for_data(root: str, server: Proxy) -> None:
    fill(dataset := make(root), N)
    counts: dict[str, int] = {}

    def choose(method: str, path: str) -> str:
        """Cut the first two bodies of every chunk."""
        if method != "GET" or "/c/" not in path or "?" in path:
            return ""
        counts[path] = counts.get(path, 0) + 1
        return "short" if counts[path] <= 2 else ""

    server.choose = choose
    rows = read_rows(dataset.snapshot(), "emb", range(N))
    assert np.array_equal(rows, make_batch(0, N, levels=FEW).levels["emb"])
    assert min(counts.values()) == 3
    counts.clear()
    assert verify_dataset(dataset).findings == []


def test_a_store_that_stays_away_is_an_error_that_says_so(root: str, server: Proxy) -> None:
    fill(dataset := make(root), 6)
    server.choose = lambda _method, _path: "503"
    with pytest.raises(DataError, match=r"s3://.*Tried \d+ times.*check the network"):
        dataset.snapshot()
    server.choose = lambda _method, _path: ""
    assert dataset.snapshot().num_samples == 6
    with pytest.raises(DataError, match="no such bucket"):
        make("s3://no-such-bucket/features")


def test_damage_in_the_store_is_found_and_mended(root: str) -> None:
    fill(dataset := make(root), N)
    good = data_files(dataset)
    key = dataset.store.array_key("emb", 1)
    dataset.files.write(key, bytes(len(good[key])))
    with pytest.raises(DataError, match=r"s3://.*emb/c/1.*got digest.*verify --repair"):
        read_rows(dataset.snapshot(), "emb", range(N))
    report = verify_dataset(dataset)
    assert report.damaged_units == [1]
    assert repair(dataset, report) == [1] == fill(dataset, N, run_id="again")
    assert data_files(dataset) == good
    assert len(read_rows(dataset.snapshot(), "emb", range(N))) == N


def test_racing_runs_leave_what_the_winner_recorded(root: str) -> None:
    dataset = make(root)
    dataset.grow(24)
    told: dict[int, list[str]] = {0: [], 1: []}
    barrier = threading.Barrier(2)

    def race(noise: int) -> None:
        own = Dataset.open(dataset.url)
        for unit in range(4):
            barrier.wait(60)
            with own.unit_writer(unit, count=6, run_id=f"run-{noise}") as writer:
                writer.write(0, make_batch(unit * 6, 6, noise=noise, levels=FEW))
                told[noise].append(writer.commit().run_id)

    runs = [threading.Thread(target=race, args=(noise,)) for noise in told]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert told[0] == told[1] and len(told[0]) == 4
    assert verify_dataset(dataset).findings == []
    dataset.sweep()
    assert all_keys(dataset) == expected_keys(dataset)


def _run(url: str, ready) -> None:
    dataset = Dataset.open(url)
    dataset.grow(60)
    with dataset.lease("killed"):
        for unit in dataset.missing(60).tolist():
            write_unit(dataset, unit, num_samples=60, run_id="killed")
            ready.set()


def test_a_killed_run_is_taken_up_again(root: str, tmp_path: Path) -> None:
    dataset, local = make(root), make(str(tmp_path / "local"))
    fill(local, 60)
    ready = FORK.Event()
    run = FORK.Process(target=_run, args=(dataset.url, ready))
    run.start()
    assert ready.wait(60) and run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert verify_dataset(dataset).findings == []
    assert len(fill(dataset, 60, run_id="again")) < 10
    check(dataset, local)
