"""Plain npy files of known dtype and shape: written as numpy does, read without its header parser.

That parser takes any header, whoever wrote it; ours is known to the byte, so it is compared.
"""

from __future__ import annotations

import io
import math

import numpy as np


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the header of an npy file, version 1.0, C order."""
    buffer = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def write_npy(array: np.ndarray) -> bytes:
    """Return an array as an npy file."""
    plain = np.ascontiguousarray(array)
    return npy_header(plain.dtype, plain.shape) + plain.tobytes()


def read_npy(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read an npy file that must hold exactly this.

    Raises:
        ValueError: if it holds anything else.
    """
    front = npy_header(dtype, shape)
    if not data.startswith(front):
        raise ValueError(f"its header is not that of {dtype} {shape}")
    if len(data) != len(front) + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes")
    return np.frombuffer(data, dtype, offset=len(front)).reshape(shape)
