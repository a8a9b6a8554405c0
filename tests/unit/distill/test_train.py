"""The training run in this process: starting, finishing, going on, refusing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.configs.train import (
    DataConfig,
    DreamTeacherConfig,
    MonitorConfig,
    OptimizerConfig,
    SimSiamConfig,
    StudentConfig,
    SupervisedConfig,
    VICRegConfig,
)
from distill.data.batches import Batches
from distill.data.open import open_training_set
from distill.methods.build import build_method, method_class
from distill.students.export import load_student
from distill.train import join_ranks, train
from dreamshard.errors import ConfigError, DataError, DreamshardError
from pipeline.images.source import SourceConfig
from pipeline.learning.loop import add_gradients
from storage.batches.filler import Share
from storage.dataset import Dataset
from tests.unit.distill.small_data import add_units, make_dataset


def metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    text = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def weights(run_dir: str | Path) -> dict[str, torch.Tensor]:
    return load_student(Path(run_dir))[0].state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_that_explains_it(configure, dataset: Dataset) -> None:
    config = configure()
    folder = train(config)
    run_dir = Path(config.run_dir)
    assert folder == run_dir / "student"
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"command.txt", "config.resolved.yaml", "environment.json", "metrics.jsonl"}
    assert names >= {"stats.json", "README.txt", "student", "checkpoint-000002"}
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "mse", "at", "grad_norm", "lr", "img_per_s", "wait_percent"} <= set(lines[0])
    stats = json.loads((run_dir / "stats.json").read_text(encoding="utf-8"))
    assert stats["loss"] == lines[-1]["loss"]
    assert f"dreamshard report {run_dir}" in (run_dir / "README.txt").read_text()
    student, card = load_student(run_dir)
    assert card.levels == ["up.1.t100", "up.0.t100"]
    assert card.provenance["snapshot"] == dataset.snapshot().version
    assert student.strides == (2, 4) and not student.training


def test_the_same_run_twice_gives_the_same_weights(configure, tmp_path: Path) -> None:
    train(configure(run_dir=str(tmp_path / "a")))
    train(configure(run_dir=str(tmp_path / "b")))
    train(configure(run_dir=str(tmp_path / "c"), seed=1))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_finished_run_is_reused(configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure()
    train(config)
    stamp = (Path(config.run_dir) / "student" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train(config)
    assert "is finished (4 steps), its student is reused" in capsys.readouterr().err
    assert (Path(config.run_dir) / "student" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_finished_run_of_other_settings_is_refused(configure) -> None:
    train(configure())
    with pytest.raises(ConfigError, match=r"seed: 0 there, 5 asked for"):
        train(configure(seed=5))
    train(configure(seed=5, restart=True))
    assert [line["step"] for line in metrics(configure().run_dir)] == [1, 2, 3, 4]


def test_losing_the_end_of_a_run_costs_only_that(configure, tmp_path: Path) -> None:
    import shutil

    config = configure()
    train(config)
    whole, lines, run_dir = weights(config.run_dir), metrics(config.run_dir), Path(config.run_dir)
    shutil.rmtree(run_dir / "student")  # died between the last checkpoint and the export
    train(config)
    assert same(whole, weights(run_dir))
    shutil.rmtree(run_dir / "student")  # died before the last checkpoint
    shutil.rmtree(run_dir / "checkpoint-000004")
    train(config)
    assert same(whole, weights(run_dir))
    again = metrics(run_dir)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


def test_a_dataset_that_grew_does_not_change_a_run_under_way(configure, tmp_path: Path) -> None:
    import shutil

    small = make_dataset(tmp_path / "data", num_samples=32)
    config = configure(data=DataConfig(dataset=small.url))
    train(config)
    whole, run_dir = weights(config.run_dir), Path(config.run_dir)
    shutil.rmtree(run_dir / "student")
    shutil.rmtree(run_dir / "checkpoint-000004")
    add_units(small, num_samples=64)
    train(config)
    assert same(whole, weights(run_dir))
    train(configure(data=DataConfig(dataset=small.url), restart=True))
    assert not same(whole, weights(run_dir)), "a new run takes the dataset as it is now"


def test_a_student_without_the_strides_is_refused_with_both_sides(configure) -> None:
    student = StudentConfig(name="convnext_atto")
    expected = r"stride 2, 4 for student 'convnext_atto', .*4 \(40 channels\), 8 \(80 channels\)"
    with pytest.raises(ConfigError, match=expected):
        train(configure(student=student))
    assert not Path(configure().run_dir).exists()


def test_features_that_are_not_finite_are_named(configure, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", num_samples=16)
    snapshot = dataset.snapshot()
    path, (dtype, shape) = snapshot.chunk_path("up.0.t100", 0), snapshot.array_spec("up.0.t100")
    rows = np.memmap(path, dtype, mode="r+", shape=(16, *shape))
    rows[[5, 9], 0] = np.nan  # what a failing disk may do
    rows.flush()
    data = DataConfig(dataset=dataset.url)
    with pytest.raises(DataError) as caught:
        train(configure(data=data, batch_size=16, log_every=2, save_every=2))
    text = str(caught.value)
    assert "step 1: loss nan" in text and "up.0.t100 is not finite" in text
    assert "5 (box-5), 9 (box-9)" in text
    assert not list(Path(configure().run_dir).glob("checkpoint-*"))


def test_a_diverging_run_names_step_and_batch(configure) -> None:
    optimizer = OptimizerConfig(name="sgd", lr=1e30, clip=0, warmup=0.0)
    with pytest.raises(DreamshardError) as caught:
        train(configure(optimizer=optimizer))
    assert type(caught.value) is DreamshardError
    assert "with finite features" in str(caught.value) and "(box-" in str(caught.value)


def test_holes_need_a_flag(configure, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", num_samples=64)
    dataset.invalidate(1)
    with pytest.raises(DataError, match="allow_holes"):
        train(configure(data=DataConfig(dataset=dataset.url)))
    train(configure(data=DataConfig(dataset=dataset.url, allow_holes=True)))


def part_of(batches: Any, index: list[int], model: Any, step: int, part: int) -> Any:
    batch = batches.next()
    index.extend(batch.index.tolist())
    return model(batch.images, batch.targets)


def test_parts_of_a_batch_add_up_to_its_gradient(configure, tmp_path: Path) -> None:
    # Batch norm sees a part at a time, so this student has none; AdamW would amplify round-off.
    changes = {
        "student": StudentConfig(name="test_convnext", settings={"dims": [8, 8, 8, 8]}),
        "optimizer": OptimizerConfig(name="sgd", lr=0.01, clip=0.0),
        "dreamteacher": DreamTeacherConfig(regressor="fpn", width=8, bridge="interpolate"),
    }
    seen = []
    for parts in (1, 4):
        config = configure(run_dir=str(tmp_path / str(parts)), accumulate=parts, **changes)
        accelerator = join_ranks(config)
        training_set = open_training_set(config.data)
        method = build_method(
            method_class(config.method),
            config.dreamteacher,
            student=config.student,
            training_set=training_set,
            seed=config.seed,
        ).eval()
        batches = Batches(
            training_set,
            share=Share(batch_size=config.part_size, rank=0, world_size=1, start=0),
            mean=method.student.mean,
            std=method.student.std,
            device=accelerator.device,
        )
        model, stepper = accelerator.prepare(method, torch.optim.SGD(method.parameters(), lr=0.01))
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)  # of the step before, to be dropped
        index: list[int] = []
        forward = partial(part_of, batches, index)
        terms = add_gradients(model, stepper, forward, step=1, parts=parts, engine=accelerator)
        batches.close()
        assert batches.position == config.batch_size and len(index) == config.batch_size
        seen.append((terms["loss"], [p.grad for p in method.parameters()], sorted(index)))
    torch.testing.assert_close(seen[0][0], seen[1][0])
    for whole, summed in zip(seen[0][1], seen[1][1], strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-4, atol=1e-6)
    assert seen[0][2] == seen[1][2]


def test_a_run_with_average_and_parts_goes_on_exactly(configure, tmp_path: Path) -> None:
    import shutil

    config = configure(ema=0.9, accumulate=2)
    train(config)
    whole, run_dir = weights(config.run_dir), Path(config.run_dir)
    last = load_file(run_dir / "checkpoint-000004" / "model.safetensors")
    assert not torch.equal(whole["backbone.conv1.weight"], last["student.backbone.conv1.weight"])
    shutil.rmtree(run_dir / "student")
    shutil.rmtree(run_dir / "checkpoint-000004")
    train(config)
    assert same(whole, weights(run_dir))


def test_the_monitor_looks_every_so_many_steps_and_changes_nothing(
    configure, tmp_path: Path
) -> None:
    train(configure(run_dir=str(tmp_path / "plain")))
    digits = SourceConfig(kind="digits")
    monitor = MonitorConfig(
        every=2, samples=60, neighbours=3, train_images=digits, heldout_images=digits
    )
    train(configure(run_dir=str(tmp_path / "watched"), monitor=monitor))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "watched"))
    looks = [line for line in metrics(tmp_path / "watched") if "monitor_knn" in line]
    assert [line["step"] for line in looks] == [2, 4]
    stats = json.loads((tmp_path / "watched" / "stats.json").read_text(encoding="utf-8"))
    assert 0 <= stats["monitor_knn"] <= 100


def test_tensorboard_gets_the_metrics_too(configure) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(trackers=["tensorboard"], steps=2)
    train(config)
    events = EventAccumulator(str(Path(config.run_dir) / "dreamshard")).Reload()
    losses = [scalar.value for scalar in events.Scalars("loss")]
    assert losses == pytest.approx([line["loss"] for line in metrics(config.run_dir)], rel=1e-6)


def test_a_tracker_that_does_not_start_is_an_error_of_the_configuration(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no login")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(ConfigError, match=r"trackers: got tensorboard \(no login\)"):
        train(configure(trackers=["tensorboard"]))


@pytest.mark.parametrize("method", ["simsiam", "vicreg", "supervised"])
def test_baselines_train_on_the_datasets_images_and_count_their_passes(
    configure, method: str
) -> None:
    small = {
        "simsiam": SimSiamConfig(width=16, predictor_width=8),
        "vicreg": VICRegConfig(width=16, hidden=16),
        "supervised": SupervisedConfig(label_share=0.5),
    }
    student = StudentConfig(name="cifar_resnet18", settings={"width": 8}, strides=[1, 2, 4, 8])
    config = configure(method=method, student=student, **{method: small[method]})
    folder = train(config)
    card = load_student(folder)[1]
    views = 1 if method == "supervised" else 2
    assert card.provenance["student_images"] == 4 * 8 * views
    assert card.levels == [] and card.strides == [1, 2, 4, 8]
    lines = metrics(config.run_dir)
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_without_levels_and_strides_the_deepest_map_is_taken(configure) -> None:
    config = configure(method="vicreg", steps=1, vicreg=VICRegConfig(width=16, hidden=16))
    assert load_student(train(config))[1].strides == [4]


def test_more_steps_extend_a_run_and_say_what_becomes_of_the_rate(
    configure, capsys: pytest.CaptureFixture[str]
) -> None:
    first = configure(steps=2)
    before = weights(train(first).parent)
    capsys.readouterr()
    folder = train(configure(steps=4))
    told = capsys.readouterr().err
    assert "extended from 2 to 4 steps. From step 3 on the learning rate is that of a run" in told
    assert not same(before, weights(folder.parent)), "it is another student"
    assert [line["step"] for line in metrics(folder.parent)] == [1, 2, 3, 4]
    _, card = load_student(folder)
    assert card.provenance["steps"] == 4 and card.provenance["extended"] == [[2, 2]]
    with pytest.raises(ConfigError, match="steps: 4 there, 3 asked for"):
        train(configure(steps=3))


def test_a_launcher_that_says_otherwise_is_refused(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="2 problems") as caught:
        train(configure())
    assert "--accumulate 4" in str(caught.value) and "--precision bf16" in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_too_little_memory_is_a_setting(
    configure, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.learning.loop.add_gradients", full)
    with pytest.raises(ConfigError, match=r"batch_size: got 8, .*--accumulate 2.*grad_check"):
        train(configure())


@pytest.mark.parametrize("lost", [("stats.json", "README.txt"), ("README.txt",)])
def test_a_run_killed_when_its_student_was_in_place_completes_its_folder(
    configure, lost: tuple[str, ...]
) -> None:
    config = configure()
    train(config)
    run_dir = Path(config.run_dir)
    before = {name: (run_dir / name).read_bytes() for name in ("stats.json", "README.txt")}
    stamp = (run_dir / "student" / "model.safetensors").stat().st_mtime_ns
    for name in lost:
        (run_dir / name).unlink()
    (run_dir / ".stats.json.999999999.partial").write_text("half")
    train(config)
    assert {name: (run_dir / name).read_bytes() for name in before} == before
    assert (run_dir / "student" / "model.safetensors").stat().st_mtime_ns == stamp
    assert not [path for path in run_dir.iterdir() if path.name.startswith(".")]


def test_a_run_killed_when_its_last_checkpoint_was_in_place_tells_the_same(configure) -> None:
    import shutil

    config = configure()
    train(config)
    run_dir = Path(config.run_dir)
    card = (run_dir / "student" / "student.json").read_bytes()
    figures = json.loads((run_dir / "stats.json").read_text())
    shutil.rmtree(run_dir / "student")
    (run_dir / "stats.json").unlink()
    train(config)
    again = json.loads((run_dir / "stats.json").read_text())
    timed = ("seconds", "img_per_s", "wait_percent")
    assert {k: v for k, v in figures.items() if k not in timed} == {
        k: v for k, v in again.items() if k not in timed
    }
    assert (
        json.loads(card)["provenance"]
        == json.loads((run_dir / "student" / "student.json").read_text())["provenance"]
    )


def test_the_student_of_fewer_steps_is_replaced_by_that_of_a_run_killed_at_its_end(
    configure, tmp_path: Path
) -> None:
    import shutil

    train(configure())
    run_dir = Path(configure().run_dir)
    shutil.copytree(run_dir / "student", tmp_path / "short")
    train(configure(steps=6))
    whole = weights(run_dir)
    shutil.rmtree(run_dir / "student")
    shutil.move(tmp_path / "short", run_dir / "student")
    train(configure(steps=6))
    assert same(weights(run_dir), whole)
