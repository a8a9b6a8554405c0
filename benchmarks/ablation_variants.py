"""What `ablations.py` compares: every variant's difference from the base."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE_METHOD: dict[str, Any] = {"attention_weight": 0.0}
LEVELS = {"up.2.t50": 32, "up.1.t50": 96, "up.0.t50": 160}  # channels of the default teacher
BASE = "base"


@dataclass(frozen=True)
class Variant:
    """Say in what a variant differs from the base.

    Args:
        group: what is compared.
        method: settings of DreamTeacherConfig, over those of the base.
        changes: any other settings of `dreamshard train`, by dotted keys.
        encode: options of `dreamshard encode`; none: the base's dataset.
        codec: arguments of `dreamshard export --codec`; none: the dataset as encoded.
    """

    group: str
    method: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    encode: tuple[str, ...] = ()
    codec: tuple[str, ...] = ()


def low_rank(fold: int, inner: str) -> tuple[str, ...]:
    """Return the codecs that keep 1/fold of float16's bytes (the scales' few not counted)."""
    per_value = {"int8": 2, "int4": 4}[inner]  # of float16's bytes, how many times fewer
    ranks = {level: max(1, round(per_value * size / fold)) for level, size in LEVELS.items()}
    return tuple(f"{level}=lowrank{rank}-{inner}" for level, rank in ranks.items())


COARSE = {"data.levels": ["s4", "s2"]}
VECTOR = "s4"
"""The deepest level, averaged over space: what similarity and embedding methods compare."""
FEATURES = {
    "feature.weight": 1.0,
    "feature.attention_weight": 0.0,
    "feature.width": 32,
    "feature.whiten": "layer_norm",
}
CHANNEL = FEATURES | {"feature.whiten": "channel"}
GRAM = {"gram.weight": 1.0}
QUEUES, TEMPERATURES = (64, 1024, 4096, 16384), (0.02, 0.2, 1.0)
QUEUE = 4096  # where the queue is not what is compared


def similar(variant: str, *, queue: int = QUEUE, **more: float | str) -> dict[str, Any]:
    """Return settings of the similarity objective; more: temperature (0.04 unsaid), view."""
    momentum = {"momentum": 0.99} if variant == "2q" else {}
    return {"variant": variant, "queue": queue, "level": VECTOR} | momentum | more


def compress(variant: str, **more: Any) -> dict[str, Any]:
    """Return settings of CompRess, which reads the one level it learns from."""
    words = {f"compress.{name}": value for name, value in similar(variant, **more).items()}
    return {"method": "compress", "data.levels": [VECTOR]} | words


def baseline(method: str, **more: Any) -> dict[str, Any]:
    """Return settings of a baseline of CompRess's table 1."""
    words = {"level": VECTOR} | more
    told = {f"{method}.{name}": value for name, value in words.items()}
    return {"method": method, "data.levels": [VECTOR]} | told


def mix(parts: dict[str, Any], *, similarity: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return settings of a mix of objectives, similarity at weight 1 on the image itself.

    A random view beside the image would be a second pass of the student for every sample.
    """
    if similarity is not None:
        words = {"weight": 1.0, "view": "same"} | similarity
        parts = parts | {f"similarity.{name}": value for name, value in words.items()}
    return {"method": "mix"} | {f"mix.{name}": value for name, value in parts.items()}


VARIANTS: dict[str, Variant] = {
    BASE: Variant("base"),
    "int8": Variant("bytes", codec=("int8",)),
    "int4": Variant("bytes", codec=("int4",)),
    **{
        f"lowrank-{inner} 1/{fold}": Variant("bytes", codec=low_rank(fold, inner))
        for inner in ("int8", "int4")
        for fold in (8, 16, 32)
    },
    **{f"dct 1/{fold}": Variant("bytes", codec=(f"dct{fold}",)) for fold in (16, 32)},
    **{
        f"MSE + {weight:g} AT": Variant("loss", {"attention_weight": weight})
        for weight in (0.1, 1.0, 10.0)
    },
    "AT alone": Variant("loss", {"mse_weight": 0.0, "attention_weight": 10.0}),
    "whole map whitened": Variant("whitening", {"whiten_axes": "chw"}),
    "whole map whitened, MSE + 10 AT": Variant(
        "whitening", {"whiten_axes": "chw", "attention_weight": 10.0}
    ),
    "FPN": Variant("regressor", {"regressor": "fpn"}),
    "FPN + attention": Variant("regressor", {"regressor": "fpn_attention"}),
    "PaFPN": Variant("regressor", {"regressor": "pafpn"}),
    "deterministic": Variant("encoding", encode=("--teacher.settings.encoding", "inversion")),
    **{
        f"t = {t}": Variant("timestep", encode=("--teacher.timesteps", f"[{t}]"))
        for t in (0, 25, 100, 200, 400)
    },
    **{f"whiten {kind}": Variant("standardise", {"whiten": kind}) for kind in ("channel", "phi_s")},
    "smooth L1": Variant("standardise", {"regression": "smooth_l1"}),
    "channel, smooth L1": Variant("standardise", {"whiten": "channel", "regression": "smooth_l1"}),
    "channel, cosine + smooth L1": Variant(
        "standardise", {"whiten": "channel", "regression": "cos_smooth_l1"}
    ),
    "without the finest": Variant("standardise", changes=COARSE),
    "channel, without the finest": Variant("standardise", {"whiten": "channel"}, changes=COARSE),
    **{
        f"CompRess {form}, queue {queue}": Variant(
            "similarity", changes=compress(form, queue=queue)
        )
        for form in ("1q", "2q")
        for queue in QUEUES
    },
    "CompRess 2q, no momentum": Variant("similarity", changes=compress("2q", momentum=0.0)),
    "CompRess 1q, same view": Variant("similarity", changes=compress("1q", view="same")),
    **{
        f"CompRess 1q, T = {t:g}": Variant("similarity", changes=compress("1q", temperature=t))
        for t in TEMPERATURES
    },
    "Reg": Variant("similarity", changes=baseline("reg")),
    "Reg-BN": Variant("similarity", changes=baseline("reg", batch_norm=True)),
    "CC, 1000 clusters": Variant("similarity", changes=baseline("cc", clusters=1000)),
    f"CRD, {QUEUE} negatives": Variant("similarity", changes=baseline("crd", negatives=QUEUE)),
    "Gram": Variant("similarity", changes=mix(GRAM)),
    **{
        f"features + {form}, queue {queue}": Variant(
            "mix", changes=mix(FEATURES, similarity=similar(form, queue=queue))
        )
        for form in ("1q", "2q")
        for queue in QUEUES
    },
    **{
        f"features + 1q, T = {t:g}": Variant(
            "mix", changes=mix(FEATURES, similarity=similar("1q", temperature=t))
        )
        for t in TEMPERATURES
    },
    "features + 1q, random view": Variant(
        "mix", changes=mix(FEATURES, similarity=similar("1q", view="random"))
    ),
    "features + Gram": Variant("mix", changes=mix(FEATURES | GRAM)),
    "features + Reg": Variant(
        "mix",
        changes=mix(
            FEATURES
            | {"regression.weight": 1.0, "regression.level": VECTOR, "regression.view": "same"}
        ),
    ),
    "features + 1q + Gram": Variant("mix", changes=mix(FEATURES | GRAM, similarity=similar("1q"))),
    "channel + 1q": Variant("mix", changes=mix(CHANNEL, similarity=similar("1q"))),
    "channel + 1q + Gram": Variant("mix", changes=mix(CHANNEL | GRAM, similarity=similar("1q"))),
}
GROUPS = list(dict.fromkeys(variant.group for variant in VARIANTS.values()))[1:]
