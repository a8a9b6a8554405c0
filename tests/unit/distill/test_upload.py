"""On a CPU batches stay where they are; tests/gpu has the rest."""

from __future__ import annotations

import numpy as np
import torch

from distill.upload import Uploader


def test_a_cpu_gets_the_very_arrays_and_pins_nothing() -> None:
    upload = Uploader(torch.device("cpu"))
    arrays = {"image": np.zeros((2, 3), np.uint8), "up.scale": np.ones(2, np.float16)}
    found = upload(arrays)
    assert all(found[name] is value for name, value in arrays.items())
    assert upload.pin is None
    upload.settle()
    upload.close()
