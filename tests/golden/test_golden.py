"""Datasets that earlier versions wrote are read, verified and extended by this one, byte for byte.

With DREAMSHARD_OLD set to a checkout of an earlier version, that one and this one also take turns
on one root: each makes units, drops samples and reads what the other made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from storage.dataset import Dataset
from storage.ledger.description import KEY, UPGRADES
from storage.schema import FORMAT_VERSION
from storage.verbs import collect
from storage.verbs.verify import verify_dataset
from tests.feature_store import LEVELS, all_keys, expected_keys, fill, make_batch
from tests.golden.make import INVALID, SAMPLES, UNIT, make_all, read_all

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARCHIVES = sorted(path.name for path in HERE.glob("v*.tar.gz"))
OLD = os.environ.get("DREAMSHARD_OLD", "")


@cache
def listed(archive: str) -> tuple[str, ...]:
    with tarfile.open(HERE / archive) as tar:
        keys = [name for name in tar.getnames() if name.endswith(f"/{KEY}")]
    return tuple(sorted(key.partition("/")[0] for key in keys))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    for name in ARCHIVES:
        with tarfile.open(HERE / name) as tar:
            tar.extractall(root / name, filter="data")
    return root


@pytest.fixture
def dataset(unpacked: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    archive, name = request.param
    shutil.copytree(unpacked / archive / name, tmp_path / name)
    return Dataset.open(str(tmp_path / name), fsync=False)


def expected(unpacked: Path, archive: str, name: str) -> tuple[dict[str, np.ndarray], dict]:
    about = json.loads((unpacked / archive / "expected.json").read_text())[name]
    with np.load(unpacked / archive / "expected.npz") as file:
        rows = {k.rpartition("/")[2]: file[k] for k in file.files if k.startswith(f"{name}/")}
    return rows, about


def _is_computed(name: str) -> bool:
    """Say whether matrix products decide a dataset's bytes: elsewhere their last bits differ."""
    return "lowrank" in name or "dct" in name


EVERY = pytest.mark.parametrize(
    "dataset", [(a, n) for a in ARCHIVES for n in listed(a)], indirect=True, ids=lambda p: p[1]
)


def test_there_is_an_archive_of_each_format_version() -> None:
    assert [f"v{n}.tar.gz" for n in range(1, FORMAT_VERSION + 1)] == ARCHIVES
    assert set(UPGRADES) == set(range(1, FORMAT_VERSION))
    assert sum((HERE / name).stat().st_size for name in ARCHIVES) < 500_000


@EVERY
def test_it_is_read_as_it_was_then(dataset: Dataset, unpacked: Path, request) -> None:
    archive, name = request.node.callspec.params["dataset"]
    rows, about = expected(unpacked, archive, name)
    now, said = read_all(dataset)
    assert said == about
    assert now.keys() == rows.keys()
    for array, values in rows.items():  # a matrix product may differ in its last bits elsewhere
        assert np.allclose(now[array], values, rtol=1e-5, atol=1e-6, equal_nan=True), array
    report = verify_dataset(dataset)
    assert report.findings == [] and report.missing == said["holes"]
    assert dataset.snapshot(str(said["version"])).version == said["version"]


@EVERY
def test_it_is_extended(dataset: Dataset) -> None:
    """The partial unit is made again, with the same first rows, and more come after it."""
    before, said = read_all(dataset)
    version = str(said["version"])
    grown = 2 * UNIT + 2
    made = fill(dataset, grown, run_id="today", invalid=(INVALID,))
    assert made == [1, 2]
    rows, about = read_all(dataset)
    count = len(next(iter(before.values())))
    assert count == SAMPLES
    for array, values in before.items():
        if array != "label":  # of samples beyond a labels' version there is none
            assert np.array_equal(rows[array][:count], values, equal_nan=True), array
    assert about["valid"][:count] == said["valid"][:count]  # type: ignore[index]
    earlier = dataset.snapshot(version)
    assert earlier.version == version
    assert verify_dataset(dataset).findings == []
    assert dataset.drop(["key/5"], reason="today") == 1
    extra = all_keys(dataset) - expected_keys(dataset)
    assert {key.partition("/")[0] for key in extra} <= {"codecs", "drops", "labels", "pins"}


@EVERY
def test_a_damaged_unit_of_it_is_made_again(dataset: Dataset) -> None:
    key = dataset.store.unit_keys(0)[0]
    good = dataset.files.read(key)
    dataset.files.write(key, bytes(len(good)))
    assert verify_dataset(dataset).damaged_units == [0]
    dataset.invalidate(0)
    assert fill(dataset, SAMPLES, run_id="today", invalid=(INVALID,)) == [0]
    assert verify_dataset(dataset).findings == []
    assert dataset.files.read(key) == good or _is_computed(dataset.recipe.name)


def test_what_this_version_makes_is_what_the_archive_holds(unpacked: Path, tmp_path: Path) -> None:
    """The same keys, folders, records' digests and rows: the format did not move unnoticed."""
    archive = f"v{FORMAT_VERSION}.tar.gz"
    for made in make_all(tmp_path):
        then = Dataset.open(str(unpacked / archive / made.recipe.folder))
        if not _is_computed(made.recipe.name):
            assert made.snapshot().version == then.snapshot().version, made.url
        assert made.about.differences(then.about) == []
        for unit, commit in made.committed().items():
            assert commit.digests.keys() == then.committed()[unit].digests.keys()
            if not _is_computed(made.recipe.name):
                assert commit.digests == then.committed()[unit].digests, made.url
            assert commit.__dict__.keys() == then.committed()[unit].__dict__.keys()


def test_gc_knows_pins_of_then(unpacked: Path, tmp_path: Path) -> None:
    name = next(name for name in listed("v1.tar.gz") if name.startswith("history"))
    shutil.copytree(unpacked / "v1.tar.gz" / name, tmp_path / name)
    assert [item.kind for item in collect.plan(str(tmp_path), superseded=True)] == []


TURN = """
import sys
from tests.feature_store import fill
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.verbs.verify import verify_dataset
url, samples, run, drop, verify = sys.argv[1:]
dataset = Dataset.open(url, fsync=False)
fill(dataset, int(samples), run_id=run, invalid=(7,))
if drop:
    dataset.drop([drop], reason=run)
snapshot = dataset.snapshot()
assert snapshot.holes == () and not (verify and verify_dataset(dataset).findings)
print(snapshot.version, snapshot.valid.sum(), float(read_rows(snapshot, "emb", range(6)).sum()))
"""


@pytest.mark.skipif(not OLD, reason="DREAMSHARD_OLD names no checkout of an earlier version")
@pytest.mark.parametrize("layout_format", ["zarr", "tar"])
def test_old_and_new_take_turns_on_one_root(tmp_path: Path, layout_format: str) -> None:
    from tests.feature_store import make_dataset, make_recipe

    levels = LEVELS[:2]
    recipe = make_recipe(layout_format=layout_format, count=60, levels=levels)
    dataset = make_dataset(tmp_path, recipe=recipe, levels=levels)

    new, seen = str(ROOT), ""

    def turn(checkout: str, samples: int, run: str, drop: str = "") -> str:
        # Before 2026-11-26 a tar member's JSON had another form: that version reads, not verifies.
        verify = "yes" if layout_format == "zarr" or checkout == new else ""
        command = [sys.executable, "-c", TURN, dataset.url, str(samples), run, drop, verify]
        environment = {**os.environ, "PYTHONPATH": checkout}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    for number, samples in enumerate((8, 14, 15, 33, 40, 58)):
        checkout = (OLD, new)[number % 2]
        seen = turn(checkout, samples, f"run-{number}", drop=f"key/{number}")
        other = turn((new, OLD)[number % 2], samples, f"look-{number}")
        assert other == seen
    rows = make_batch(0, 6, levels=levels).levels["emb"]
    assert np.isclose(float(seen.split()[-1]), float(rows.sum(dtype=np.float64)), atol=0.05)
    assert verify_dataset(dataset).findings == []
