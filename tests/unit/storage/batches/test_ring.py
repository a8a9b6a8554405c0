"""Ring buffers: aligned and private to the process."""

import numpy as np
import pytest

from storage.batches.ring import PAGE, Slot, allocate

SPECS = {
    "s8": (np.dtype("<f2"), (4, 3, 3)),
    "image": (np.dtype("u1"), (4, 4, 3)),
    "label": (np.dtype("<i8"), ()),
}


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 5 << 20])
def test_memory_is_whole_zeroed_pages(size: int) -> None:
    memory = allocate(size)
    assert memory.ctypes.data % PAGE == 0
    assert memory.nbytes % PAGE == 0
    assert memory.nbytes >= size
    assert memory.flags.writeable
    assert not memory.any()


def test_arrays_of_a_slot_do_not_overlap() -> None:
    slot = Slot(7, SPECS)
    for number, (name, array) in enumerate(slot.arrays.items(), 1):
        dtype, shape = SPECS[name]
        assert array.dtype == dtype
        assert array.shape == (7, *shape)
        assert array.ctypes.data % PAGE == 0
        assert array.flags.c_contiguous
        array[...] = number
    for number, array in enumerate(slot.arrays.values(), 1):
        assert (array == number).all()


def test_tensors_share_the_memory() -> None:
    torch = pytest.importorskip("torch")
    slot = Slot(2, SPECS)
    tensor = torch.from_numpy(slot.arrays["s8"])
    slot.arrays["s8"][1, 3, 2, 2] = 5
    assert tensor[1, 3, 2, 2] == 5
    assert tensor.dtype == torch.float16
