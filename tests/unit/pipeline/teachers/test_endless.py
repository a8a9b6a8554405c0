"""Shapes in a small file do not make a teacher's network long to build or large."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.official import adm_layout
from pipeline.teachers.diffusion.official.adm import build as adm_build
from pipeline.teachers.diffusion.official.dit import build as dit_build
from pipeline.teachers.diffusion.official.dit import read_config
from pipeline.teachers.gan.biggan import discriminator_layout
from pipeline.teachers.inspecting.tap_table import tap_table
from pipeline.teachers.recording.teacher import NetworkDescription
from pipeline.teachers.weights import count_numbered, unbuilt

WIDE = 60_000
"""A convolution of so many channels to as many would take 130 GB."""


def biggan(*blocks: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Return shapes of a generator's file: for each block channels in, between and out."""
    shapes: dict[str, tuple[int, ...]] = {
        "output_layer.2.weight": (1,),
        "linear.weight": (16 * blocks[0][0], 4),
        "blocks.0.0.bn1.gain.weight": (5, 1),
    }
    for number, (inputs, hidden, outputs) in enumerate(blocks):
        shapes[f"blocks.{number}.0.conv1.weight"] = (hidden, inputs)
        shapes[f"blocks.{number}.0.conv2.weight"] = (outputs, 1)
    return shapes


def dit(
    blocks: tuple[int, ...], *, places: int = 16, rows: int = 3, width: int = 16
) -> dict[str, tuple[int, ...]]:
    return {
        "x_embedder.proj.weight": (width, 1, 1, 1),
        "final_layer.linear.weight": (1, 1),
        "y_embedder.embedding_table.weight": (rows, 1),
        "pos_embed": (1, places, width),
        **{f"blocks.{number}.attn.qkv.weight": (1, 1) for number in blocks},
    }


ADM = {
    "time_embed.0.weight": (WIDE, WIDE // 100),
    "input_blocks.0.0.weight": (8, 3, 3, 3),
    "input_blocks.1.0.out_layers.3.weight": (32, 1),
    "middle_block.0.emb_layers.1.weight": (64, 1),
    "label_emb.weight": (WIDE, 1),
    "out.2.weight": (3, 32, 3, 3),
}
GENERATORS = {
    "a wide layer of two thin ones": biggan((4, 1, WIDE), (WIDE, 1, WIDE)),
    "images of 2^2000 pixels": biggan(*[(1, 1, 1)] * 2000),
    "a last block alone": biggan((1, 1, 1)) | {"blocks.99999999.0.conv1.weight": (1, 1)},
}
TRANSFORMERS = {
    "a last block alone": dit((0, 99_999_999)),
    "depth": dit(tuple(range(1200))),
    "classes times width": dit((0,), rows=WIDE, width=WIDE),
    "places times width": dit((0,)) | {"pos_embed": (1, 1 << 20, 1)},
    "no pixels in a patch": dit((0,)) | {"x_embedder.proj.weight": (16, 1, 0, 0)},
}
UNETS = {
    "a last block alone": ADM | {"output_blocks.99999999.0.in_layers.0.weight": (1,)},
    "classes times width": ADM
    | {f"output_blocks.{number}.0.in_layers.0.weight": (1,) for number in range(2)},
}
FLAGS = {"image_size": 32, "num_heads": 1, "num_head_channels": -1, "num_heads_upsample": -1}


@contextmanager
def cheap() -> Iterator[None]:
    """Expect an error that names the file, after little time and memory."""
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TeacherError, match=r"model\.pt"):
        yield
    assert time.process_time() - started < 20, "the promise for hostile files"
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * unit < 1 << 30


def written(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    path = folder / "model.pt"
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    return path


def described(path: Path, load: Callable[[torch.dtype], object]) -> NetworkDescription:
    return NetworkDescription(
        family="x", image_size=(8, 8), taps=(), aliases={}, weights=(path,), architecture={},
        load=load,
    )  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_a_small_file_describes_no_endless_generator(name: str, tmp_path: Path) -> None:
    with cheap():
        tap_table(str(written(tmp_path, GENERATORS[name])), costs=True)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_small_file_describes_no_endless_transformer(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, TRANSFORMERS[name])
    with cheap():
        config = read_config(weights.shapes(path), {"num_heads": 1}, where=str(path))
        described(path, lambda dtype: dit_build(path, config, dtype)).read(torch.float32)


@pytest.mark.parametrize("name", UNETS)
def test_a_small_file_describes_no_endless_unet(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, UNETS[name])
    with cheap():
        layout = adm_layout.read_layout(weights.shapes(path), where=str(path))
        flags: dict[str, Scalar] = {**FLAGS, "use_new_attention_order": False}
        described(path, lambda dtype: adm_build(path, layout, flags, dtype)).read(torch.float32)


def test_a_small_file_describes_no_endless_discriminator(tmp_path: Path) -> None:
    shapes = {"linear.weight": (1, 4), "blocks.0.0.conv1.weight": (4, 3, 3, 3)}
    shapes |= {"blocks.99999999.0.conv1.weight": (4, 3, 3, 3)}
    path = written(tmp_path, shapes)
    with cheap():
        discriminator_layout.read_layout(weights.shapes(path), where=str(path))


def test_numbers_are_counted_only_where_none_is_left_out() -> None:
    assert count_numbered(["a.0.x", "a.1.x", "a.1.y", "b.7"], r"a\.(\d+)\.") == 2
    for names in ([], ["a.1.x"], ["a.0.x", "a.9.x"]):
        with pytest.raises(ValueError, match="not 0, 1, 2"):
            count_numbered(names, r"a\.(\d+)\.")


def test_nothing_is_allocated_before_shapes_are_compared() -> None:
    network = unbuilt(lambda: torch.nn.Linear(1 << 20, 1 << 20), where="w")
    assert network.weight.is_meta
    with pytest.raises(TeacherError, match=r"w: describes a network of more than 10,000 parts"):
        unbuilt(lambda: torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(20_000))), where="w")
