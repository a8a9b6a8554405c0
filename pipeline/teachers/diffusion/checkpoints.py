"""Tell from the names of its tensors which network a single checkpoint file holds."""

from __future__ import annotations

from pathlib import Path

from dreamshard.errors import TeacherError
from pipeline.teachers import weights

MARKS: tuple[tuple[str, str], ...] = (
    ("input_blocks.0.0.weight", "pipeline.teachers.diffusion.official.adm"),
    ("x_embedder.proj.weight", "pipeline.teachers.diffusion.official.dit"),
    ("temb.dense.0.weight", "pipeline.teachers.diffusion.official.unet_file"),
    ("time_embedding.linear_1.weight", "pipeline.teachers.diffusion.official.unet_file"),
)
"""A tensor that every file of a kind has -> the module that describes such files."""

CONVERT = "Convert it to a folder with diffusers (from_single_file, then save_pretrained)."
OTHERS: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.", "a Stable Diffusion checkpoint in its original layout"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer in its original layout"),
    ("double_blocks.", "a Flux transformer in its original layout"),
    ("add_embedding.", "a Stable Diffusion XL UNet without its pipeline"),
    ("encoder.conv_in.", "an autoencoder, not a denoising network"),
)
"""Beginning of a tensor's name -> what such a file is; none of them is read."""
STUDENT, CONFIG, ENCODER = "student.json", "config.json", "encoder.json"
"""Files that tell a student of ours, a network of timm's layout, and a generator's encoder."""
GENERATORS: tuple[tuple[str, str], ...] = (
    ("output_layer.2.weight", "biggan"),
    ("generator.gen_z.weight_orig", "biggan"),
    ("block2.c1.weight", "ssgan"),
    ("block2.c1.weight_orig", "ssgan"),
)
"""A tensor that every file of a kind of generator has -> `teacher.kind`."""


FOLDERS = {
    "bigbigan": ("BigBiGAN*", "*encoder*.safetensors"),
    "biggan": ("G_ema*", "pytorch_model.bin", "biggan*pytorch_model.bin"),
    "ssgan": ("netG_*", "netD_*"),
}
"""`teacher.kind` -> names of files, one of which is in every folder of it."""


def family_of(path: Path) -> str:
    """Return the module that describes a checkpoint file.

    Raises: TeacherError if the file is damaged, hostile or holds no network known here.
    """
    names = weights.shapes(path)
    for mark, module in MARKS:
        if mark in names:
            return module
    what = next(
        (text for start, text in OTHERS if any(name.startswith(start) for name in names)), None
    )
    if what is not None:
        raise TeacherError(f"{path}: it is {what}. {CONVERT}")
    raise TeacherError(
        f"{path}: holds no known network; its keys begin {', '.join(sorted(names)[:3])}, allowed "
        "guided-diffusion, DDPM, DiT, SiT or BigGAN checkpoints and UNet2DModel weights. "
        "Other networks: a folder saved by save_pretrained."
    )


def kind_of(path: Path) -> str:
    """Guess the teacher family of a path: a generator's, timm's, a student's, or diffusers."""
    if (path / ENCODER).is_file():
        return "encoder"
    if any((path / part / STUDENT).is_file() for part in ("", "student")):
        return "student"
    if (path / CONFIG).is_file() and "architecture" in weights.read_json(path / CONFIG):
        return "timm"
    if path.suffix == ".pkl" or (path.is_dir() and any(path.glob("*.pkl"))):
        return "stylegan2"
    for kind, names in FOLDERS.items():
        if path.is_dir() and any(any(path.glob(name)) for name in names):
            return kind
    if not path.is_file() or path.suffix not in weights.SAFE + weights.PICKLED:
        return "diffusers"
    names = weights.shapes(path)
    return next((kind for mark, kind in GENERATORS if mark in names), "diffusers")
