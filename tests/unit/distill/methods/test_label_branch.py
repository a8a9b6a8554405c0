"""Label distillation: the loss by hand, the heads, and training from joined datasets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig, DreamTeacherConfig
from distill.data.open import open_training_set
from distill.data.sets import Needs
from distill.losses.label import from_top_k, resized_logits, soft_cross_entropy
from distill.methods.label_branch import LabelBranch
from distill.train import train
from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from storage.schema import FeatureBatch, Level, Pins, Recipe
from tests.unit.distill.conftest import Configure
from tests.unit.distill.small_data import IMAGE_SIZE, make_batch

CLASSES = 3


def soft_level(name: str = "shapes.s4", **changes: object) -> Level:
    values: dict = {
        "name": name,
        "kind": "soft_label",
        "tap": f"shapes:{CLASSES}",
        "timestep": 100,
        "draw": 0,
        "pool": "none",
        "stride": 4,
        "shape": (CLASSES, 4, 4),
        "dtype": "float16",
    }
    return Level(**(values | changes))


def test_the_loss_is_the_one_counted_by_hand() -> None:
    teacher = torch.tensor([[4 * math.log(3.0), 0.0]])  # at tau = 4: 3/4 and 1/4
    student = torch.zeros(1, 2)  # 1/2 and 1/2
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(math.log(2))
    scaled = soft_cross_entropy(student, teacher, scaled=True)
    assert float(scaled) == pytest.approx(16 * math.log(2))
    # At its best, the loss is the entropy of the teacher.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(soft_cross_entropy(teacher, teacher)) == pytest.approx(entropy)


def test_the_loss_averages_cells_and_sends_no_gradient_to_the_teacher() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 5, requires_grad=True)
    whole = soft_cross_entropy(student, teacher)
    cells = [
        soft_cross_entropy(student[:, :, row, column], teacher[:, :, row, column])
        for row in range(4)
        for column in range(5)
    ]
    assert float(whole.detach()) == pytest.approx(float(torch.stack(cells).mean().detach()))
    whole.backward()
    assert teacher.grad is None and student.grad is not None
    shifted = soft_cross_entropy(student + 7, teacher - 3)
    assert float(shifted.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_pairs_of_the_best_stand_for_the_whole() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 3)
    best = logits.topk(5, dim=1)
    whole = from_top_k(best.values, best.indices.float(), num_classes=5)
    torch.testing.assert_close(whole, logits)
    two = logits.topk(2, dim=1)
    spread = from_top_k(two.values, two.indices, num_classes=5).softmax(dim=1)
    assert torch.equal((spread > 0).sum(dim=1), torch.full((2, 3, 3), 2))
    loss = soft_cross_entropy(logits, from_top_k(two.values, two.indices, num_classes=5))
    assert bool(loss.isfinite())


def test_only_maps_are_resized() -> None:
    assert resized_logits(torch.zeros(2, 3), size=()).shape == (2, 3)
    assert resized_logits(torch.zeros(2, 3, 4, 4), size=(8, 2)).shape == (2, 3, 8, 2)


def test_strides_of_one_interpreter_share_a_head() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    levels = [
        soft_level(),
        soft_level("shapes.s2", stride=2, shape=(CLASSES, 8, 8)),
        soft_level("kind", tap="kind:7", stride=0, shape=(7,)),
    ]
    branch = LabelBranch(DreamTeacherConfig(head_width=8), channels=[6, 8], levels=levels, seed=0)
    assert len(branch.heads) == 2 and [soft.head for soft in branch.soft_labels] == [0, 0, 1]
    targets = {level.name: torch.zeros(2, *level.shape) for level in levels}
    loss = branch([torch.randn(2, 6, 8, 8), torch.randn(2, 8, 4, 4)], targets)
    assert loss.shape == () and bool(loss.isfinite())


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shapes\.s4\.top2\.class beside it"):
        LabelBranch(
            DreamTeacherConfig(),
            channels=[6],
            levels=[soft_level("shapes.s4.top2.logit")],
            seed=0,
        )


@pytest.fixture(scope="module")
def soft_dataset(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Record soft labels of the very samples of `dataset`: how bright each cell is."""
    level = soft_level()
    content = {**dataset.recipe.content, "levels": [level.to_dict()]}
    recipe = Recipe("soft", content, {"format": "zarr", "samples_per_unit": 64, "codecs": {}})
    made = Dataset.create(
        str(tmp_path_factory.mktemp("soft")),
        recipe,
        levels=[level],
        image_size=IMAGE_SIZE,
        pins=Pins(micro_batch=16, compute_dtype="float32", device="cpu", threads=1),
        fsync=False,
    )
    made.grow(64)
    with made.lease("test"), made.unit_writer(0, count=64, run_id="test") as writer:
        for first in range(0, 64, 16):
            batch = make_batch(np.arange(first, first + 16))
            writer.write(first, _soft_batch(batch))
        writer.commit()
    made.roll_up(final=True)
    return made


def _soft_batch(batch: FeatureBatch) -> FeatureBatch:
    assert batch.image is not None
    cells = batch.image.reshape(len(batch), 4, 4, 4, 4, 3).mean(axis=(2, 4, 5)) / 255
    logits = np.stack([8 * cells, 4 - 4 * cells, np.zeros_like(cells)], axis=1)
    batch.levels = {"shapes.s4": logits.astype(np.float16)}
    return batch


@pytest.mark.parametrize("mode", ["label", "mix"])
def test_training_from_joined_datasets(
    mode: str, configure: Configure, dataset: Dataset, soft_dataset: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    config = configure(
        steps=30,
        save_every=30,
        data=DataConfig(dataset=dataset.url, join=[soft_dataset.url]),
        dreamteacher=DreamTeacherConfig(mode=mode, width=8, head_width=8),  # type: ignore[arg-type]
    )
    train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["label"] < first["label"] - 0.005
    if mode == "mix":
        feature = last["mse"] + 10 * last["at"]
        assert last["loss"] == pytest.approx(feature + last["label"], rel=1e-4)
    else:
        assert "mse" not in last and last["loss"] == pytest.approx(last["label"])
    card = json.loads((tmp_path / "run" / "logit_head.json").read_text("utf-8"))
    assert card == {"num_classes": CLASSES, "width": 8}
    student = json.loads((tmp_path / "run" / "student" / "student.json").read_text("utf-8"))
    # With features, their strides; without, all that the student has from the soft labels' on.
    assert student["strides"] == ([2, 4] if mode == "mix" else [4])


def test_what_the_mode_needs_must_be_there(dataset: Dataset, soft_dataset: Dataset) -> None:
    both = Needs(kinds=("feature", "soft_label"))
    with pytest.raises(ConfigError, match=r"at least one soft label\. .*--teacher\.interpreter"):
        open_training_set(DataConfig(dataset=dataset.url), needs=both)
    with pytest.raises(ConfigError, match="at least one map"):
        open_training_set(DataConfig(dataset=soft_dataset.url), needs=both)
    with pytest.raises(ConfigError, match=r"'shapes\.s4' \(not a map\)"):
        config = DataConfig(dataset=dataset.url, join=[soft_dataset.url], levels=["shapes.s4"])
        open_training_set(config, needs=Needs())
    joined = open_training_set(DataConfig(dataset=dataset.url, join=[soft_dataset.url]), needs=both)
    assert joined.strides == (2, 4) and joined.finest == 4 and len(joined.levels) == 3
    assert joined.at(joined.source.version) is joined
