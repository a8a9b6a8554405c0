"""A kind of teacher in one file: two convolutions, whose weights lie in a safetensors file."""

import functools
from types import MappingProxyType

import torch

from pipeline.teachers import weights
from pipeline.teachers.pixels import signed
from pipeline.teachers.recording.taps import Tap, stride_aliases
from pipeline.teachers.recording.teacher import NetworkDescription, NetworkTeacher, PlainNetwork


class MadeUpTeacher(NetworkTeacher):
    modes = ("encode",)
    CHOICES = MappingProxyType({"padding": ("zeros", "reflect")})

    @classmethod
    def find(cls, path):
        return {"padding": "zeros"}, functools.partial(describe, path)

    def record_images(self, records, images, indices):
        self.keep(records, self.activations(signed(images).to(self.dtype)))


def describe(path, settings, image_size):
    first, last = (weights.shapes(path)[f"{number}.weight"] for number in (0, 1))
    taps = (Tap("first", "0", first[0], 2), Tap("last", "1", last[0], 4))

    def load(dtype):
        told = {"stride": 2, "padding": 1, "padding_mode": settings["padding"]}
        layers = [torch.nn.Conv2d(shape[1], shape[0], 3, **told) for shape in (first, last)]
        module = torch.nn.Sequential(*layers)
        weights.load_into(module, weights.read([path]), where=str(path), dtype=dtype)
        return PlainNetwork(module)

    return NetworkDescription(
        family="made up", image_size=image_size or (16, 16), taps=taps,
        aliases=stride_aliases(taps), weights=(path,), architecture=dict(settings), load=load,
    )  # fmt: skip
