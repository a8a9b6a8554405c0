"""The monitor's images, and that it leaves the student alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.configs.train import MonitorConfig, StudentConfig
from distill.students.student import build_student
from distill.training.monitor import Monitor, pooled
from dreamshard.errors import DataError
from pipeline.images.source import SourceConfig


@pytest.mark.parametrize("kind", ["knn", "probe"])
def test_it_judges_digits_and_leaves_the_student_as_it_was(kind: str) -> None:
    student = build_student(
        StudentConfig(name="cifar_resnet", settings={"depths": [1, 1], "widths": [8, 16]}),
        strides=(1, 2),
        seed=0,
    ).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    digits = SourceConfig(kind="digits")
    config = MonitorConfig(
        every=1, kind=kind, samples=150, neighbours=5, train_images=digits, heldout_images=digits
    )  # type: ignore[arg-type]
    monitor = Monitor(config, image_size=(16, 16), seed=0)
    assert monitor.train[0].shape == (150, 16, 16, 3)
    for _, labels in (monitor.train, monitor.heldout):
        assert np.bincount(labels).tolist() == [15] * 10, "drawn class by class"
    (figure,) = monitor(student).items()
    assert figure[0] == f"monitor_{kind}" and 20 < figure[1] <= 100, "far better than chance"
    assert student.training
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pooling_is_the_deepest_maps_mean() -> None:
    student = build_student(
        StudentConfig(name="cifar_resnet", settings={"depths": [1], "widths": [4]}),
        strides=(1,),
        seed=0,
    ).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with torch.inference_mode():
        maps = student(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    torch.testing.assert_close(pooled(student, images), maps[-1].mean(dim=(2, 3)))


def test_images_without_labels_are_refused(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = SourceConfig(kind="folder", path=str(tmp_path))
    config = MonitorConfig(every=1, train_images=source, heldout_images=source)
    with pytest.raises(DataError, match=r"monitor\.train_images: got images without labels"):
        Monitor(config, image_size=(8, 8), seed=0)
