"""Write a student as an ONNX model, for inference without PyTorch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.students.student import Student
from dreamshard.errors import ConfigError, Problem
from dreamshard.owner.parts import part_of

OPSET = 18


class _Maps(nn.Module):
    """Take images of 0..1 and normalise inside, so that nobody has to know mean and deviation."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(student.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(student.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.student((images - self.mean) / self.std))


def export_onnx(student: Student, path: Path, *, image_size: tuple[int, int]) -> Path:
    """Write a student's maps as an ONNX model with a free batch size.

    The model's input is `images`, float32 (N, 3, H, W) of 0..1; its outputs are `stride_4`, ...,
    float32 (N, C, H/4, W/4), finest first.

    Args:
        student: in any mode; it is put into evaluation mode.
        path: of the file to write.
        image_size: (H, W) in pixels.

    Raises:
        ConfigError: the packages that PyTorch's exporter needs are missing, or it cannot export
            this network.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        hint = "Install it: pip install 'dreamshard[onnx]'."
        raise ConfigError(Problem("formats", f"onnx ({error})", "timm", hint)) from error
    module = _Maps(student.cpu().eval())
    example = torch.zeros(2, 3, *image_size)  # a batch of one would be taken for a constant
    names = [f"stride_{stride}" for stride in student.strides]
    part = part_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own imports
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=names,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # torch has one kind per stage, and no common one
            reason = next(filter(None, str(error.__cause__ or error).splitlines()), "no reason")
            got = f"onnx, which torch cannot make of this network ({reason.strip()[:160]})"
            raise ConfigError(Problem("formats", got, "timm for this network")) from error
    assert program is not None
    program.save(str(part), external_data=False)
    part.replace(path)
    return path
