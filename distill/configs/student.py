"""Settings of the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.configs.types import Count, Scalar
from dreamshard.errors import Problem


@dataclass(kw_only=True)
class OwnClassConfig:
    """Name the student's class where it is one of your own: no folder's card is trusted to."""

    name: str = ""
    """module:Class that the student was trained with; empty: a network of timm's or ours."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Its settings, as in the card."""


@dataclass(kw_only=True)
class StudentConfig:
    """Which backbone to train."""

    name: str = "resnet50"
    """Backbone: a timm name (resnet50, vit_small_patch16_224), torchvision/resnet50,
    cifar_resnet18 or cifar_resnet (first map at full resolution), or module:Class."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Settings of the network itself by name, such as the width of cifar_resnet18."""
    strides: list[Count] = field(default_factory=list)
    """Strides of the maps to use, ascending (pixels per cell); empty: those of the levels."""
    pretrained: bool = False
    """Start from timm's published weights instead of from scratch (downloads them)."""
    weights: str = ""
    """Start from weights of your own: a run folder or student of `dreamshard train`, timm's folder
    (local-dir:FOLDER) or a .safetensors file of the whole network under timm's names; empty: none.
    They are read again where a run goes on."""
    frozen_stages: Annotated[int, Field(ge=0, le=64)] = 0
    """Leading parts that are not trained (count): 1 is the stem, 2 the stem and the first stage
    (of a plain transformer: block), and so on."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: largest chance of a block to be skipped (0..1); 0: the network's own."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Compile the backbone with torch.compile in that mode; the first step then takes minutes."""
    onnx: bool = False
    """Try before the first step whether the student can be exported to ONNX in the end."""
    mean: list[float] = field(default_factory=list)
    """Mean of the images per channel, pixels in 0..1; empty: the weights' own, else 0.5."""
    std: list[float] = field(default_factory=list)
    """Standard deviation of the images per channel, as for mean."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 3) or (key == "std" and not all(v > 0 for v in values)):
                problems.append(Problem(key, str(values), "three numbers (std above 0) or none"))
        if self.weights and self.pretrained:
            hint = "Take one of them."
            problems.append(Problem("weights", repr(self.weights), "none with pretrained", hint))
        if self.strides != sorted(set(self.strides)):
            problems.append(Problem("strides", str(self.strides), "every stride once, ascending"))
        return problems
