"""Read-outs learn masks; scores are torchmetrics' own; bad masks are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.bench.bench import SUBJECT, UNTRAINED
from distill.configs.tasks import SegmentationConfig
from distill.configs.train import OptimizerConfig
from distill.modules.heads import FcnHead, UperHead, save_head
from distill.tasks.segmentation import (
    COUNTS,
    PICTURE,
    Segmentation,
    Segmenter,
    palette,
    scores_of,
)
from dreamshard.errors import ConfigError, DataError
from tests.unit.distill.tasks.shape_bench import CLASSES, ShapeBench
from tests.unit.pipeline.masked_shapes import VOID

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("torchmetrics")


def settings(**changes: Any) -> SegmentationConfig:
    chosen: dict[str, Any] = {
        "classes": CLASSES,
        "ignore": VOID,
        "steps": 30,
        "batch_size": 8,
        "width": 16,
        "pictures": 2,
        "optimizer": OptimizerConfig(lr=5e-3),
    }
    return SegmentationConfig(**(chosen | changes))


def test_it_learns_draws_and_tables(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    task, reports = Segmentation(settings(shots=[4, 0], steps=60), seed=0), []
    result = task.run(bench, report=lambda: reports.append(1))
    assert len(reports) == task.count(bench) == 2 * 2 * 60
    row = result["rows"][SUBJECT]
    assert list(row) == ["4", "all"] and row["4"]["images"] == 4
    assert row["all"]["mean"] > 50 and row["all"]["accuracy"] > 80
    assert result["rows"][UNTRAINED] == row, "the same network from the same seed"
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / COUNTS) as counts:
        assert counts["keys"].tolist() == bench.images("heldout").keys
        for column, cell in row.items():
            total = counts[f"{SUBJECT}/{column}"].sum(axis=0).astype(float)
            assert scores_of(total)["mean"] == cell["mean"]
    means, classes = task.tables(result)
    assert list(means.header) == ["network", "4 images", "all images"]
    assert list(classes.header) == ["network", *CLASSES]


def test_bf16_learns_in_half_precision_and_is_judged_in_full(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    task = Segmentation(settings(steps=60, pictures=0, precision="bf16"), seed=0)
    network = task._build(bench.networks[SUBJECT](), bench, subject=True).train()
    met: set[torch.dtype] = set()
    network.head.register_forward_pre_hook(lambda _, maps: met.update(m.dtype for m in maps[0]))
    rows = np.arange(48)
    task._train(network, bench.images("train"), rows=rows, bench=bench, report=lambda: None)
    assert met == {torch.bfloat16}
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert network(torch.randn(2, 3, 16, 16)).dtype == torch.float32
    counts = task._judge(network, bench.images("heldout")).counts
    assert torch.bfloat16 in met and torch.float32 in met
    assert scores_of(counts.sum(axis=0).astype(float))["mean"] > 50


@pytest.mark.parametrize("head", ["fcn", "upernet"])
def test_a_frozen_backbone_stays_as_it_was(head: Any, tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    task = Segmentation(settings(head=head, frozen=True, steps=2, pictures=0), seed=0)
    student = bench.networks[SUBJECT]()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    network = task._build(student, bench, subject=True).train()
    rows = np.arange(8)
    task._train(network, bench.images("train"), rows=rows, bench=bench, report=lambda: None)
    for name, value in network.student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not (tmp_path / PICTURE).exists()


def test_scores_are_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    guess = torch.randint(0, 3, (4, 9, 9), generator=generator)
    truth = torch.randint(0, 3, (4, 9, 9), generator=generator)
    truth[0] = VOID
    confusion = MulticlassConfusionMatrix(3, ignore_index=VOID)(guess, truth)
    expected = MulticlassJaccardIndex(3, ignore_index=VOID)(guess, truth)
    scores = scores_of(confusion.numpy().astype(np.float64))
    assert scores["mean"] == pytest.approx(100 * float(expected), rel=1e-5)
    # A class that is neither there nor found is left out of the mean.
    scores = scores_of(np.array([[3.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    assert scores["iou"] == [75.0, 80.0, None] and scores["mean"] == 77.5


def test_heads_have_the_resolution_of_their_maps() -> None:
    maps = [torch.randn(2, channels, size, size) for channels, size in ((8, 16), (12, 8), (16, 4))]
    assert UperHead([8, 12, 16], num_classes=5, width=16)(maps).shape == (2, 5, 16, 16)
    assert FcnHead([8, 12, 16], num_classes=5)(maps).shape == (2, 5, 4, 4)
    assert UperHead([8, 12], num_classes=5, width=16)(maps[:2]).shape == (2, 5, 16, 16)


def test_a_distilled_head_is_carried_over(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    head = UperHead([8, 12, 16], num_classes=3, width=16)
    save_head(head, tmp_path, num_classes=3, width=16)
    with pytest.raises(ConfigError, match=r"segmentation\.head: got distilled"):
        Segmentation(settings(head="distilled"), seed=0).run(bench)
    bench.head = tmp_path
    task = Segmentation(settings(head="distilled"), seed=0)
    network = task._build(bench.student, bench, subject=True)
    for name, value in network.head.state_dict().items():
        assert torch.equal(value, head.state_dict()[name])
    baseline = task._build(bench.student, bench, subject=False).head.state_dict()
    assert any(not torch.equal(value, head.state_dict()[n]) for n, value in baseline.items())
    with pytest.raises(ConfigError, match=r"segmentation\.width: got another head, allowed 16"):
        Segmentation(settings(head="distilled", width=24), seed=0).run(bench)


def test_bad_masks_and_too_many_shots_are_refused(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    with pytest.raises(DataError, match=r"masks: got classes \[2\]"):
        Segmentation(settings(classes=["ground", "bright"]), seed=0).run(bench)
    many = ShapeBench(tmp_path, train=300)
    masks = many.images("train").masks
    assert masks is not None
    masks[290] = 7  # beyond the first 256, where a look at the first ones would end
    with pytest.raises(DataError, match=r"masks: got classes \[7\] in shape-290"):
        Segmentation(settings(steps=1), seed=0).run(many)
    masks[290] = VOID
    with pytest.raises(DataError, match=r"nothing but 9 .* in shape-290"):
        Segmentation(settings(steps=1), seed=0).run(many)
    with pytest.raises(ConfigError, match=r"segmentation\.shots: got \[99\], allowed up to 48"):
        Segmentation(settings(shots=[99]), seed=0).run(bench)
    bench._images["train"] = dataclasses.replace(bench.images("train"), masks=None)
    with pytest.raises(DataError, match="train_images: got images without masks"):
        Segmentation(settings(), seed=0).run(bench)


def test_pixels_without_a_class_do_not_count(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    batch = bench.images("heldout")
    assert batch.masks is not None
    task = Segmentation(settings(), seed=0)

    class Zero(torch.nn.Module):
        def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
            return torch.eye(3)[0].view(1, 3, 1, 1).expand(len(maps[0]), 3, 16, 16)

    found = task._judge(Segmenter(bench.student, Zero(), frozen=True).eval(), batch)
    known = batch.masks != VOID
    assert found.counts.shape == (len(batch), 3, 3) and found.keys == batch.keys
    per_image = found.counts.sum(axis=(1, 2))
    assert np.array_equal(per_image, known.reshape(len(batch), -1).sum(axis=1))
    scores = scores_of(found.counts.sum(axis=0).astype(float))
    assert scores["accuracy"] == pytest.approx(100 * float((batch.masks[known] == 0).mean()))


def test_colours_differ_and_void_is_black() -> None:
    colours = palette(30)
    assert len({tuple(colour) for colour in colours[:30]}) == 30
    assert not colours[VOID * 10 :].any()


def masked(bench: ShapeBench, change: dict[int, int], *, splits: tuple[str, ...]) -> None:
    """Change the values of a bench's masks."""
    for split in splits:
        images = bench._images[split]
        assert images.masks is not None
        masks = images.masks.copy()
        for old, new in change.items():
            masks[images.masks == old] = new
        bench._images[split] = dataclasses.replace(images, masks=masks)


def test_masks_without_a_class_to_learn_are_refused(tmp_path: Path) -> None:
    """0/255 masks: what is drawn is taken for void."""
    both = ("train", "heldout")
    bench = ShapeBench(tmp_path)
    masked(bench, {1: 255, 2: 255, VOID: 255}, splits=both)
    config = settings(classes=["ground", "ink"], ignore=255)
    with pytest.raises(DataError, match=r"class ink, .* pixels are 255, which is ignored.*ignore"):
        Segmentation(config, seed=0).run(bench)
    with pytest.raises(DataError, match="class ink"):
        Segmentation(dataclasses.replace(config, shots=[4]), seed=0).run(bench)
    bench = ShapeBench(tmp_path)
    masked(bench, {1: 255, VOID: 255}, splits=both)  # one of three classes
    three = settings(ignore=255)
    with pytest.raises(DataError, match=f"class {CLASSES[1]},"):
        Segmentation(three, seed=0).run(bench)
    fewer = dataclasses.replace(three, absent=[CLASSES[1]], steps=1, pictures=0)
    row = Segmentation(fewer, seed=0).run(bench)["rows"][SUBJECT]["all"]
    assert set(row["classes"]) == set(CLASSES)


def test_masks_that_judge_nothing_are_refused_and_differences_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = ShapeBench(tmp_path)
    masked(bench, {1: VOID, 2: VOID}, splits=("heldout",))
    with pytest.raises(DataError, match="heldout_images: got masks without a pixel of class"):
        Segmentation(settings(), seed=0).run(bench)
    bench = ShapeBench(tmp_path)
    masked(bench, {1: 0}, splits=("heldout",))
    with caplog.at_level("WARNING"):
        Segmentation(settings(steps=1, pictures=0), seed=0).run(bench)
    assert f"heldout_images: no pixel of class {CLASSES[1]}, which is learnt" in caplog.text
    assert [p.key for p in settings(absent=["x"]).problems()] == ["absent"]
