"""Settings of the evaluation tasks, one section each, named as in `TASKS`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.optimizer import OptimizerConfig
from distill.configs.types import Count, Positive, Share, Weight
from dreamshard.config.reads import Table, When
from dreamshard.errors import Problem

PROTOCOLS = ("lbfgs", "simsiam", "bigbigan", "squeeze_and_span", "compress")
CountOrNone = Annotated[int, Field(ge=0)]

TASKS = {
    "few_label": "distill.tasks.few_label:FewLabel",
    "linear_probe": "distill.tasks.linear_probe:LinearProbe",
    "knn": "distill.tasks.knn:Knn",
    "finetune": "distill.tasks.finetune:Finetune",
    "segmentation": "distill.tasks.segmentation:Segmentation",
    "detection": "distill.tasks.detection:Detection",
    "cluster_alignment": "distill.tasks.cluster_alignment:ClusterAlignment",
    "mmd": "distill.tasks.mmd:Mmd",
    "transfer": "distill.tasks.transfer:Transfer",
    "pictures": "distill.tasks.pictures:Pictures",
}
"""Name, also of the section of its settings -> `module:Class`; a path of your own works too."""


@dataclass(kw_only=True)
class FewLabelConfig:
    """Linear probes on a few labels per class."""

    shots: list[Count] = field(default_factory=lambda: [1, 5, 20])
    """Labels per class, one column each (counts)."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 10
    """Label draws, the same ones for every representation (count)."""
    strengths: list[Positive] = field(default_factory=lambda: [1.0, 10.0, 100.0, 1000.0])
    """Candidates for the probe's C (inverse penalty), chosen per representation and column."""
    selection_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    """Draws among the training samples to choose the strength on (count)."""
    fractions: list[Annotated[float, Field(gt=0, lt=1)]] = field(default_factory=list)
    """Further columns: shares of all training labels, such as 0.01 and 0.1, class by class."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        return [
            Problem(key, "[]", "at least one number")
            for key, values in (("shots", self.shots), ("strengths", self.strengths))
            if not values
        ]


@dataclass(kw_only=True)
class SimSiamProbeConfig:
    """SimSiam's linear probe: LARS on the pooled features of augmented images."""

    epochs: Count = 90
    """Passes over the training images (count); 90 published."""
    batch_size: Count = 4096
    """Images per step (count); 4096 published."""
    lr: Positive = 0.02
    """Learning rate for 256 images: the peak is lr x batch_size / 256; 0.02 in DreamTeacher."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""


@dataclass(kw_only=True)
class SgdProbeConfig:
    """Squeeze-and-Span's linear probe: SGD on the pooled features of augmented images."""

    epochs: Count = 90
    """Passes over the training images (count); 90 published."""
    batch_size: Count = 256
    """Images per step (count)."""
    lr: Positive = 30.0
    """Learning rate for 256 images: the peak is lr x batch_size / 256, a cosine per epoch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    look_every: CountOrNone = 5
    """Judge every this many epochs, and report the best beside the last (count); 0: only last."""


@dataclass(kw_only=True)
class CompressProbeConfig:
    """CompRess's linear probe: L2-normalised, standardised features of augmented images, SGD."""

    epochs: Count = 40
    """Passes over the training images (count)."""
    batch_size: Count = 256
    """Images per step (count)."""
    lr: Positive = 0.01
    """Learning rate; CompRess does not scale it with the batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum."""
    weight_decay: Weight = 1e-4
    """Weight decay."""
    drops: list[Count] = field(default_factory=lambda: [15, 30])
    """Epochs after which the learning rate is a tenth of what it was."""
    look_every: CountOrNone = 1
    """Judge every this many epochs, and report the best beside the last (count); 0: only last."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if all(drop < self.epochs for drop in self.drops):
            return []
        hint = f"Where epochs is {self.epochs}, say when the rate drops, or give []."
        return [Problem("drops", str(self.drops), f"epochs below {self.epochs}", hint)]


@dataclass(kw_only=True)
class BigBiGanProbeConfig:
    """BigBiGAN's linear probe: Adam at several rates, zero initial weights, averaged weights."""

    steps: Count = 100_000
    """Optimiser steps (count); 100 000 published, 5 000 for ablations."""
    batch_size: Count = 2048
    """Images per step (count)."""
    lrs: list[Positive] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    """Learning rates to sweep, all at once on the same batches."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the averaged weights that are judged."""
    selection: Count = 10_000
    """Training images kept out to choose the rate on (count); at most a fifth of them."""
    crelu: bool = True
    """Judge BN+CReLU features (normalised, both signs rectified) beside the pooled ones."""


@dataclass(kw_only=True)
class FrozenProbeConfig:
    """Logistic regression on features extracted once: standardised, L-BFGS, penalty chosen."""

    penalties: list[Positive] = field(default_factory=lambda: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    """Candidates for the weight of the squared L2 norm, chosen on training images kept out."""
    selection: Share = 0.1
    """Share of the training images kept out to choose the penalty on."""
    iterations: Count = 200
    """Most L-BFGS iterations of a fit (count)."""


@dataclass(kw_only=True)
class LinearProbeConfig:
    """Linear probes by published protocols."""

    reads: ClassVar = (Table("protocols", {name: name for name in PROTOCOLS}),)

    protocols: list[Literal["lbfgs", "simsiam", "bigbigan", "squeeze_and_span", "compress"]] = (
        field(default_factory=lambda: ["lbfgs"])
    )
    """lbfgs: frozen features, extracted once; the others: on random resized crops (area 0.08 to 1)
    and flips, see their sections."""
    lbfgs: FrozenProbeConfig = field(default_factory=FrozenProbeConfig)
    """Settings of the protocol lbfgs."""
    simsiam: SimSiamProbeConfig = field(default_factory=SimSiamProbeConfig)
    """Settings of the protocol simsiam."""
    bigbigan: BigBiGanProbeConfig = field(default_factory=BigBiGanProbeConfig)
    """Settings of the protocol bigbigan."""
    squeeze_and_span: SgdProbeConfig = field(default_factory=SgdProbeConfig)
    """Settings of the protocol squeeze_and_span."""
    compress: CompressProbeConfig = field(default_factory=CompressProbeConfig)
    """Settings of the protocol compress."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        lists = {"protocols": self.protocols, "lbfgs.penalties": self.lbfgs.penalties}
        lists["bigbigan.lrs"] = self.bigbigan.lrs
        return [Problem(key, "[]", "at least one") for key, values in lists.items() if not values]


@dataclass(kw_only=True)
class KnnConfig:
    """Nearest neighbours, exact."""

    reads: ClassVar = (
        When("with temperature 0", "ties", lambda knn: knn.temperature == 0, "temperature"),
    )

    k: list[Count] = field(default_factory=lambda: [1, 5, 20, 200])
    """Neighbours that vote, one column each (counts)."""
    temperature: Weight = 0.1
    """Votes weigh exp(similarity / temperature); 0: a plain majority."""
    metric: Literal["cosine", "l1", "both"] = "cosine"
    """Cosine similarity, whose order is that of BigBiGAN's D2, or the L1 distance of L1-normalised
    features, its D1; both: columns for each."""
    ties: Literal["nearest", "random"] = "nearest"
    """Of classes with equally many votes, that of the nearest neighbour (BigBiGAN), or any
    (CompRess)."""
    scaling: Literal["chosen", "raw"] = "chosen"
    """How features are brought to scale: chosen per cell on training images kept out, or raw, as
    the published protocols have it."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        return [] if self.k else [Problem("k", "[]", "at least one number")]


@dataclass(kw_only=True)
class FinetuneConfig:
    """Training the whole backbone with a linear classifier on it."""

    fractions: list[Share] = field(default_factory=lambda: [1.0])
    """Shares of the training labels to use, drawn class by class; one column each."""
    steps: Count = 1000
    """Optimiser steps for each (count)."""
    batch_size: Count = 128
    """Images per step (count)."""
    smallest_crop: Share = 0.08
    """Smallest area of the random resized crops, as a share of the image; flips, too."""
    mixup: Weight = 0.1
    """Mixup's alpha; 0: none. SparK's fine-tuning has 0.1."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of residual branches dropped while training (timm's drop_path_rate); 0.05 in SparK's
    fine-tuning of ResNet-50."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Decay of the averaged weights that are judged, warmed up; 0: none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the training steps; weights stay float32, judging is float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser, learning rate, layer decay."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = [] if self.fractions else [Problem("fractions", "[]", "at least one share")]
        if self.mixup and self.batch_size % 2:
            allowed = "an even number: mixup makes pairs"
            problems.append(
                Problem("batch_size", str(self.batch_size), allowed, "Or set mixup to 0.")
            )
        return problems


@dataclass(kw_only=True)
class SegmentationConfig:
    """Semantic segmentation on the student's maps."""

    reads: ClassVar = (
        Table("head", {"upernet": "width", "distilled": "width"}),
        When("with shots above 0", "draw", lambda task: any(task.shots), "shots"),
        When(
            "where the backbone is trained: frozen false",
            "optimizer.layer_decay",
            lambda task: not task.frozen,
            "frozen",
        ),
    )

    classes: list[str] = field(default_factory=list)
    """Names of the classes, in order of their numbers in the masks."""
    ignore: Annotated[int, Field(ge=0, le=255)] = 255
    """Number in masks that stands for no class (void)."""
    absent: list[str] = field(default_factory=list)
    """Classes that training masks need not have; any other without a pixel is an error where all
    training images are used."""
    head: Literal["upernet", "fcn", "distilled"] = "upernet"
    """Read-out: UPerNet, FCN on the deepest map, or the UPerNet head of label distillation."""
    frozen: bool = False
    """Train the head alone, on the frozen backbone."""
    shots: list[CountOrNone] = field(default_factory=lambda: [0])
    """Labelled training images, drawn by the seed, one column each (counts); 0: all."""
    draw: Literal["random", "even"] = "random"
    """Draw them at random, or at even distances through the source: frames of videos."""
    steps: Count = 1000
    """Optimiser steps for each (count); 20 000 in the paper's few-label settings."""
    batch_size: Count = 8
    """Images per step (count)."""
    width: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels inside the head."""
    smallest_crop: Share = 0.25
    """Smallest area of the random scales and crops, as a share of the image; flips, too."""
    pictures: CountOrNone = 4
    """Held-out images shown with their masks in segmentation.png (count)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the training steps; weights stay float32, judging is float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser, learning rate, layer decay."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        if len(self.classes) > 0 and self.ignore < len(self.classes):
            allowed = f"{len(self.classes)}..255: it is the number of a class"
            problems.append(Problem("ignore", str(self.ignore), allowed))
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            problems.append(Problem("classes", str(self.classes), "two names or more, each once"))
        if not self.shots:
            problems.append(Problem("shots", "[]", "at least one number"))
        if foreign := [name for name in self.absent if name not in self.classes]:
            problems.append(Problem("absent", str(foreign), "names of segmentation.classes"))
        return problems


@dataclass(kw_only=True)
class DetectionConfig:
    """Object detection and instance segmentation: torchvision's Mask R-CNN on the student."""

    train_annotations: str = ""
    """COCO JSON of the training images."""
    train_folder: str = ""
    """Folder of the training images."""
    heldout_annotations: str = ""
    """COCO JSON of the images judged on."""
    heldout_folder: str = ""
    """Folder of the images judged on."""
    masks: bool = True
    """Train and judge instance masks beside boxes."""
    steps: Count = 90_000
    """Optimiser steps (count); 90 000 of 16 images is the 1x schedule of COCO."""
    batch_size: Count = 16
    """Images per step (count)."""
    size: Annotated[int, Field(ge=16, le=8192)] = 800
    """Short side that images are brought to (pixels)."""
    longest: Annotated[int, Field(ge=16, le=8192)] = 1333
    """Longest side allowed (pixels)."""
    width: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels of the FPN."""
    threads: Count = 4
    """Threads that decode images (count)."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-4, warmup=0.01)
    )
    """Optimiser, learning rate, layer decay."""
