"""Folders of feature shards as Theia's extraction writes them, small."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

KEYS = [f"n0{number}_{number * 7}" for number in range(5)]
DINO, SAM = "facebook_dinov2-large", "facebook_sam-vit-huge"
SIDE = 28
TYPES = {"float16": "F16", "float32": "F32", "uint16": "BF16", "int64": "I64"}
"""numpy's name -> that of safetensors; 16-bit whole numbers stand for bfloat16's bits."""
Members = list[tuple[str, bytes]]


def packed(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return a safetensors file."""
    header, body = {}, b""
    for name, values in tensors.items():
        data = values.tobytes()
        places = [len(body), len(body) + len(data)]
        kind = TYPES[str(values.dtype)]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": places}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bits(values: np.ndarray) -> np.ndarray:
    """Cut float32 to bfloat16's bits, uint16."""
    return (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2")


def features(number: int) -> dict[str, dict[str, np.ndarray]]:
    """Return what two teachers say of a sample: teacher -> tensor -> values."""
    drawn = np.random.default_rng(number)
    return {
        DINO: {
            "embedding": bits(drawn.standard_normal((6, 2, 2))),
            "cls_token": bits(drawn.standard_normal(6)),
        },
        SAM: {"embedding": drawn.standard_normal((3, 4, 4)).astype(np.float16)},
    }


def image(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def make_folder(root: Path, *, images: bool = True) -> Path:
    """Write five samples in two shards: folders of two teachers and of the images, splits.json."""
    for part, numbers in enumerate(([0, 1, 2], [3, 4])):
        name = f"tiny_train-{part:06d}-train.tar"
        for teacher in (DINO, SAM):
            members = [
                (f"{KEYS[n]}.{teacher}.safetensors", packed(features(n)[teacher])) for n in numbers
            ]
            # The order of one teacher's samples need not be another's.
            write_tar(root / teacher / name, members if teacher == DINO else members[::-1])
        if images:
            pictures = [(f"{KEYS[n]}.image", npy(image(n))) for n in numbers]
            write_tar(root / "images" / name, pictures)
    (root / "splits.json").write_text('{"train": 5, "val": 0, "test": 0}')
    return root
