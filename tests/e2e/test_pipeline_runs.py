"""The offline pipeline end to end, with the noise teacher: same bytes whatever happens to it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamshard.config import to_yaml
from dreamshard.errors import DataError
from pipeline import run as main_path
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request.config import EncodeConfig, OfflineConfig, SynthesizeConfig
from pipeline.run import run
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from storage.verbs.verify import verify_dataset
from tests.processes import children_named, when

ROOT = Path(__file__).resolve().parents[2]
PER_UNIT = 16

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    pytest.importorskip("ray")
    with cluster(RayConfig(), num_cpus=4, num_gpus=0):
        yield


def encode_config(root: Path, *, delay_s: float = 0.0, **changes: object) -> EncodeConfig:
    teacher = TeacherConfig(
        kind="noise", levels=["s2", "s4"], settings={"channels": 4, "delay_s": delay_s}
    )
    values: dict[str, object] = {
        "name": "noise",
        "root": str(root),
        "run_dir": str(root.parent / f"{root.name}-run"),
        "teacher": teacher,
        "image": ImageConfig(size=16),
        "source": SourceConfig(kind="digits"),
        "samples": 8 * PER_UNIT,
        "samples_per_unit": PER_UNIT,
        "micro_batch": 8,
        "actors": 2,
        "fsync": False,
        **changes,
    }
    return EncodeConfig(**values)  # pyright: ignore[reportArgumentType]


def make(config: OfflineConfig, *, code: int = 0) -> Dataset:
    assert run(config, command=["dreamshard", "test"])[0] == code
    return dataset_under(config.root)


def dataset_under(root: str) -> Dataset:
    (folder,) = [path for path in Path(root).iterdir() if (path / "dataset.json").exists()]
    return Dataset.open(str(folder))


def hashes(dataset: Dataset) -> dict[str, str]:
    """Digest every file with data in it."""
    base = Path(dataset.url)
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((base / "data.zarr").rglob("*"))
        if path.is_file()
    }


def check_whole(dataset: Dataset, num_samples: int) -> None:
    """Every sample once, nothing missing, nothing left lying about."""
    snapshot = dataset.snapshot()
    assert snapshot.num_samples == num_samples and not len(snapshot.holes)
    commits = dataset.committed()
    assert [commits[unit].first for unit in sorted(commits)] == list(
        range(0, num_samples, dataset.samples_per_unit)
    )
    keys = [key for unit in sorted(commits) for key in commits[unit].keys]
    assert len(keys) == len(set(keys)) == num_samples
    report = verify_dataset(dataset)
    assert not report.findings and not report.missing and not report.notes
    assert not (Path(dataset.url) / "staging").exists()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one undisturbed actor makes."""
    dataset = make(encode_config(tmp_path_factory.mktemp("reference") / "data", actors=1))
    check_whole(dataset, 8 * PER_UNIT)
    return hashes(dataset)


def test_two_actors_make_the_same_bytes(tmp_path: Path, reference: dict[str, str]) -> None:
    dataset = make(encode_config(tmp_path / "data"))
    assert hashes(dataset) == reference
    hosts = {commit.run_id for commit in dataset.committed().values()}
    assert len(hosts) == 1


def num_commits(root: Path) -> int:
    return sum(1 for path in root.glob("*/commits/*/*.json") if path.is_file())


def test_a_killed_actor_changes_nothing(tmp_path: Path, reference: dict[str, str]) -> None:
    config = encode_config(tmp_path / "data", delay_s=0.1)

    def kill() -> None:
        when(lambda: num_commits(tmp_path / "data") >= 2)
        os.kill(children_named("ShardActor")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    dataset = make(config)
    killer.join()
    check_whole(dataset, 8 * PER_UNIT)
    assert hashes(dataset) == reference


def test_a_killed_driver_is_taken_over(tmp_path: Path, reference: dict[str, str]) -> None:
    config = encode_config(tmp_path / "data", delay_s=0.1)
    driver = start_driver(config, tmp_path)
    when(lambda: num_commits(tmp_path / "data") >= 2)
    driver.kill()
    driver.wait()
    before = num_commits(tmp_path / "data")
    assert before < 8
    dataset = make(config)
    check_whole(dataset, 8 * PER_UNIT)
    assert hashes(dataset) == reference
    runs = [commit.run_id for commit in dataset.committed().values()]
    assert len(set(runs)) == 2 and runs.count(runs[0]) >= before


def test_asked_to_stop_it_finishes_what_it_began(tmp_path: Path, reference: dict[str, str]) -> None:
    config = encode_config(tmp_path / "data", delay_s=0.1)
    driver = start_driver(config, tmp_path)
    when(lambda: num_commits(tmp_path / "data") >= 1)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command goes on" in output and "next: dreamshard encode" in output
    committed = num_commits(tmp_path / "data")
    assert 1 <= committed < 8
    assert not list(Path(dataset_under(config.root).url).rglob("staging/*"))
    dataset = make(config)
    assert hashes(dataset) == reference


def start_driver(config: EncodeConfig, folder: Path) -> subprocess.Popen[str]:
    """Run the script in a process of its own, on this session's cluster."""
    import ray

    (folder / "config.yaml").write_text(to_yaml(config))
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, ROOT / "pipeline" / "encode.py", "--config", folder / "config.yaml"],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_more_samples_extend_and_the_same_again_starts_nothing(
    tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    root = tmp_path / "data"
    first = make(encode_config(root, samples=3 * PER_UNIT - 5))
    check_whole(first, 3 * PER_UNIT)
    untouched = {
        path: path.stat().st_mtime_ns
        for path in Path(first.url).rglob("c/*/**/*")
        if path.is_file()
    }
    dataset = make(encode_config(root))
    assert dataset.url == first.url
    check_whole(dataset, 8 * PER_UNIT)
    assert hashes(dataset) == reference
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in untouched.items())

    def no_cluster(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(main_path, "cluster", no_cluster)
    capsys.readouterr()
    for samples in (8 * PER_UNIT, PER_UNIT, 1):
        make(encode_config(root, samples=samples))
        assert capsys.readouterr().out.startswith("already there: 128 samples")


def test_the_end_of_a_source_is_a_partial_unit(tmp_path: Path) -> None:
    source = SourceConfig(kind="digits", split="heldout")
    dataset = make(
        encode_config(tmp_path / "data", source=source, samples=None, samples_per_unit=64)
    )
    check_whole(dataset, 500)
    assert dataset.committed()[7].count == 500 - 7 * 64


def test_a_damaged_shard_is_made_again_and_only_it(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    config = encode_config(tmp_path / "data")
    dataset = make(config)
    (victim,) = Path(dataset.url).glob("data.zarr/b4/c/5/0/0/0")
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    report = verify_dataset(dataset)
    assert report.damaged_units == [5]
    assert all("data.zarr/b4/" in finding.path for finding in report.findings)
    dataset.invalidate(5)  # what `dreamshard verify --repair` does
    stamps = {
        path: path.stat().st_mtime_ns for path in Path(dataset.url).glob("data.zarr/*/c/4/**")
    }
    again = make(config)
    assert hashes(again) == reference
    assert again.committed()[5].version == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def parquet_with(path: Path, damaged: set[int], count: int) -> SourceConfig:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), 99, np.uint8)).save(buffer, format="JPEG")
    good = buffer.getvalue()
    images = [good[:50] if row in damaged else good for row in range(count)]
    table = pa.table({"key": [f"k{row}" for row in range(count)], "image": images})
    pq.write_table(table, path)
    return SourceConfig(kind="parquet", path=str(path))


def test_corrupt_images_are_rows_that_say_so(tmp_path: Path) -> None:
    source = parquet_with(tmp_path / "in.parquet", {3, 20}, 64)
    config = encode_config(tmp_path / "data", source=source, samples=None, max_invalid_share=2 / 64)
    dataset = make(config)
    snapshot = dataset.snapshot()
    assert np.flatnonzero(~snapshot.valid).tolist() == [3, 20]
    assert {row: text.split(":")[0] for row, text in snapshot.errors.items()} == {
        3: "k3",
        20: "k20",
    }
    (part,) = Path(dataset.url).glob("manifest/part-*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [row["key"] for row in rows if not row["valid"]] == ["k3", "k20"]


def test_too_many_corrupt_images_fail_the_run(tmp_path: Path) -> None:
    source = parquet_with(tmp_path / "in.parquet", set(range(0, 64, 8)), 64)
    config = encode_config(tmp_path / "data", source=source, samples=None, max_invalid_share=0.1)
    with pytest.raises(DataError, match=r"max_invalid_share: got \d+ unusable images of 64"):
        run(config, command=["test"])
    config.max_invalid_share = 0.2
    dataset = make(config)
    check_whole(dataset, 64)
    config.max_invalid_share = 0.1  # and still does when nothing is left to make
    with pytest.raises(DataError, match="got 8 unusable images of 64 .12.50%., allowed 10.00%"):
        run(config, command=["test"])


def test_a_unit_that_cannot_be_made_is_left_out_and_listed(tmp_path: Path) -> None:
    flag = tmp_path / "disk is gone"
    flag.touch()
    source = SourceConfig(kind="tests.gone_source:GoneSource", path=str(flag), split="train")
    config = encode_config(tmp_path / "data", source=source, samples=3 * PER_UNIT, max_attempts=2)
    with pytest.raises(DataError, match=r"1 units could not be made.*\n  1: .*disk went away"):
        run(config, command=["test"])
    dataset = dataset_under(config.root)
    assert list(dataset.quarantined()) == [1] and "disk went away" in dataset.quarantined()[1]
    flag.unlink()
    check_whole(make(config), 3 * PER_UNIT)


def test_a_sample_that_is_gone_costs_itself(tmp_path: Path) -> None:
    files = tmp_path / "images"
    files.mkdir()
    for number in range(2 * PER_UNIT):
        Image.new("L", (16, 16), number).save(files / f"{number:03d}.png")
    source = SourceConfig(kind="folder", path=str(files))
    config = encode_config(tmp_path / "data", source=source, samples=None, max_invalid_share=0.1)
    request = main_path.resolve(config.request())
    (files / "020.png").unlink()  # listed, then gone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_path, "resolve", lambda config: request)
        dataset = make(config)
    snapshot = dataset.snapshot()
    assert np.flatnonzero(~snapshot.valid).tolist() == [20] and "020.png" in snapshot.errors[20]


def test_views_are_samples_of_their_own(tmp_path: Path) -> None:
    config = encode_config(tmp_path / "data", image=ImageConfig(size=16, views=3), samples=48)
    dataset = make(config)
    keys = dataset.committed()[0].keys
    assert keys[:4] == ["digits-00000.v0", "digits-00000.v1", "digits-00000.v2", keys[3]]
    check_whole(dataset, 48)


def test_synthesize_has_no_end(tmp_path: Path) -> None:
    teacher = TeacherConfig(kind="noise", levels=["w"], settings={"image_size": 16})
    config = SynthesizeConfig(
        name="dream",
        root=str(tmp_path / "data"),
        run_dir=str(tmp_path / "run"),
        teacher=teacher,
        samples=40,
        samples_per_unit=PER_UNIT,
        micro_batch=8,
        fsync=False,
    )
    check_whole(make(config), 48)
