"""Random students are judged with batch statistics that were measured."""

from __future__ import annotations

import numpy as np
import torch

from distill.bench.representations import measure_statistics
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
