"""CompRess: what is compared with what, when anchors change, who follows whom; its baselines."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distill.configs.similarity import ClusterConfig, CompressConfig, CRDConfig, RegConfig
from distill.configs.train import DataConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.data.sets import NUMBER
from distill.methods.build import build_method, method_class
from distill.train import train
from dreamshard.errors import ConfigError
from dreamshard.foreign.arrays import read_safetensors
from storage.dataset import Dataset
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS, VECTOR, make_dataset

SMALL = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 10]})


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), levels=(*LEVELS, VECTOR))


def build(dataset: Dataset, settings: Any, *, name: str = "compress") -> Any:
    kind = method_class(name)
    data = DataConfig(dataset=dataset.url)
    training_set = open_training_set(data, needs=kind.needs(settings))
    return build_method(kind, settings, student=SMALL, training_set=training_set, seed=0)


def batch(count: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return torch.randn(count, 3, *IMAGE_SIZE), {"w": torch.randn(count, 6)}


def test_a_batch_is_compared_with_the_anchors_there_were_and_then_becomes_some(vectors) -> None:
    method = build(vectors, CompressConfig(queue=6, variant="2q", view="same"))
    one = method.objectives["similarity"]
    images, targets = batch()
    anchors, own = one.teacher_queue.rows.clone(), one.student_queue.rows.clone()
    expected_keys = F.normalize(one.key(images), dim=1)
    s, t = F.normalize(method.student.pooled(images), dim=1), F.normalize(targets["w"], dim=1)
    p, q = (t @ anchors.T / 0.04).softmax(1), (s @ own.T / 0.04).softmax(1)
    by_hand = (p * (p.log() - q.log())).sum(dim=1).mean()
    loss = method(images, targets)["loss"]
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert torch.equal(one.teacher_queue.rows, anchors), "until the step is taken"
    method.after_step()
    assert torch.equal(one.teacher_queue.rows[:4], t)
    torch.testing.assert_close(one.student_queue.rows[:4], expected_keys)
    assert torch.equal(one.teacher_queue.rows[4:], anchors[4:])
    assert int(one.teacher_queue.cursor) == int(one.student_queue.cursor) == 4


def test_the_key_encoder_follows_the_parameters_alone(vectors) -> None:
    method = build(vectors, CompressConfig(queue=8, momentum=0.75, view="same"))
    key, student = method.objectives["similarity"].key, method.student
    first = [p.clone() for p in student.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, key.encoder.parameters(), strict=True))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    buffers = {name: value.clone() for name, value in key.named_buffers()}
    method.after_step()
    method.after_step()
    for was, now in zip(first, key.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, was + 1 - 0.75**2)
    assert all(torch.equal(value, buffers[name]) for name, value in key.named_buffers())
    assert not any(parameter.requires_grad for parameter in key.parameters())
    method.train()
    kinds = {type(m).__name__: m.training for m in key.modules() if not list(m.children())}
    assert kinds.pop("BatchNorm2d") and not any(kinds.values())


def test_without_momentum_the_student_s_own_embeddings_are_the_anchors(vectors) -> None:
    method = build(vectors, CompressConfig(queue=8, momentum=0.0, view="same"))
    one = method.objectives["similarity"]
    assert one.key is None
    images, targets = batch()
    own = F.normalize(method.student.pooled(images), dim=1)
    method(images, targets)
    method.after_step()
    torch.testing.assert_close(one.student_queue.rows[:4], own)
    assert not one.student_queue.rows.requires_grad


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("compress", CompressConfig(queue=6, momentum=0.5, view="same")),
        ("compress", CompressConfig(queue=6, momentum=0.0, view="same")),
        ("compress", CompressConfig(queue=6, variant="1q", view="same")),
        ("crd", CRDConfig(negatives=20, view="same")),
    ],
)
def test_parts_of_a_batch_are_the_whole_batch(vectors, name: str, settings: Any) -> None:
    whole, parts = (build(vectors, settings, name=name).eval() for _ in range(2))
    images, targets = batch(8)
    targets[NUMBER] = torch.arange(8)
    for method in (whole, parts):
        method(images[:2], {key: value[:2] for key, value in targets.items()})
        method.before_step(measured=False)  # what was only tried becomes no anchors
    together = whole(images, targets)["loss"]
    each = [
        parts(images[rows], {key: value[rows] for key, value in targets.items()})["loss"]
        for rows in (slice(0, 3), slice(3, 6), slice(6, 8))
    ]
    mean = sum(count * loss for count, loss in zip((3, 3, 2), each, strict=True)) / 8
    if name != "crd":  # every pass draws other negatives
        torch.testing.assert_close(mean, together, rtol=1e-4, atol=1e-5)
    for method in (whole, parts):
        method.after_step()
    compared = [key for key in whole.state_dict() if "draws" not in key]
    for key in compared:
        torch.testing.assert_close(parts.state_dict()[key], whole.state_dict()[key], msg=key)


def test_reg_bn_compares_what_is_normalised_over_the_batch(vectors) -> None:
    method = build(vectors, RegConfig(batch_norm=True, view="same"), name="reg")
    images, targets = batch(5)
    targets["w"] = 3 + 7 * targets["w"]
    head = method.objectives["regression"].head

    def normed(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt()

    by_hand = (normed(head(method.student.pooled(images))) - normed(targets["w"])).square().mean()
    torch.testing.assert_close(method(images, targets)["loss"], by_hand, rtol=1e-4, atol=1e-5)
    plain = build(vectors, RegConfig(view="same"), name="reg")
    by_hand = (
        plain.objectives["regression"].head(plain.student.pooled(images)) - targets["w"]
    ) ** 2
    torch.testing.assert_close(plain(images, targets)["loss"], by_hand.mean())


def test_crd_is_equation_8_from_either_side(vectors) -> None:
    config = CRDConfig(negatives=5, width=4, temperature=0.5, view="same")
    method = build(vectors, config, name="crd")
    one = method.objectives["contrast"]
    images, targets = batch(3)
    numbers = targets[NUMBER] = torch.tensor([7, 0, 63])
    first = copy.deepcopy(one.draws).integers(numbers, 5, below=63)
    rows = torch.cat([numbers[:, None], first + (first >= numbers[:, None])], dim=1)
    s = F.normalize(one.student_head(method.student.pooled(images)), dim=1)
    t = F.normalize(one.teacher_head(targets["w"]), dim=1)
    by_hand = torch.tensor(0.0)
    for own, bank in ((s, one.teacher_bank.rows), (t, one.student_bank.rows)):
        scores = ((bank[rows] * own[:, None]).sum(dim=2) / 0.5).exp()
        h = scores / (scores.mean() * 64)
        h = h / (h + 5 / 64)
        by_hand = by_hand - (h[:, 0].log() + (1 - h[:, 1:]).log().sum(dim=1)).mean()
    torch.testing.assert_close(method(images, targets)["loss"], by_hand, rtol=1e-4, atol=1e-5)
    assert not (rows[:, 1:] == numbers[:, None]).any() and int(rows.max()) <= 63


def test_one_queue_compares_through_one_linear_head(vectors) -> None:
    method = build(vectors, CompressConfig(queue=8, variant="1q"))
    names = {name for name in method.state_dict() if not name.startswith("student.")}
    assert names == {"head.weight", "head.bias", "teacher_queue.rows", "teacher_queue.cursor"}
    assert method.objectives["similarity"].head.weight.shape == (6, 10)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("compress", CompressConfig(queue=65), r"compress\.queue: got 65, allowed at most 64"),
        (
            "compress",
            CompressConfig(queue=8, level="v"),
            r"compress\.level: got v, allowed .*w",
        ),
        ("cc", ClusterConfig(clusters=65), r"cc\.clusters: got 65, allowed at most 64"),
        ("reg", RegConfig(level="nothing"), r"reg\.level: got nothing"),
        (
            "crd",
            CRDConfig(negatives=64, samples=5),
            r"(?s)crd\.negatives: got 64, .*crd\.samples: got 5, allowed 0, or 64",
        ),
    ],
)
def test_what_the_dataset_has_not_is_refused(vectors, name, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build(vectors, settings, name=name)


def test_of_several_maps_one_is_named(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"compress\.level: got nothing, allowed one of up\.1"):
        build(dataset, CompressConfig(queue=8))
    build(dataset, CompressConfig(queue=8, level="up.0.t100"))


def test_cluster_classification_learns_what_kmeans_found(vectors) -> None:
    method = build(vectors, ClusterConfig(clusters=4), name="cc")
    one = method.objectives["clusters"]
    points = F.normalize(torch.randn(32, 6), dim=1)
    nearest = torch.cdist(points, one.centroids).argmin(dim=1)
    images = torch.randn(32, 3, *IMAGE_SIZE)
    told = method(images, {"w": points})
    assert torch.unique(one.centroids, dim=0).shape == (4, 6)
    assert 0 <= float(told["accuracy"]) <= 1
    same = build(vectors, ClusterConfig(clusters=4, view="same"), name="cc")
    kept = same.objectives["clusters"]
    assert torch.equal(kept.centroids, one.centroids)
    log = kept.classifier(same.student.pooled(images)).log_softmax(dim=1)
    by_hand = -log[torch.arange(32), nearest].mean()
    torch.testing.assert_close(same(images, {"w": points})["loss"], by_hand)
    assert len(nearest.unique()) > 1


def test_a_run_goes_on_with_its_anchors(vectors: Dataset, tmp_path) -> None:
    def configured(name: str, steps: int) -> TrainConfig:
        return TrainConfig(
            run_dir=str(tmp_path / name), steps=steps, batch_size=8, log_every=1, save_every=2,
            device="cpu", method="compress", student=SMALL, data=DataConfig(dataset=vectors.url),
            compress=CompressConfig(queue=32, momentum=0.5),
        )  # fmt: skip

    train(configured("whole", 4))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-000004")
    shutil.rmtree(tmp_path / "parts" / "student")
    train(configured("parts", 4))
    whole, parts = (
        read_safetensors(tmp_path / name / "checkpoint-000004" / "model.safetensors")
        for name in ("whole", "parts")
    )
    assert int(whole["teacher_queue.cursor"]) == 0, "32 samples in a queue of 32"
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
