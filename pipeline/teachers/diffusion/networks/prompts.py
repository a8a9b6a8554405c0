"""The empty prompt of a text-to-image teacher: a constant, computed once and kept beside it.

`empty_prompt.safetensors` holds `prompt_embeds` (1, T, D) and, for models that take one, `pooled`
(1, P). With it no text encoder is ever loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import TeacherError
from dreamshard.foreign import trusted
from dreamshard.owner.parts import part_of
from dreamshard.permissions import apply_umask
from pipeline.teachers import weights
from pipeline.teachers.diffusion import schedulers

if TYPE_CHECKING:
    from torch import Tensor

FILE = "empty_prompt.safetensors"
SETTING = "prompt_embedding"
OWN_PROMPT = f"Or make {FILE} where you trust the pipeline, and put it there."
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
CLASSES: dict[object, tuple[str, ...]] = {
    "diffusers": (
        "UNet2DConditionModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
        "AutoencoderKL",
        *schedulers.KNOWN,
    ),
    "transformers": (
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPTokenizer",
        "CLIPTokenizerFast",
        "T5EncoderModel",
        "T5Tokenizer",
        "T5TokenizerFast",
        "CLIPImageProcessor",
        "CLIPFeatureExtractor",
        "CLIPVisionModelWithProjection",
    ),
    "stable_diffusion": ("StableDiffusionSafetyChecker",),
}
"""Library -> classes that an index may name."""


def find_prompt(pipeline: Path, setting: object, *, width: int, pooled: int | None) -> Path:
    """Find the empty prompt's file, computing it once if the text encoders are there.

    Args:
        pipeline: the pipeline's folder.
        setting: path given by the user, or None.
        width: of the embedding the network takes.
        pooled: width of the pooled embedding, None if the network takes none.

    Raises: TeacherError if it cannot be had or does not fit.
    """
    path = Path(str(setting)) if setting else pipeline / FILE
    if not path.is_file():
        if setting or not (pipeline / "text_encoder").is_dir():
            raise TeacherError(
                f"{path}: not found. It holds the empty prompt's embedding (prompt_embeds"
                f"{', pooled' if pooled else ''}); it is made by itself where the pipeline's "
                "folder has its tokenizer and text_encoder."
            )
        compute_empty_prompt(pipeline, path)
    shapes = weights.shapes(path)
    expected = {"prompt_embeds": width} | ({"pooled": pooled} if pooled else {})
    for name, size in expected.items():
        if name not in shapes or shapes[name][-1] != size:
            got = shapes.get(name, "nothing")
            raise TeacherError(f"{path}: {name}: got {got}, allowed {size} values per row.")
    return path


def compute_empty_prompt(pipeline: Path, path: Path) -> None:
    """Run a pipeline's text encoders on the empty prompt once and keep what they say.

    Raises: TeacherError if the package transformers is missing or the encoders cannot be loaded.
    """
    try:
        trusted.module("transformers")
    except ImportError:
        raise TeacherError(
            f"{path}: not there yet, and making it once needs transformers: "
            "pip install 'dreamshard[latent]'"
        ) from None
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from safetensors.torch import save_file

    parts: dict[str, Any] = dict.fromkeys(("unet", "transformer", "vae", "safety_checker"))
    index = weights.read_json(pipeline / "model_index.json")
    _check_names(index, pipeline / "model_index.json")
    absent = {name: None for name in parts if name in index}
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(
            pipeline, use_safetensors=True, variant=_variant(pipeline), **absent
        )
        second = {
            name: "" for name in ("prompt_2", "prompt_3") if f"text_encoder{name[6:]}" in index
        }
        guided = {} if "Flux" in index["_class_name"] else {"do_classifier_free_guidance": False}
        if index["_class_name"] == "StableDiffusionPipeline":
            guided |= {"num_images_per_prompt": 1, "device": "cpu"}
        encoded = pipe.encode_prompt("", **second, **guided)
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()[0][:160]
        raise TeacherError(f"{pipeline}: its text encoders cannot be used ({first}).") from error
    state = {"prompt_embeds": encoded[0].float().contiguous()}
    pooled = (
        encoded[1] if "Flux" in index["_class_name"] else (encoded[2] if len(encoded) > 2 else None)
    )
    if pooled is not None:
        state["pooled"] = pooled.float().contiguous()
    part = part_of(path)
    save_file({name: tensor.detach().cpu() for name, tensor in state.items()}, part)
    apply_umask(part)
    part.replace(path)


def _variant(pipeline: Path) -> str | None:
    """Return the variant of the text encoders' weights (fp16), None where they are plain."""
    folder = pipeline / "text_encoder"
    if (folder / "model.safetensors").is_file() or list(folder.glob("*.safetensors.index.json")):
        return None
    variants = {
        path.name.split(".")[1].split("-")[0] for path in folder.glob("model.*.safetensors")
    }
    return variants.pop() if len(variants) == 1 else None


def _check_names(index: dict[str, Any], where: Path) -> None:
    """Refuse an index that names other code than that of the pipelines known here.

    diffusers imports what an index names, so it may name nothing but what is listed here.
    """
    if index.get("_class_name") not in PIPELINES:
        raise TeacherError(
            f"{where}: _class_name: got {index.get('_class_name')!r:.80}, allowed "
            f"{', '.join(PIPELINES)}. {OWN_PROMPT}"
        )
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or not any(value):
            continue
        if len(value) != 2 or value[1] not in CLASSES.get(str(value[0]), ()):
            raise TeacherError(
                f"{where}: {name}: got {value!r:.80}, allowed classes of diffusers and "
                f"transformers that such a pipeline has. Nothing else is imported. {OWN_PROMPT}"
            )


class Prompt:
    """The empty prompt's tensors, repeated for each row of a batch."""

    def __init__(self, path: Path) -> None:
        state = weights.read([path])
        weights.refuse_not_finite(state, where=str(path))
        self._embeds = state["prompt_embeds"].reshape(1, -1, state["prompt_embeds"].shape[-1])
        self._pooled = state["pooled"].reshape(1, -1) if "pooled" in state else None

    def embeds(self, like: Tensor) -> Tensor:
        """Return (N, T, D) for a batch, on its device and in its dtype."""
        return self._embeds.to(like.device, like.dtype).expand(len(like), -1, -1)

    def pooled(self, like: Tensor) -> Tensor:
        """Return (N, P) for a batch."""
        assert self._pooled is not None
        return self._pooled.to(like.device, like.dtype).expand(len(like), -1)
