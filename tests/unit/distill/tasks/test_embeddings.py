"""Cluster alignment, MMD, transfer and pictures on a bench, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distill.bench.bench import Drawn, FeatureSets, Split
from distill.bench.representations import embed, pixels, student_extractor
from distill.configs.embeddings import (
    ClusterAlignmentConfig,
    MmdConfig,
    PicturesConfig,
    TransferConfig,
    TransferSetConfig,
)
from distill.configs.evaluate import EvaluateConfig
from distill.configs.tasks import FrozenProbeConfig
from distill.probes.frozen import frozen_probe
from distill.tasks.cluster_alignment import ClusterAlignment
from distill.tasks.mmd import Mmd
from distill.tasks.pictures import Pictures
from distill.tasks.transfer import Transfer
from dreamshard.config import load_config
from dreamshard.console.report import evaluation
from dreamshard.errors import ConfigError, DataError
from pipeline.images.source import SourceConfig
from tests.unit.distill.tasks.shape_bench import ShapeBench


class EmbeddingBench(ShapeBench):
    """Draw from the splits of a `ShapeBench`; any other source is its training images, dimmed."""

    def draw(self, split: Split | SourceConfig, *, count: int, key: str = "") -> Drawn:
        images = self._images["train" if isinstance(split, SourceConfig) else split]
        pixels = images.images[:count] // (2 if isinstance(split, SourceConfig) else 1)
        return Drawn(pixels, None if images.labels is None else images.labels[:count], ("a",))

    def embed(self, images: np.ndarray, *, first: int = 0) -> dict[str, np.ndarray]:
        extract = student_extractor(self.student, device=self.device)
        extractors = dict(zip(self.names, (pixels, extract, extract), strict=True))
        return embed(images, extractors=extractors, micro_batch=16, first_index=first)

    def feature_sets(self, train: Any, heldout: Any, *, prefix: str) -> FeatureSets:
        self.asked = [*getattr(self, "asked", []), prefix]
        return self.features


def test_clusters_fill_a_table(tmp_path: Path) -> None:
    task = ClusterAlignment(ClusterAlignmentConfig(runs=2), seed=0)
    bench = EmbeddingBench(tmp_path)
    result = task.run(bench)
    assert list(result["rows"]) == bench.names and result["clusters"] == 2
    assert 50 <= result["rows"]["pixels"]["accuracy"]["mean"] <= 100
    (table,) = task.tables(result)
    assert len(table.lines) == 3 == task.count(bench)
    assert evaluation.figures("cluster_alignment", result)["pixels"].keys() == {
        "accuracy",
        "information",
    }


@pytest.mark.parametrize("kernel", ["rbf", "kid"])
def test_dimmed_images_are_farther_than_real_ones(tmp_path: Path, kernel: Any) -> None:
    task = Mmd(MmdConfig(kernel=kernel, synthetic_images=SourceConfig(kind="digits")), seed=0)
    result = task.run(EmbeddingBench(tmp_path))
    assert result["images"] == {"heldout": 24, "train": 48, "synthetic": 48}
    row = result["rows"]["distilled student"]
    assert row["synthetic"]["mean"] > row["real"]["mean"]
    assert ("width" in row["real"]) == (kernel == "rbf")
    assert len(task.tables(result)[0].lines) == 3
    with pytest.raises(DataError, match="got 1 heldout image, allowed 2 or more"):
        task.config.images = 1
        task.run(EmbeddingBench(tmp_path))


def test_collapsed_embeddings_have_no_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = EmbeddingBench(tmp_path)
    monkeypatch.setattr(
        bench, "embed", lambda images, first: dict.fromkeys(bench.names, np.ones((len(images), 3)))
    )
    task = Mmd(MmdConfig(synthetic_images=SourceConfig(kind="digits")), seed=0)
    result = task.run(bench)
    assert result["rows"]["pixels"] == {"synthetic": None, "real": None}
    assert task.tables(result)[0].lines[0][1:] == ["all alike", "all alike"]
    assert evaluation.figures("mmd", result)["pixels"] == {}


def test_transfer_has_a_column_per_dataset_and_their_mean(tmp_path: Path) -> None:
    datasets = [
        TransferSetConfig(name="one"),
        TransferSetConfig(name="two", measure="class_mean"),
    ]
    config = TransferConfig(datasets=datasets, probe=FrozenProbeConfig(penalties=[0.1]))
    bench, steps = EmbeddingBench(tmp_path), list[int]()
    task = Transfer(config, seed=0)
    result = task.run(bench, report=lambda: steps.append(1))
    assert bench.asked == ["transfer.datasets.0.", "transfer.datasets.1."]
    row = result["rows"]["pixels"]
    assert row["mean"]["mean"] == pytest.approx((row["one"]["mean"] + row["two"]["mean"]) / 2)
    assert len(steps) == task.count(bench)
    (table,) = task.tables(result)
    assert table.header == ["representation", "one", "two, mean of classes", "mean"]


def test_the_mean_over_classes_does_not_weigh_them() -> None:
    """Nine of class 0 right and one of class 1 wrong: 90 % of the images, 50 % of the classes."""
    train, labels = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0), np.repeat([0, 1], 5)
    heldout, truth = np.tile(np.float32([[1, 0]]), (10, 1)), np.array([0] * 9 + [1])
    how: dict[str, Any] = {"penalties": [0.01], "selection": 0.2, "iterations": 50, "seed": 0}
    found = [
        frozen_probe(train, labels, heldout, truth, balanced=each, **how).accuracy
        for each in (False, True)
    ]
    assert found == pytest.approx([90.0, 50.0])


def test_pictures_are_left_in_the_folder(tmp_path: Path) -> None:
    config = PicturesConfig(
        images=24, perplexity=5, queries=3, shown=4, clusters=5, kinds=["neighbours", "clusters"]
    )
    task = Pictures(config, seed=0)
    bench = EmbeddingBench(tmp_path)
    result = task.run(bench)
    assert result["files"][0] == "pictures-neighbours-pixels.png" and len(result["files"]) == 6
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in result["files"])
    assert 0 <= result["rows"]["pixels"]["same class"] <= 100
    assert result["rows"]["pixels"]["purity"] >= 50
    material: Any = SimpleNamespace(
        results={"pictures": result}, probe=None, evaluate=SimpleNamespace(path=tmp_path)
    )
    (section,) = evaluation.tasks(material)
    assert len(section.strips) == 6 and not section.drawings and not evaluation.tiles(material)
    for kind, key in (
        ("clusters", "clusters"),
        ("neighbours", "shown"),
        ("embedding", "perplexity"),
    ):
        large = PicturesConfig(kinds=[kind], **{key: 60})
        with pytest.raises(DataError, match=rf"pictures\.{key}: got 60.* for 24 held-out images"):
            Pictures(large, seed=0).run(bench)


def test_neighbours_are_the_nearest_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamshard import pictures

    seen = []
    monkeypatch.setattr(pictures, "image_grid", lambda cells, **rest: seen.append(cells) or b"")
    angles = np.radians([0, 10, 25, 90])
    near = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    row: dict[str, float] = {}
    task = Pictures(PicturesConfig(kinds=["neighbours"], queries=2, shown=2), seed=0)
    task._neighbours(near, Drawn(images, np.array([0, 0, 1, 1])), row)
    assert seen[0][:, 0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0]
    # Of 0: 1, 2; of 1: 0, 2; of 2: 1, 0; of 3: 2, 1. Same class: 1 + 1 + 0 + 1 of 8.
    assert row == {"same class": 37.5}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--tasks", "[mmd]"], r"mmd\.synthetic_images: got nothing"),
        (["--tasks", "[transfer]"], r"transfer\.datasets: got \[\]"),
        (["--tasks", "[knn]", "--mmd.kernel", "kid"], r"mmd\.kernel.*tasks"),
        (["--tasks", "[pictures]", "--pictures.kinds", "[clusters]", "--pictures.queries", "3"],
         r"pictures\.queries.*neighbours"),
        (["--tasks", "[pictures]", "--pictures.method", "umap", "--pictures.perplexity", "9"],
         r"pictures\.perplexity.*tsne"),
        (["--tasks", "[pictures]", "--pictures.perplexity", "2000"], r"perplexity.*below images"),
        (["--tasks", "[mmd]", "--mmd.dataset", "x", "--mmd.synthetic_images.path", "y"],
         r"mmd\.dataset.*beside synthetic_images"),
        (["--tasks", "[transfer]", "--transfer.datasets",
          "[{name: a, train_images: {kind: digits, class_folders: true}}]"],
         r"transfer\.datasets\.0\.train_images\.class_folders"),
        (["--tasks", "[transfer]", "--transfer.datasets", "[{name: a}, {name: a}]"],
         r"transfer\.datasets.*name of its own"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(given: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(EvaluateConfig, given, prog="x", description="")


def test_umap_is_asked_for_before_any_image_is_read() -> None:
    pytest.importorskip("sklearn")
    try:
        import umap  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(ConfigError, match=r"pictures\.method.*pip install umap-learn"):
            Pictures(PicturesConfig(method="umap"), seed=0)
