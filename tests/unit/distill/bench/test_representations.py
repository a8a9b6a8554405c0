"""Random students are judged with batch statistics that were measured."""

from __future__ import annotations

import numpy as np
import torch

from distill.bench.representations import measure_statistics, stronger_untrained
from distill.students.normalise import Normaliser
from distill.students.student import build_student
from tests.unit.distill.tasks.shape_bench import STUDENT


def test_batch_norms_get_the_images_own_statistics_and_weights_stay() -> None:
    student = build_student(STUDENT, strides=[1, 2, 4], seed=0).eval()
    before = {name: value.clone() for name, value in student.named_parameters()}
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), np.uint8)
    found = measure_statistics(student, images, device=torch.device("cpu"))
    assert found is student and not student.training
    norms = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(norm.momentum == 0.1 and not norm.training for norm in norms)
    assert all(int(norm.num_batches_tracked or 0) == 2 for norm in norms), "88 images are left over"
    assert all(torch.equal(value, before[name]) for name, value in student.named_parameters())
    # What goes out of the first batch norm has mean 0 and deviation 1 over the images measured.
    seen: list[torch.Tensor] = []
    norms[0].register_forward_hook(lambda _, inputs, out: seen.append(out.clone()))
    with torch.no_grad():
        student(Normaliser(student.mean, student.std, device=torch.device("cpu"))(images[:512]))
    mean, spread = seen[0].mean(dim=(0, 2, 3)), seen[0].std(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=0.02, rtol=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=0.05, rtol=0)


def test_training_images_choose_the_statistics_of_the_untrained_student() -> None:
    student = build_student(STUDENT, strides=[1, 2, 4], seed=0).eval()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    images = rng.integers(100, 110, (200, 8, 8, 3), np.uint8)
    images[labels == 1, :4] += 60
    how: dict = {"device": torch.device("cpu"), "pool": "all", "seed": 0}
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for given in (None, np.full(200, -1)):
        found, name = stronger_untrained(student, images, given, **how)
        assert name == "measured" and found is not student
    found, name = stronger_untrained(student, images, labels, **how)
    assert (name == "initial") == (found is student)
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    # Statistics that let nothing through are worse than measured ones.
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(1e9)  # type: ignore[union-attr]
    assert stronger_untrained(student, images, labels, **how)[1] == "measured"
