"""The folder of an encoder and its generator, as `dreamshard pretrain --kind encoder` writes it.

    encoder.json           which network the encoder is, what it finds, which generator it is of
    encoder.safetensors    its weights
    generator/             the generator's own files, as they were

`latent` names what is found: z, what the generator draws; w, what StyleGAN2's mapping makes of z,
one for all layers; w_plus, one w for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import trusted
from pipeline.teachers import weights
from pipeline.teachers.base import Scalar
from pipeline.teachers.gan.teacher import GeneratorDescription, GeneratorTeacher

MARK, WEIGHTS, GENERATOR = "encoder.json", "encoder.safetensors", "generator"
FORMAT_VERSION = 1
FAMILIES = {
    "stylegan2": "pipeline.teachers.gan.stylegan2.family:StyleGAN2Teacher",
    "ssgan": "pipeline.teachers.gan.ssgan.family:SSGANTeacher",
    "biggan": "pipeline.teachers.gan.biggan.family:BigGANTeacher",
    "bigbigan": "pipeline.teachers.gan.bigbigan.family:BigBiGANTeacher",
}
"""Generators that an encoder may be of: `teacher.kind` -> class."""
NETWORKS: dict[str, tuple[int, ...]] = {
    "cifar_resnet18": (64, 128, 256, 512),
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
}
"""Encoder -> channels of its four stages."""
SMALL = "cifar_resnet18"
"""The one whose first stage keeps the image's resolution; the others' has a quarter of it."""
LATENTS = ("z", "w", "w_plus")
MAX_WIDTH = 4096


@dataclass(frozen=True, kw_only=True)
class EncoderLayout:
    """Say what an encoder is.

    Args:
        network: one of `NETWORKS`.
        width: channels of the first stage of `SMALL`; the others have their own.
        latent: one of `LATENTS`.
        kind: of its generator, one of `FAMILIES`.
        file: of the generator's weights, beside which what else it needs lies.
        settings: official flags of the generator, where its files do not tell them.
    """

    network: str
    width: int
    latent: str
    kind: str
    file: Path
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of each stage."""
        known = NETWORKS[self.network]
        return tuple(self.width * 2**k for k in range(4)) if self.network == SMALL else known

    @property
    def first_stride(self) -> int:
        """Return image pixels per cell of the first stage."""
        return 1 if self.network == SMALL else 4

    def to_dict(self) -> dict[str, Any]:
        """Return what `encoder.json` holds."""
        generator = {"kind": self.kind, "file": self.file.name, "settings": dict(self.settings)}
        return {
            "format_version": FORMAT_VERSION,
            "network": self.network,
            "width": self.width,
            "latent": self.latent,
            "generator": generator,
        }


def read_layout(folder: Path) -> EncoderLayout:
    """Read the description of an encoder.

    Raises:
        ConfigError: none at that path.
        TeacherError: a damaged one, or one that names what there is not.
    """
    where = folder / MARK
    if not where.is_file():
        hint = "Train one with `dreamshard pretrain --kind encoder --generator FOLDER`."
        raise ConfigError(Problem("path", str(folder) or "''", f"a folder with {MARK}", hint))
    raw = weights.read_json(where)
    generator = raw.get("generator")
    told = generator if isinstance(generator, dict) else {}
    file, width = told.get("file"), raw.get("width")
    tests = {
        "format_version": (raw.get("format_version"), raw.get("format_version") == FORMAT_VERSION),
        "network": (raw.get("network"), raw.get("network") in (*NETWORKS,)),
        "width": (width, type(width) is int and 1 <= width <= MAX_WIDTH),
        "latent": (raw.get("latent"), raw.get("latent") in LATENTS),
        "generator.kind": (told.get("kind"), told.get("kind") in (*FAMILIES,)),
        "generator.file": (file, isinstance(file, str) and file and Path(file).name == file),
        "generator.settings": (told.get("settings"), _are_settings(told.get("settings"))),
    }
    for key, (got, fits) in tests.items():
        if not fits:
            raise TeacherError(
                f"{where}: {key}: got {got!r:.80}, allowed what `dreamshard pretrain` writes. "
                "Fetch the folder again."
            )
    return EncoderLayout(
        network=raw["network"],
        width=raw["width"],
        latent=raw["latent"],
        kind=told["kind"],
        file=folder / GENERATOR / told["file"],
        settings=told["settings"],
    )


def _are_settings(value: object) -> bool:
    return isinstance(value, dict) and all(
        each is None or isinstance(each, str | int | float | bool) for each in value.values()
    )


def family(kind: str) -> type[GeneratorTeacher]:
    """Return the class of generators of a kind."""
    return trusted.find(kind, table=FAMILIES)


def describe_generator(
    kind: str, path: Path, settings: Mapping[str, Scalar]
) -> GeneratorDescription:
    """Describe a generator.

    Args:
        settings: official flags that its files do not tell; others have no place here.

    Raises:
        ConfigError: none there, or flags that it has not.
        TeacherError: unusable files.
    """
    cls = family(kind)
    own, describe = cls.find(path)
    if unknown := [name for name in settings if name not in own]:
        allowed = ", ".join(own) or f"none for {kind}"
        raise ConfigError(Problem(f"settings.{unknown[0]}", str(settings[unknown[0]]), allowed))
    return describe({**cls.SETTINGS, **own, **settings}, None)  # type: ignore[return-value]


def latent_shape(generator: GeneratorDescription, latent: str) -> tuple[int, ...]:
    """Return the shape per sample of what an encoder finds; () where the generator has none."""
    forms = {tap.name: tap.form for tap in generator.taps}
    return {"z": (generator.latent,), "w": forms.get("w", ()), "w_plus": forms.get("ws", ())}[
        latent
    ]


def classes_told(generator: GeneratorDescription, latent: str) -> int:
    """Return how many classes a generator wants to be told one of with a latent; 0: none.

    StyleGAN2's class is in w.
    """
    return 0 if latent != "z" else generator.classes
