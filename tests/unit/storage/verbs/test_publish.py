"""A published dataset is read by ours, by webdataset and by datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from dreamshard.console.publish import main
from dreamshard.errors import ConfigError, DataError
from dreamshard.owner.alone import only_one
from storage.catalog import find_dataset
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.verbs import publish as published
from storage.verbs.verify import verify_dataset
from tests.feature_store import fill, make_dataset

pytest.importorskip("PIL", reason="needs pillow")


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    made = make_dataset(tmp_path / "data")
    fill(made, 20, invalid=(3,))
    return Dataset.open(made.url)


def front_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_published_dataset_is_whole_and_says_what_it_is(source: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([source.url, "--out", str(out), "--samples", "12"]) == 0
    copy = find_dataset(str(out))
    assert not verify_dataset(copy).findings
    assert (copy.snapshot().num_samples, copy.snapshot().num_invalid) == (12, 1)
    ours, theirs = (read_rows(d.snapshot(), "up.1.t100", range(12)) for d in (source, copy))
    np.testing.assert_array_equal(ours, theirs)
    assert front_of(out)["license"] == "other" and front_of(out)["license_name"] == "test"
    assert source.url not in "".join(
        path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".md")
    )
    assert not (out / "pins").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_the_preview_has_pictures_the_hub_shows(source: Dataset) -> None:
    table = pq.read_table(__import__("io").BytesIO(published.preview(source.snapshot())))
    assert table.num_rows == 19 and "key/3" not in table["key"].to_pylist()
    kinds = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert kinds["image"] == kinds["up_1_t100"] == {"_type": "Image"}
    assert table["image"][0].as_py()["bytes"].startswith(b"\x89PNG")


def test_other_libraries_read_it(source: Dataset, tmp_path: Path, monkeypatch) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    out = published.publish_dataset(source, tmp_path / "out")
    shards = webdataset.WebDataset(f"{out}/shards/{{000000..000003}}.tar", shardshuffle=False)
    samples = list(shards.decode())
    assert len(samples) == 20
    np.testing.assert_array_equal(
        samples[7]["up.1.t100.npy"], read_rows(source.snapshot(), "up.1.t100", [7])[0]
    )
    datasets = pytest.importorskip("datasets", reason="needs dreamshard[hf]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    shown = datasets.load_dataset(str(out), "preview", **options)
    assert len(shown) == 19 and shown[0]["image"].size == (96, 96)
    assert len(datasets.load_dataset(str(out), "manifest", **options)) == 20
    files = {"data_files": f"{out}/shards/*.tar", "streaming": True}
    assert len(list(datasets.load_dataset("webdataset", **files, **options))) == 20


def test_what_is_there_is_kept_and_what_was_left_is_gone_on_with(
    source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(published, "preview", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            published.publish_dataset(source, out)
    assert not out.exists()
    published.publish_dataset(source, out)
    with pytest.raises(ConfigError, match="does not exist yet"):
        published.publish_dataset(source, out)


def test_of_two_at_once_one_is_refused(source: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        only_one(tmp_path / ".out.publishing", key="out"),
        pytest.raises(ConfigError, match=r"out: got .*in which process \d+ on"),
    ):
        published.publish_dataset(source, out)
    assert published.publish_dataset(source, out) == out
    assert not list(tmp_path.glob(".out.*"))


def test_a_card_holds_no_html_of_a_file_s(source: Dataset) -> None:
    card = published.dataset_card(source, source.snapshot(), name="<script>x</script>|a")
    assert "<script>" not in card.split("---\n", 2)[2]


def test_a_teacher_is_published_without_its_run(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    (teacher / "run").mkdir(parents=True)
    (teacher / "teacher_card.json").write_text('{"licence": "MIT", "steps": 5}')
    (teacher / "config.json").write_text("{}")
    (teacher / "run" / "owner.json").write_text("{}")
    assert main([str(teacher), "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "teacher_card.json"]
    assert front_of(tmp_path / "out")["license"] == "mit"
    (teacher / "secret.json").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="allowed a file"):
        main([str(teacher), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
