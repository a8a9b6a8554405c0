"""An interpreter learns labels from a frozen teacher, and what it cannot learn is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dreamshard.errors import ConfigError, DataError, TeacherError
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.interpret import interpret
from pipeline.learning.interpreting.config import InterpretConfig
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.interpreted.interpreter import WEIGHTS
from pipeline.teachers.load import describe_teacher, load_teacher
from storage.schema import Pins
from tests.unit.pipeline.masked_shapes import SIDE, VOID, write_shapes, write_teacher

pytest.importorskip("torch")
PINS = Pins(micro_batch=4, compute_dtype="float32", device="cpu", threads=1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interpret")
    write_teacher(root / "teacher")
    write_shapes(root / "shapes.parquet", count=16)
    return root


def settings(here: Path, **changes: Any) -> InterpretConfig:
    chosen: dict[str, Any] = {
        "out": str(here / "interpreter"),
        "name": "shapes",
        "classes": ["ground", "bright", "dark"],
        "ignore": VOID,
        "labelled": 12,
        "validation": 4,
        "teacher": TeacherConfig(path=str(here / "teacher"), levels=["s4", "s1"], timesteps=[10]),
        "source": SourceConfig(kind="parquet", path=str(here / "shapes.parquet")),
        "image": ImageConfig(size=SIDE),
        "noisings": 2,
        "width": 16,
        "epochs": 30,
        "batch_size": 4,
        "threads": 1,
        "device": "cpu",
    }
    return InterpretConfig(**(chosen | changes))


@pytest.fixture(scope="module")
def trained(here: Path) -> Path:
    return interpret(settings(here))


def test_it_learns_masks_it_has_not_seen(trained: Path) -> None:
    card = json.loads((trained / "interpreter.json").read_text("utf-8"))
    assert card["training"]["miou"] > 50, "three classes by chance: about 28"
    assert len(card["training"]["labelled"]) == 12
    # Finest last, whatever the order asked for.
    assert [level["stride"] for level in card["levels"]] == [4, 1]
    lines = (trained / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 30 and set(json.loads(lines[0])) >= {"loss", "ce", "dice", "lr"}


def test_a_second_run_reuses_it_and_another_is_refused(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interpret(settings(here, threads=2))
    assert "reused" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--overwrite"):
        interpret(settings(here, width=8))


def attached(here: Path, trained: Path, **changes: Any) -> TeacherConfig:
    config = TeacherConfig(
        path=str(here / "teacher"), levels=["s2"], timesteps=[20], interpreter=str(trained)
    )
    return dataclasses.replace(config, **changes)


def test_soft_labels_are_recorded_beside_features_that_stay_the_same(
    here: Path, trained: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    indices = np.arange(4)
    plain = attached(here, trained, interpreter="")
    config = attached(here, trained, soft_labels=["s4", "s1"], draws=2)
    alone = load_teacher(
        dataclasses.replace(plain, draws=2), mode="encode", seed=3, pins=PINS
    ).encode(images, indices)
    teacher = load_teacher(config, mode="encode", seed=3, pins=PINS)
    batch = teacher.encode(images, indices)
    names = [level.name for level in teacher.levels]
    assert names[2:] == ["shapes.s4", "shapes.s1", "shapes.s4.d1", "shapes.s1.d1"]
    assert list(batch.levels) == names
    for name in names[:2]:
        np.testing.assert_array_equal(batch.levels[name], alone.levels[name])
    assert batch.levels["shapes.s4"].shape == (4, 3, SIDE // 4, SIDE // 4)
    assert batch.levels["shapes.s1"].dtype == np.float16
    assert not np.array_equal(batch.levels["shapes.s1"], batch.levels["shapes.s1.d1"])


def test_soft_labels_alone_and_as_top_k_pairs(here: Path, trained: Path) -> None:
    images = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    whole = load_teacher(
        attached(here, trained, levels=[]), mode="encode", seed=0, pins=PINS
    ).encode(images, np.arange(4))
    config = attached(here, trained, levels=[], top_k=2)
    pairs = load_teacher(config, mode="encode", seed=0, pins=PINS).encode(images, np.arange(4))
    assert list(whole.levels) == ["shapes.s1"]
    assert list(pairs.levels) == ["shapes.s1.top2.logit", "shapes.s1.top2.class"]
    classes = pairs.levels["shapes.s1.top2.class"].astype(np.int64)
    picked = np.take_along_axis(whole.levels["shapes.s1"], classes, axis=1)
    np.testing.assert_array_equal(picked, pairs.levels["shapes.s1.top2.logit"])
    np.testing.assert_array_equal(classes[:, 0], whole.levels["shapes.s1"].argmax(axis=1))


def test_the_interpreters_weights_are_part_of_what_a_soft_label_is(
    here: Path, trained: Path, tmp_path: Path
) -> None:
    other = interpret(settings(here, out=str(tmp_path / "other"), seed=1, epochs=1, validation=0))
    facts = [
        describe_teacher(attached(here, folder), mode="encode").level_facts
        for folder in (trained, other)
    ]
    assert set(facts[0]) == {"shapes.s1"} and facts[0] != facts[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"soft_labels": ["s3"]}, r"teacher\.soft_labels: got s3, allowed s1, s2, s4"),
        ({"top_k": 4}, r"teacher\.top_k: got 4, allowed 0 for all, or up to 3"),
        ({"pool": "gap"}, r"teacher\.pool: got gap"),
        ({"settings": {"encoding": "inversion"}}, r"teacher\.settings\.encoding"),
        ({"interpreter": "nowhere"}, r"teacher\.interpreter: got nowhere.*dreamshard interpret"),
    ],
)
def test_what_does_not_fit_is_refused(
    here: Path, trained: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_teacher(attached(here, trained, **changes), mode="encode")


def test_another_teacher_is_refused(here: Path, trained: Path) -> None:
    config = TeacherConfig(
        kind="noise", levels=["s4", "s1"], timesteps=[10], interpreter=str(trained)
    )
    with pytest.raises(ConfigError):
        describe_teacher(config, mode="encode")


def test_damaged_weights_are_refused(here: Path, trained: Path, tmp_path: Path) -> None:
    for name in ("interpreter.json", "interpreter.safetensors"):
        (tmp_path / name).write_bytes(
            (trained / name).read_bytes()[: None if "json" in name else 99]
        )
    with pytest.raises(TeacherError, match="damaged"):
        load_teacher(attached(here, tmp_path), mode="encode", seed=0, pins=PINS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": ["ground", "bright"]}, DataError, r"masks: got classes \[2\] in shape-"),
        ({"ignore": 255}, DataError, r"masks: got classes \[9\]"),
        ({"labelled": 15}, ConfigError, r"got 15 \+ 4, allowed at most 16"),
        ({"memory_gb": 1e-6}, ConfigError, r"memory_gb: got 12 images x 4 views x 0\.00"),
    ],
)
def test_bad_labels_are_refused_before_training(
    here: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        interpret(settings(here, out=str(tmp_path / "x"), **changes))
    assert not (tmp_path / "x" / "interpreter.json").exists()


def test_masks_of_nothing_but_void_and_no_masks_are_refused(here: Path, tmp_path: Path) -> None:
    bare = write_shapes(tmp_path / "bare.parquet", masks=False)
    source = SourceConfig(kind="parquet", path=str(bare))
    with pytest.raises(ConfigError, match="images without masks"):
        interpret(settings(here, out=str(tmp_path / "x"), source=source))
    with pytest.raises(DataError, match="nothing but 9"):
        interpret(
            settings(
                here, out=str(tmp_path / "x"), labelled=0, validation=0, source=_void(tmp_path)
            )
        )


def _void(folder: Path) -> SourceConfig:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.unit.pipeline.masked_shapes import png

    table = {
        "key": ["empty"],
        "image": [png(np.zeros((SIDE, SIDE, 3), np.uint8))],
        "mask": [png(np.full((SIDE, SIDE), VOID, np.uint8))],
    }
    pq.write_table(pa.table(table), folder / "void.parquet")
    return SourceConfig(kind="parquet", path=str(folder / "void.parquet"))


def test_class_labels_are_learnt_too(here: Path, tmp_path: Path) -> None:
    config = settings(
        here,
        out=str(tmp_path / "labels"),
        name="kind",
        target="label",
        classes=["bright", "dark"],
        ignore=-1,
        epochs=40,
    )
    folder = interpret(config)
    card = json.loads((folder / "interpreter.json").read_text("utf-8"))
    assert card["training"]["accuracy"] >= 75
    spec = describe_teacher(attached(here, folder, levels=[]), mode="encode")
    assert [(lv.name, lv.kind, lv.shape, lv.stride) for lv in spec.levels] == [
        ("kind", "soft_label", (2,), 0)
    ]


def test_images_without_a_label_are_left_out(here: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(write_shapes(tmp_path / "half.parquet", count=16))
    labels = table["label"].to_pylist()
    kept = [label if row % 2 else -1 for row, label in enumerate(labels)]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(kept))
    pq.write_table(table, tmp_path / "half.parquet")
    folder = interpret(
        settings(
            here,
            out=str(tmp_path / "labels"),
            target="label",
            classes=["bright", "dark"],
            ignore=-1,
            labelled=0,
            validation=0,
            epochs=1,
            source=SourceConfig(kind="parquet", path=str(tmp_path / "half.parquet")),
        )
    )
    card = json.loads((folder / "interpreter.json").read_text("utf-8"))
    assert card["training"]["labelled"] == [f"shape-{row}" for row in range(1, 16, 2)]


def test_a_stopped_fit_goes_on_exactly(
    here: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamshard.errors import Interrupted
    from pipeline.learning.stopping import StopAfterStep

    config = settings(here, out=str(tmp_path / "again"))
    with monkeypatch.context() as patched:
        patched.setattr(StopAfterStep, "now", lambda self, taken, every: taken.step == 7)
        with pytest.raises(Interrupted, match="interpret: stopped after step 7 of"):
            interpret(config)
    assert (tmp_path / "again" / "run" / "checkpoint-000007").is_dir()
    interpret(config)
    one, other = (load_file(folder / WEIGHTS) for folder in (trained, tmp_path / "again"))
    assert all((one[name] == other[name]).all() for name in one)
    assert not list((tmp_path / "again" / "run").glob("checkpoint-*")), "nothing is left behind"


@pytest.mark.parametrize("call", [2, 5])
def test_stopped_while_features_are_computed_it_goes_on_exactly(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    from dreamshard.errors import Interrupted
    from pipeline.learning.signals import StopSignal
    from pipeline.teachers.diffusion.teacher import DiffusionTeacher

    told: dict[str, Any] = {"micro_batch": 4, "noisings": 2, "mirror": True, "epochs": 2}
    whole = interpret(settings(here, out=str(tmp_path / "whole"), **told))
    encode, seen, asked = DiffusionTeacher.encode, [], 0

    def counted(self: DiffusionTeacher, images: np.ndarray, indices: np.ndarray) -> Any:
        seen.append(indices.tolist())
        return encode(self, images, indices)

    def stop(_: StopSignal) -> bool:
        nonlocal asked
        asked += 1
        return asked == call

    monkeypatch.setattr(DiffusionTeacher, "encode", counted)
    broken = settings(here, out=str(tmp_path / "broken"), **told)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", stop)
        with pytest.raises(Interrupted, match=f"stopped after image {4 * call} of 48"):
            interpret(broken)
    assert len(seen) == call
    interpret(broken)
    first = [tuple(indices) for indices in seen]
    assert len(first) == len(set(first)) == 12 + 1, "nothing is computed twice"
    mine, theirs = load_file(tmp_path / "broken" / WEIGHTS), load_file(whole / WEIGHTS)
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    assert not list((tmp_path / "broken" / "run").glob("features*"))


def test_stopped_while_it_is_judged_it_keeps_what_was_learnt(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamshard.errors import Interrupted
    from pipeline import interpret as script
    from pipeline.learning import loop
    from pipeline.learning.signals import StopSignal

    config = settings(
        here, out=str(tmp_path / "a"), micro_batch=2, noisings=1, mirror=False, epochs=2
    )
    judged = script.interpret.__globals__["_examples"]

    def stopped(*args: Any, keep: Path | None = None, **told: Any) -> Any:
        with monkeypatch.context() as patch:
            if keep is None:
                patch.setattr(StopSignal, "__call__", lambda _: True)
            return judged(*args, keep=keep, **told)

    with monkeypatch.context() as patch:
        patch.setattr(script, "_examples", stopped)
        with pytest.raises(Interrupted, match="stopped after image 2 of 4"):
            script.interpret(config)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "add_gradients", None)  # no step is taken again
        folder = script.interpret(config)
    assert "miou" in json.loads((folder / "interpreter.json").read_text("utf-8"))["training"]
