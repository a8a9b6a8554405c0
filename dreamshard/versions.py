"""Know what dreamshard depends on and which versions are installed, without importing any of it."""

from __future__ import annotations

from collections.abc import Iterable

VERSION = "0.1.0"
"""Of dreamshard; here, where the report and the build can read it without its front door."""
BASE = (
    *("numpy", "pyarrow", "zarr", "numcodecs", "fsspec", "numba", "xxhash"),
    *("pydantic", "docstring-parser", "PyYAML", "rich"),
    *("torch", "torchvision", "timm", "diffusers", "accelerate", "ray", "safetensors"),
    *("huggingface_hub", "scikit-learn", "scipy", "pillow", "matplotlib", "Jinja2"),
)
"""Distributions of the base installation; a test holds this equal to pyproject.toml."""
EXTRAS = {
    "evaluate": ("segmentation-models-pytorch", "torchmetrics", "pycocotools"),
    "latent": ("transformers",),
    "view": ("aiohttp",),
    "hf": ("datasets",),
    "tar": ("webdataset",),
    "remote": ("s3fs", "gcsfs"),
}
"""Extra -> the distributions it adds."""


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each named distribution that is installed."""
    from importlib import metadata  # slow, and whoever imports dreamshard imports this file

    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def all_versions() -> dict[str, str]:
    """Return the versions of dreamshard and of everything it can make use of."""
    optional = dict.fromkeys(name for names in EXTRAS.values() for name in names)
    return package_versions(["dreamshard", *BASE, *optional])
