"""Find a network in SS-GAN's and SNGAN's files and read it, whichever code wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, Problem, TeacherError
from pipeline.teachers import weights
from pipeline.teachers.gan.ssgan import compare_gan, mimicry
from pipeline.teachers.gan.ssgan.layout import DiscriminatorLayout, GeneratorLayout

if TYPE_CHECKING:
    from torch import Tensor

STEMS = {"generator": "netG", "discriminator": "netD"}
"""How torch-mimicry names the files of a part."""


@dataclass(frozen=True)
class Network:
    """A network in a file.

    Args:
        file: that holds it.
        part: generator or discriminator.
        stored: for compare_gan's files, name within the network -> name in the file; else None.
        shapes: name (within the network) -> shape.
        others: shapes of the other part in the same file, if it is there.
    """

    file: Path
    part: str
    stored: Mapping[str, str] | None
    shapes: Mapping[str, tuple[int, ...]]
    others: Mapping[str, tuple[int, ...]]

    @property
    def tensorflow(self) -> bool:
        """Return whether compare_gan wrote it."""
        return self.stored is not None

    def read(self, layout: GeneratorLayout | DiscriminatorLayout) -> dict[str, Tensor]:
        """Return its weights, named as our modules are.

        Raises: TeacherError for values that cannot be read or do not fit together.
        """
        state, where = weights.read((self.file,)), str(self.file)
        if self.stored is None:
            return mimicry.rename(state, where=where)
        within = {name: state[stored].float() for name, stored in self.stored.items()}
        return compare_gan.rename(within, layout, where=where)


def open_network(path: Path, part: str) -> Network:
    """Find the network of a part at a path: a file, or a folder that holds one.

    Raises:
        ConfigError: nothing there, several files, or a file of the other part.
        TeacherError: a file that cannot be read or holds no such network.
    """
    file = _find_file(path, STEMS[part])
    shapes = weights.shapes(file)
    if file.suffix in weights.ARRAYS:
        return _of_compare_gan(file, part, shapes)
    try:
        discriminator = mimicry.is_discriminator(shapes)
    except ValueError as error:
        raise unknown(file, part, error, shapes) from error
    if discriminator != (part == "discriminator"):
        other = "discriminator" if discriminator else "generator"
        hint = f"Give its {part}, or set teacher.part to {other}."
        raise ConfigError(Problem("path", f"{file}: a {other}", f"a {part}", hint))
    return Network(file, part, None, shapes, {})


def unknown(
    file: Path, part: str, error: Exception, shapes: Mapping[str, tuple[int, ...]]
) -> TeacherError:
    """Say that a file is not read, why, and what would be."""
    return TeacherError(
        f"{file}: not a {part} of SS-GAN or SNGAN ({type(error).__name__}: {error}; its keys begin "
        f"{', '.join(sorted(shapes)[:3])}), allowed torch-mimicry's (netG_*.pth, netD_*.pth) and "
        "compare_gan's variables as .npz (pipeline/teachers/gan/ssgan/compare_gan.py)."
    )


def _of_compare_gan(file: Path, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    names = compare_gan.plain_names(shapes)
    parts = {each: compare_gan.of_part(names, each) for each in STEMS}
    if not parts[part]:
        raise unknown(file, part, KeyError(f"{part}/"), shapes)
    shapes_of = {
        each: {own: shapes[stored] for own, stored in known.items()}
        for each, known in parts.items()
    }
    other = next(each for each in STEMS if each != part)
    return Network(file, part, parts[part], shapes_of[part], shapes_of[other])


def _find_file(path: Path, stem: str) -> Path:
    suffixes = (*weights.SAFE, *weights.PICKLED, *weights.ARRAYS)

    def look(folder: Path) -> list[Path]:
        # torch-mimicry keeps each network's in a folder of its own: netG/netG_100000_steps.pth.
        candidates = [*folder.glob(f"{stem}*"), *folder.glob(f"{stem}/{stem}*")]
        files = sorted(p for p in candidates if p.suffix in suffixes and p.is_file())
        return files or sorted(folder.glob(f"*{compare_gan.SUFFIX}"))

    of = f"{stem}_*_steps.pth of torch-mimicry"
    return weights.one_file(path, named=f"{stem}*.pth or .npz", of=of, look=look, suffixes=suffixes)
