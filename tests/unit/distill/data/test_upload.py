"""Arrays on their way to a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distill.data.upload import Uploader
from storage.batches.ring import Slot
from tests.late_device import LateDevice

ARRAYS = {"image": np.arange(48, dtype=np.uint8), "codes": np.arange(9, dtype=np.uint16)}


def test_on_a_cpu_nothing_is_copied_and_nobody_waits() -> None:
    upload = Uploader(torch.device("cpu"), pin=True)
    found = upload(ARRAYS)
    assert all(found[name] is ARRAYS[name] for name in ARRAYS)
    upload.settle()
    upload.close()
    assert upload.wait_s == 0.0


def test_a_batch_is_whole_however_late_the_copies_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step waits for them, the next batch does not take their memory, nor their buffer."""
    device = LateDevice(monkeypatch)
    upload = Uploader(torch.device("cuda"), pin=False)
    side: Any = upload._stream
    buffer, seen = np.arange(6, dtype=np.float32), []
    for turn in range(3):
        upload.settle()  # before the buffer is filled again
        buffer += 10 * turn
        wanted = buffer.tolist()
        batch: Any = upload({"a": buffer})["a"]
        device.compute.queue.append(lambda batch=batch: seen.append(batch.tolist()))
        if turn == 1:
            upload.settle()
            buffer += 100
        device.free(batch, owner=side)
        assert seen[turn] == wanted
    assert not device.blocking


@pytest.mark.gpu
@pytest.mark.parametrize("pin", [True, False])
def test_a_gpu_gets_every_byte_and_the_buffer_may_be_filled_again(pin: bool) -> None:
    slot = Slot(4, {"image": (np.dtype(np.uint8), (999,)), "codes": (np.dtype(np.uint16), (7,))})
    upload, device = Uploader(torch.device("cuda"), pin=pin), torch.device("cuda")
    for turn in range(20):
        upload.settle()
        slot.arrays["image"][:] = turn
        slot.arrays["codes"][:] = turn + 1
        found = upload(slot.arrays)
        sums = {name: torch.as_tensor(found[name], device=device).sum() for name in found}
        assert int(sums["image"]) == turn * 4 * 999 and int(sums["codes"]) == (turn + 1) * 28
        assert found["codes"].dtype == torch.int16
    upload.close()
    assert upload.wait_s > 0
