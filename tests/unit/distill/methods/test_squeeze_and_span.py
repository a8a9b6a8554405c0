"""Squeeze-and-Span: who sees what, switches of paper and code, and real images in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.configs.squeeze import SqueezeAndSpanConfig
from distill.configs.train import DataConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.data.sets import REAL
from distill.methods.build import build_method, method_class
from distill.train import train
from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS, VECTOR, make_dataset

SMALL = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 10]})
TINY: dict[str, Any] = {"width": 12, "squeeze_width": 8, "projector_layers": 3}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), levels=(*LEVELS, VECTOR))


def build(data: DataConfig, **settings: Any) -> Any:
    config = SqueezeAndSpanConfig(**(TINY | settings))
    kind = method_class("squeeze_and_span")
    training_set = open_training_set(data, needs=kind.needs(config))
    return build_method(kind, config, student=SMALL, training_set=training_set, seed=0)


def tensors(count: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    targets = {level.name: torch.randn(count, *level.shape) for level in (*LEVELS, VECTOR)}
    images = torch.randn(2, count, 3, *IMAGE_SIZE)
    return images[0], targets | {REAL: images[1]}


def test_alpha_mixes_squeeze_and_span(vectors: Dataset) -> None:
    method = build(DataConfig(dataset=vectors.url, real=vectors.url), syn_ratio=0.25)
    terms = method(*tensors())
    mixed = 0.25 * terms["squeeze.loss"] + 0.75 * terms["span.loss"]
    torch.testing.assert_close(terms["loss"], mixed)


def test_squeeze_alone_has_no_factor_and_needs_no_real_images(vectors: Dataset) -> None:
    method = build(DataConfig(dataset=vectors.url), syn_ratio=1.0)
    images, targets = tensors()
    terms = method(images, {"w": targets["w"]})
    torch.testing.assert_close(terms["loss"], terms["squeeze.loss"])
    assert method.views == 1


def test_maps_are_averaged_where_there_are_no_vectors(dataset: Dataset) -> None:
    method = build(DataConfig(dataset=dataset.url), syn_ratio=1.0)
    entries = method.objectives["squeeze"].squeeze.entries
    assert [entry.in_features for entry in entries] == [8, 12]
    both = build(DataConfig(dataset=dataset.url), syn_ratio=1.0, fusion="concatenated")
    assert both.objectives["squeeze"].projector[-1].out_features == 20
    assert both.objectives["squeeze"].squeeze is None


def test_the_teacher_s_side_is_regularised_in_the_paper_and_not_in_the_code(vectors) -> None:
    data = DataConfig(dataset=vectors.url)
    images, targets = tensors()
    spreads = []
    for both in (True, False):
        method = build(data, syn_ratio=1.0, reg_teacher_side=both, view="same")
        spreads.append(float(method(images, targets)["squeeze.variance"]))
    assert spreads[0] > spreads[1] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_one_draw_serves_a_whole_batch_only_where_asked_for(vectors: Dataset, shared) -> None:
    method = build(DataConfig(dataset=vectors.url), syn_ratio=1.0, batch_shared_aug=shared)
    seen = []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    one = torch.rand(1, 3, *IMAGE_SIZE)
    method(one.expand(8, -1, -1, -1), tensors()[1])
    spread = float((seen[0] - seen[0][:1]).abs().max())
    assert (spread < 1e-6) is shared


def test_span_uses_the_squeeze_projector_and_sees_real_images_alone(vectors: Dataset) -> None:
    method = build(DataConfig(dataset=vectors.url, real=vectors.url))
    span, squeeze = method.objectives["span"], method.objectives["squeeze"]
    assert span.borrowed[0] is squeeze.projector and not list(span.parameters())
    images, targets = tensors()
    method.eval()
    torch.manual_seed(1)
    first = method(images, targets)
    torch.manual_seed(1)
    other = method(images + 1, targets)
    assert float(first["span.loss"]) == float(other["span.loss"])
    assert float(first["squeeze.loss"]) != float(other["squeeze.loss"])


def test_missing_real_images_and_a_batch_of_one_are_refused(vectors: Dataset, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"data\.real: got nothing, allowed a dataset of real"):
        build(DataConfig(dataset=vectors.url))
    with pytest.raises(ConfigError, match=r"data\.real: got .*no objective of this run"):
        build(DataConfig(dataset=vectors.url, real=vectors.url), syn_ratio=1.0)
    with pytest.raises(ConfigError, match=r"batch_size: got 1, allowed two samples or more"):
        train(configured(tmp_path, vectors, batch_size=1))


def configured(folder: Path, dataset: Dataset, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "steps": 2,
        "batch_size": 8,
        "log_every": 1,
        "save_every": 2,
        "device": "cpu",
        "method": "squeeze_and_span",
        "student": SMALL,
        "data": DataConfig(dataset=dataset.url, real=dataset.url),
        "squeeze_and_span": SqueezeAndSpanConfig(**TINY),
    }
    return TrainConfig(**(settings | changes))


def test_a_run_tells_every_term_its_weight_and_its_gradient(vectors: Dataset, tmp_path) -> None:
    import json

    student = train(configured(tmp_path, vectors))
    assert student.is_dir()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["weight.span.variance"] == pytest.approx(12.5)
    assert last["gradient.squeeze.distance"] > 0 and last["gradient.span.distance"] > 0
