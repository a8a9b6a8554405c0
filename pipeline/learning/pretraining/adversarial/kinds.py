"""The adversarial methods by name; another is a row here, its settings and its objective."""

from __future__ import annotations

from dreamshard.foreign import trusted
from pipeline.learning.pretraining.adversarial.objective import Facts, Objective

KINDS = {
    "stylegan2": "pipeline.learning.pretraining.adversarial.stylegan2.method:StyleGAN2",
    "ssgan": "pipeline.learning.pretraining.adversarial.ssgan.objective:SSGANObjective",
    "bigbigan": "pipeline.learning.pretraining.adversarial.bigbigan.objective:BigBiGANObjective",
}
"""Name, which its section of settings has, too -> class, of that section and `Facts`."""


def build(kind: str, section: object, facts: Facts) -> Objective:
    """Build a method's objective.

    Args:
        kind: one of `KINDS`.
        section: its settings.
        facts: of images and run.
    """
    objective: Objective = trusted.find(kind, table=KINDS)(section, facts)
    return objective
