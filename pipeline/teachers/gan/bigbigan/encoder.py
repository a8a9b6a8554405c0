"""BigBiGAN's encoder as a teacher of real images, with what the generator makes of its latents.

    teacher:
      kind: bigbigan
      part: encoder
      path: checkpoints/bigbigan       # *encoder*.safetensors, and the generator beside it
      levels: [s8, s16, s32, e.bn_crelu, rec.blocks.2]

Taps: the outputs of the encoder's four stages (`e.block1` ... `e.block4`), the pooled features
(`e.avepool`), those features as BN + CReLU (`e.bn_crelu`), mean and standard deviation of z
(`e.z_mean`, `e.z_stdev`) and the z that the generator is given (`e.z`): the mean, or with
`settings.z: sample` a draw by the sample's index. Of the generator G(E(x)): its blocks by their
official numbers (`rec.blocks.2`), its first map (`rec.linear`), and the reconstruction itself
(`rec.image`, in [-1, 1]). `convert.py` makes the encoder's file; `layout.py` describes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard import rng
from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign.arrays import safetensors_metadata
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar, TeacherSpec
from pipeline.teachers.gan.bigbigan import family
from pipeline.teachers.gan.bigbigan.layout import EncoderLayout, read_layout
from pipeline.teachers.gan.sizes import settle_size
from pipeline.teachers.gan.teacher import GeneratorDescription
from pipeline.teachers.recording import taps
from pipeline.teachers.recording.looking import LookingRequest, LookingTeacher
from pipeline.teachers.recording.taps import Tap
from pipeline.teachers.recording.teacher import NetworkDescription, PlainNetwork

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.teachers.recording.teacher import Records

DRAWS = ("mean", "sample")
"""What of E(x) the generator is given."""


@dataclass(frozen=True, kw_only=True)
class EncoderDescription(NetworkDescription):
    """Everything known about an encoder, and the generator beside it, before they are loaded."""

    latent: int

    def summary(self) -> list[str]:
        """Say what it is, and which generator belongs to it."""
        lines = [f"an encoder of latents of {self.latent}"]
        if len(self.weights) > 1:
            return [*lines, f"with the generator {self.weights[1].name}"]
        return [*lines, "without a generator: settings.generator adds reconstructions (rec.*)"]


@dataclass(kw_only=True)
class EncoderRequest(LookingRequest):
    """A checked request to an encoder."""

    @property
    def drawn(self) -> bool:
        """Return whether z is drawn, by seed and index."""
        return self.settings["z"] == "sample"

    def mode_settings(self) -> dict[str, object]:
        """Return what changes recorded bytes; the generator is part of the fingerprint."""
        return {"z": self.settings["z"]}

    @property
    def spec(self) -> TeacherSpec:
        """Return what the pipeline may know; a drawn z depends on the seed and the index."""
        return dataclasses.replace(super().spec, seeded=self.drawn)


class BigBiGANEncoderTeacher(LookingTeacher):
    """Run BigBiGAN's encoder and, as far as levels ask for it, its generator."""

    CHOICES: Mapping[str, tuple[str, ...]] = {"z": DRAWS}
    request_class = EncoderRequest

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Return the settings and what describes the files; see `NetworkTeacher.find`."""
        settings: dict[str, Scalar] = {"generator": "", "z": "mean"}
        return settings, functools.partial(describe, path)

    def record_images(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        """Run the networks on images uint8 (N, H, W, 3) and keep what they give."""
        import torch

        told = [self.prepare(images)]
        if self.request.drawn:
            shape = (self.description.latent,)
            drawn = rng.normal(self.seed, indices, 0, "posterior", shape)
            told.append(torch.from_numpy(drawn).to(self.device))
        self.keep(records, self.activations(*told))


def describe(
    path: Path, settings: Mapping[str, Scalar], image_size: tuple[int, int] | None = None
) -> EncoderDescription:
    """Describe the encoder at a path, and the generator beside it or in the settings.

    Raises:
        ConfigError: nothing there, or images that cannot be halved often enough.
        TeacherError: unusable files, or a generator of other latents.
    """
    file = _find_file(path)
    metadata = safetensors_metadata(file, error=TeacherError)
    layout = read_layout(weights.shapes(file), metadata, where=str(file))
    size = settle_size(image_size, own=layout.image_size, reduction=layout.reduction)
    generator = _find_generator(file, settings)
    if generator is not None and generator.latent != layout.latent:
        raise TeacherError(
            f"{generator.weights[0]}: got a generator of latents of {generator.latent}, allowed "
            f"{layout.latent}, the encoder's. Are they of one BigBiGAN?"
        )
    own = tuple(encoder_taps(layout))
    listed = (*own, *(generator_taps(generator, size) if generator else ()))
    told = {"encoder": dataclasses.asdict(layout)}
    if generator is not None:
        told["generator"] = dict(generator.architecture)
    return EncoderDescription(
        family="bigbigan.encoder",
        image_size=size,
        taps=listed,
        aliases=taps.stride_aliases(own),
        weights=(file, *(generator.weights if generator else ())),
        architecture=told,
        load=lambda dtype: PlainNetwork(load(file, layout, generator, dtype)),
        latent=layout.latent,
    )


def load(
    file: Path, layout: EncoderLayout, generator: GeneratorDescription | None, dtype: torch.dtype
) -> nn.Module:
    """Read the networks and make them ready; norms and what is pooled stay in float32.

    Raises: TeacherError for weights that are damaged or of another shape.
    """
    import torch

    from pipeline.teachers.gan.bigbigan.network import BigBiGANEncoder
    from pipeline.teachers.gan.bigbigan.reconstruct import Reconstructor

    module = weights.unbuilt(lambda: BigBiGANEncoder(layout), where=str(file))
    state = {name: value.float() for name, value in weights.read((file,)).items()}
    weights.load_into(module, state, where=str(file))
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.to(dtype)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Reconstructor(module, generator.load(dtype).module if generator else None)


def encoder_taps(layout: EncoderLayout) -> list[Tap]:
    """List what can be recorded of the encoder, in the order it is computed."""
    width, stages = layout.widths[-1], range(len(layout.widths))
    modules = [f"encoder.stages.{stage}" for stage in stages]
    listed = stage_taps(layout.widths, modules, first_stride=layout.first_stride)
    if layout.crelu:
        listed.append(taps.vector("e.bn_crelu", "encoder.crelu", 2 * width))
    for name, module in (("z_mean", "encoder.mean"), ("z_stdev", "encoder.stdev"), ("z", "z")):
        listed.append(taps.vector(f"e.{name}", module, layout.latent, kind="latent"))
    return listed


def stage_taps(widths: Sequence[int], modules: Sequence[str], *, first_stride: int) -> list[Tap]:
    """List the stages of an encoder, each of half the resolution, and the mean of the last."""
    listed = [
        Tap(f"e.block{stage + 1}", module, width, first_stride * 2**stage)
        for stage, (width, module) in enumerate(zip(widths, modules, strict=True))
    ]
    return [*listed, taps.vector("e.avepool", "encoder.pool", widths[-1])]


def generator_taps(generator: GeneratorDescription, size: tuple[int, int]) -> list[Tap]:
    """List what can be recorded of G(E(x)); strides are in pixels of the encoder's image."""
    height, width = generator.image_size
    image = Tap("image", "", 3, 1)
    listed = []
    for tap in (*generator.taps, image):
        channels, rows, columns = tap.shape((height, width))
        whole = size[0] % rows == 0 and size[0] // rows * columns == size[1]
        listed.append(
            Tap(
                f"rec.{tap.name}",
                f"generator.{tap.module}" if tap.module else "image",
                channels,
                size[0] // rows if whole else 0,
                item=tap.item,
                form=(channels, rows, columns),
                kind="feature",
            )
        )
    return listed


def _find_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in weights.SAFE:
            hint = "Make it with `python -m pipeline.teachers.gan.bigbigan.convert`."
            raise ConfigError(Problem("path", str(path), "a .safetensors file", hint))
        return path
    if not path.is_dir():
        hint = "Give the encoder's .safetensors file, or its folder."
        raise ConfigError(Problem("path", str(path) or "''", "an existing path", hint))
    files = sorted(p for p in path.glob("*.safetensors") if "encoder" in p.name.lower())
    if len(files) != 1:
        got = ", ".join(p.name for p in files) or f"no *encoder*.safetensors in {path}"
        raise ConfigError(Problem("path", got, "one *encoder*.safetensors", "Name the file."))
    return files[0]


def _find_generator(file: Path, settings: Mapping[str, Scalar]) -> GeneratorDescription | None:
    """Describe the generator that the settings name, or the one beside the encoder, if any."""
    if settings["generator"]:
        try:
            return family.describe(Path(str(settings["generator"])), {})
        except ConfigError as error:
            problems = [
                Problem("settings.generator", problem.got, problem.allowed, problem.hint)
                if isinstance(problem, Problem)
                else problem
                for problem in error.problems
            ]
            raise ConfigError(problems) from error
    beside = [*file.parent.glob(f"{family.NAME}*.pth"), *file.parent.glob("G_ema*")]
    return family.describe(file.parent, {}) if beside else None
