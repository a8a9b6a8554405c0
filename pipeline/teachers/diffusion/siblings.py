"""What lies beside a network in its pipeline: parts that change what it works on are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamshard.errors import TeacherError
from pipeline.teachers import weights

INDEX = "model_index.json"
_HARMLESS = {"scheduler", "safety_checker", "feature_extractor"}
_TEXT = {f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
PARTS: dict[str, set[str]] = {
    "UNet2DModel": _HARMLESS,
    "SelfConditionedUNet2DModel": _HARMLESS,
    "UNet2DConditionModel": {*_HARMLESS, *_TEXT, "vae", "image_encoder"},
    "DiTTransformer2DModel": {*_HARMLESS, "vae"},
    "SD3Transformer2DModel": {*_HARMLESS, *_TEXT, "vae", "image_encoder"},
    "FluxTransformer2DModel": {*_HARMLESS, *_TEXT, "vae", "image_encoder"},
}
"""Class of a network -> parts that may lie beside it."""
LATENT_NAMES = ("vae", "vqvae", "movq", "vqgan", "autoencoder", "first_stage_model")
LATENT_CLASSES = ("VQ", "Autoencoder", "AsymmetricAutoencoder", "ConsistencyDecoder")
NEAREST = (
    "Nearest: a pixel-space network, or a latent one with an AutoencoderKL (Stable Diffusion, DiT, "
    "SD3, Flux)."
)


def check_siblings(folder: Path, kind: str, *, chosen: bool) -> None:
    """Refuse a network whose pipeline has parts that nothing here runs.

    Args:
        folder: of the network.
        kind: its class.
        chosen: the user named this very folder; then only what makes its inputs counts.

    Raises: TeacherError naming the part.
    """
    named = chosen and folder.name not in ("unet", "transformer")
    pipeline = folder if named else folder.parent
    parts, allowed = _parts(pipeline, folder), PARTS[kind]
    library, cls = parts.pop(folder.name, ("diffusers", kind))
    if (library, cls) != ("diffusers", kind):
        raise TeacherError(
            f"{pipeline / INDEX}: {folder.name}: got {library}.{cls}, allowed diffusers.{kind}, as "
            f"{folder / 'config.json'} says. Code of a pipeline's own is never run."
        )
    for name, (_, cls) in sorted(parts.items()):
        latent = name in LATENT_NAMES or cls.startswith(LATENT_CLASSES)
        if name in allowed or (chosen and not latent):
            continue
        what = f"a {cls}" if cls else "a part"
        why = "it works on that part's latents, not on pixels" if latent else "nothing here runs it"
        raise TeacherError(
            f"{pipeline / name}: {what} beside a {kind}: {why}. Allowed beside it: "
            f"{', '.join(sorted(allowed))}. {NEAREST}"
        )


def _parts(pipeline: Path, network: Path) -> dict[str, tuple[str, str]]:
    """Return part -> (library, class), from the index and from the folders themselves."""
    parts: dict[str, tuple[str, str]] = {}
    for entry in sorted(pipeline.iterdir()) if pipeline.is_dir() else []:
        if entry != network and (entry / "config.json").is_file():
            config: dict[str, Any] = weights.read_json(entry / "config.json")
            parts[entry.name] = ("", str(config.get("_class_name") or ""))
    if (pipeline / INDEX).is_file():
        for name, value in weights.read_json(pipeline / INDEX).items():
            pair = isinstance(value, list) and len(value) == 2
            if pair and not name.startswith("_") and isinstance(value[1], str):
                parts[name] = (str(value[0]), value[1])
    return parts
