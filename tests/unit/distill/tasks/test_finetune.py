"""Fine-tuning moves the backbone, on as many labels as asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.bench.bench import SUBJECT, UNTRAINED, ReadOuts
from distill.bench.fitting import fit
from distill.configs.tasks import FinetuneConfig
from distill.configs.train import OptimizerConfig, StudentConfig
from distill.students.student import build_student
from distill.tasks.finetune import Classifier, Finetune, dropping
from distill.training.optim import layer_depths
from dreamshard.errors import ConfigError, DreamshardError, Interrupted
from pipeline.learning.stopping import StopAfterStep
from tests.unit.distill.tasks.shape_bench import ShapeBench


def test_it_learns_on_all_and_on_a_few_labels(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    config = FinetuneConfig(
        fractions=[0.25, 1.0],
        steps=40,
        batch_size=16,
        smallest_crop=0.6,
        ema=0.9,
        optimizer=OptimizerConfig(lr=5e-3),
    )
    task, reports = Finetune(config, seed=0), []
    result = task.run(bench, report=lambda: reports.append(1))
    assert len(reports) == task.count(bench) == 2 * 2 * 40
    row = result["rows"][SUBJECT]
    assert [cell["images"] for cell in row.values()] == [12, 48]
    assert row["100 %"]["mean"] > 85, "bright or dark: two classes"
    assert result["rows"][UNTRAINED] == row, "the same network from the same seed"
    assert list(task.tables(result)[0].header) == ["network", "25 % of labels", "100 % of labels"]


def test_it_learns_in_bf16(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=5e-3)
    config = FinetuneConfig(
        steps=40, batch_size=16, smallest_crop=0.6, ema=0.9, precision="bf16", optimizer=optimizer
    )
    row = Finetune(config, seed=0).run(ShapeBench(tmp_path))["rows"][SUBJECT]
    assert row["100 %"]["mean"] > 85


def test_fit_trains_returns_the_average_and_stops_at_nan(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    network = Classifier(bench.networks[SUBJECT](), num_classes=2)
    before = network.student.backbone.get_parameter("conv1.weight").detach().clone()
    images = torch.randn(4, 3, 16, 16)

    def next_loss() -> torch.Tensor:
        return network(images).square().mean()

    config = OptimizerConfig(lr=1e-2)
    settings: dict = {"config": config, "steps": 3, "batch_size": 4}
    settings |= {"student": network.student, "bench": bench}
    judged = fit(network, next_loss=next_loss, ema=0.99, **settings)
    after = network.student.backbone.get_parameter("conv1.weight")
    assert judged is not network and not judged.training
    assert not torch.equal(before, after)
    with pytest.raises(DreamshardError, match="step 1: the loss is nan"):
        fit(network, next_loss=lambda: next_loss() * float("nan"), **settings)


def test_layer_decay_reaches_the_backbone_wherever_it_is(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    network = Classifier(bench.networks[SUBJECT](), num_classes=2)
    student = network.student
    built: dict = {"config": bench.student_config, "image_size": bench.image_size}
    assert layer_depths(network, student, layer_decay=1.0, **built) == {}
    depths = layer_depths(network, student, layer_decay=0.5, **built)
    assert depths["student.backbone.conv1.weight"] == 0
    assert max(depths.values()) > 1 and not any("classify" in name for name in depths)
    before = student.backbone.get_parameter("conv1.weight").detach().clone()
    head = network.classify.weight.detach().clone()
    config = OptimizerConfig(name="sgd", lr=1e-2, lr_batch=4, layer_decay=1e-4, warmup=0, clip=0)
    images = torch.randn(4, 3, 16, 16)
    fit(
        network,
        config=config,
        steps=1,
        batch_size=4,
        next_loss=lambda: network(images).square().sum(),
        student=student,
        bench=bench,
    )
    moved = student.backbone.get_parameter("conv1.weight").detach() - before
    assert (
        float(moved.abs().max())
        < 1e-6
        < float((network.classify.weight.detach() - head).abs().max())
    )


def test_mixup_needs_pairs() -> None:
    problems = FinetuneConfig(batch_size=7).problems()
    assert [problem.key for problem in problems] == ["batch_size"]
    assert not FinetuneConfig(batch_size=7, mixup=0.0).problems()


def test_branches_are_dropped_of_the_same_weights() -> None:
    from timm.layers import DropPath

    config = StudentConfig(name="test_resnet")
    student = build_student(config, strides=[8, 16], seed=0).train()
    bench: Any = SimpleNamespace(student_config=config, image_size=(32, 32))
    found = dropping(student, rate=0.5, bench=bench)
    rates = [m.drop_prob for m in found.modules() if isinstance(m, DropPath)]
    assert rates and 0 < max(rates) <= 0.5, "timm's rates grow with depth"
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(found.eval()(images), student.eval()(images), strict=True):
        assert torch.equal(ours, theirs)
    assert dropping(student, rate=0.0, bench=bench) is student
    bench.student_config = StudentConfig(name="cifar_resnet18", settings={"width": 8})
    other = build_student(bench.student_config, strides=[1, 8], seed=0)
    with pytest.raises(ConfigError, match=r"finetune\.drop_path: got 0\.5, allowed 0, as"):
        dropping(other, rate=0.5, bench=bench)


def test_stopped_it_goes_on_exactly_and_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(fractions=[0.25, 1.0], steps=4, batch_size=8, mixup=0.5, ema=0.9)

    def run(*, stop_at: int = 0) -> tuple[dict[str, Any], int]:
        bench, taken = ShapeBench(tmp_path), []
        bench.read_outs = ReadOuts(tmp_path / "read-outs", "key")

        def now(self: object, step: object, *, every: int) -> bool:
            taken.append(step)
            return len(taken) == stop_at

        with monkeypatch.context() as patched:
            patched.setattr(StopAfterStep, "now", now)
            return Finetune(config, seed=0).run(bench)["rows"], len(taken)

    with pytest.raises(Interrupted, match="evaluate: stopped after step 2 of 4"):
        run(stop_at=10)  # in the middle of the third of four
    rows, taken = run()
    assert taken == 6, "the rest of the third, and the fourth"
    assert rows == Finetune(config, seed=0).run(ShapeBench(tmp_path))["rows"]
