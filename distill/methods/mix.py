"""A mix: any objectives on one student, by weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from distill.methods.compress import Similarity
from distill.methods.compress_baselines import Clusters, Regression
from distill.methods.crd import Contrast
from distill.methods.dreamteacher import Feature
from distill.methods.gram import Gram
from distill.methods.label_branch import Label
from distill.methods.objective import Composite, Objective, Part
from distill.methods.squeeze_and_span import Span, Squeeze
from distill.methods.supervised import Classes
from distill.methods.two_views import Agreement, Invariance
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from typing import Any

    from distill.configs.augment import AugmentConfig
    from distill.configs.mix import MixConfig

OBJECTIVES: dict[str, type[Objective]] = {
    "feature": Feature,
    "gram": Gram,
    "label": Label,
    "similarity": Similarity,
    "regression": Regression,
    "clusters": Clusters,
    "contrast": Contrast,
    "squeeze": Squeeze,
    "span": Span,
    "vicreg": Invariance,
    "simsiam": Agreement,
    "supervised": Classes,
}
"""Objective by its name in a mix."""


def _sections(config: MixConfig) -> dict[str, tuple[float, object]]:
    """Return each objective's weight and settings, by name."""
    return {
        "feature": (config.feature.weight, config.feature),
        "gram": (config.gram.weight, config.gram),
        "label": (config.label.weight, config.label),
        "similarity": (config.similarity.weight, config.similarity),
        "regression": (config.regression.weight, config.regression),
        "clusters": (config.clusters.weight, config.clusters),
        "contrast": (config.contrast.weight, config.contrast),
        "squeeze": (config.squeeze.weight, config.squeeze),
        "span": (config.span.weight, config.span),
        "vicreg": (config.vicreg.weight, config.vicreg.settings),
        "simsiam": (config.simsiam.weight, config.simsiam.settings),
        "supervised": (config.supervised.weight, config.supervised.settings),
    }


class Mix(Composite):
    """Sum objectives by weights: loss = sum of weight x loss over those above 0.

    Raises:
        ConfigError: no weight is above 0, or an objective's levels, labels or images are missing.
    """

    is_preset, qualified = False, True
    section = "mix"

    @classmethod
    def parts(cls, config: MixConfig) -> dict[str, Part]:
        """Return the objectives whose weight is above 0."""
        parts = {}
        for name, (weight, settings) in _sections(config).items():
            if weight > 0:
                parts[name] = Part(OBJECTIVES[name], settings, weight=weight)
        if not parts:
            got = "weights that are all zero"
            hint = "Try --mix.feature.weight 1 --mix.similarity.weight 1."
            allowed = f"one objective or more with a weight above 0, of {', '.join(OBJECTIVES)}"
            raise ConfigError(Problem("mix", got, allowed, hint))
        return parts

    @classmethod
    def with_settings(cls, config: MixConfig, *, old: Any, new: Any) -> MixConfig:
        """Return the mix with an objective's settings replaced."""
        for name in OBJECTIVES:
            section = getattr(config, name)
            if section is old:
                return replace(config, **{name: new})
            if getattr(section, "settings", None) is old:
                return replace(config, **{name: replace(section, settings=new)})
        raise AssertionError("settings of an objective of this mix")

    @classmethod
    def augment(cls, config: MixConfig) -> AugmentConfig:
        """Return how random views are made."""
        return config.augment

    @classmethod
    def shares_draws(cls, config: MixConfig) -> bool:
        """Tell whether one draw serves a whole batch of samples."""
        return config.batch_shared_aug
