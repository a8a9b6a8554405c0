"""Settings of training; no torch here, so that help and errors come at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from distill.methods import METHODS
from distill.tables import name_problem
from dreamshard.errors import Problem
from pipeline.streaming.config import StreamConfig

Scalar = str | int | float | bool | None
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(kw_only=True)
class StudentConfig:
    """Which backbone to train."""

    name: str = "resnet50"
    """Backbone: a timm name, cifar_resnet (first map at full resolution), or module:Class."""
    settings: dict[str, Scalar | list[Scalar]] = field(default_factory=dict)
    """Settings of the network itself by name, such as depths and widths of cifar_resnet."""
    pretrained: bool = False
    """Start from timm's published weights instead of from scratch (downloads them)."""
    mean: list[float] = field(default_factory=list)
    """Mean of the images per channel, pixels in 0..1; empty: the weights' own, else 0.5."""
    std: list[float] = field(default_factory=list)
    """Standard deviation of the images per channel, as for mean."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        found = []
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 3) or (key == "std" and not all(v > 0 for v in values)):
                found.append(Problem(key, str(values), "three numbers (std above 0) or none"))
        return found


@dataclass(kw_only=True)
class DataConfig:
    """Where batches come from."""

    kind: Literal["shards", "stream", "live"] = "shards"
    """Source of batches: shards, a dataset that `dreamshard encode` or `synthesize` wrote; stream,
    teachers on a Ray cluster, meanwhile; live, the teacher in this process."""
    dataset: str = ""
    """Kind shards: folder or URL of the dataset, or ROOT/NAME for the one of that name under
    ROOT."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Kinds stream and live: what is made, by whom, and how far ahead."""
    levels: list[str] = field(default_factory=list)
    """Levels to distil by name; empty: every feature map of the dataset."""
    image_size: list[Count] = field(default_factory=list)
    """Height and width the dataset must have, in pixels; empty: those it has."""
    pixel_range: str = "0..255"
    """Range that pixels must have in the dataset, as its recipe names it; empty: any."""
    shuffle: Literal["full", "block", "none"] = "full"
    """Order of the samples: full permutation, blocks (for cold disks; of a stream, whole
    micro-batches), or as stored."""
    allow_holes: bool = False
    """Train although work units are missing from the dataset."""
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that gather batches, per process."""
    prefetch: Annotated[int, Field(ge=1, le=64)] = 2
    """Batches read ahead, per process."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        found = []
        if self.kind == "shards" and not self.dataset:
            hint = "Make one with `dreamshard encode`."
            found.append(Problem("dataset", "nothing", "a dataset's folder, URL or name", hint))
        if self.kind != "shards" and self.dataset:
            hint = "Remove it, or set data.kind: shards; a mix names datasets in data.stream.mix."
            found.append(Problem("dataset", f"{self.dataset} with kind {self.kind}", "none", hint))
        if self.kind != "shards" and self.stream.keep and self.shuffle != "block":
            allowed = "block where data.stream.keep is true, so that units fill up"
            found.append(Problem("shuffle", repr(self.shuffle), allowed, "Set it to block."))
        if len(self.image_size) not in (0, 2):
            found.append(Problem("image_size", str(self.image_size), "two numbers or none"))
        if len(set(self.levels)) < len(self.levels):
            found.append(Problem("levels", str(self.levels), "every level once"))
        return found


@dataclass(kw_only=True)
class DreamTeacherConfig:
    """DreamTeacher's feature distillation."""

    mse_weight: Weight = 1.0
    """Weight of the whitened regression."""
    attention_weight: Weight = 10.0
    """Weight of attention transfer; 10 in the paper."""
    whiten_axes: Literal["c", "chw"] = "c"
    """Whiten the teacher over the channels of each position (c), or over the whole map (chw)."""
    attention_power: Positive = 2.0
    """Exponent p of the attention maps; 2 in the paper."""
    attention_form: Literal["norm", "squared", "mean"] = "norm"
    """Distance of attention maps: L2 norm as in the paper, its square, or the mean of squares."""
    width: Annotated[int, Field(ge=1, le=4096)] = 256
    """Channels inside the feature regressor; 256 in the paper."""
    pool_scales: list[Count] = field(default_factory=lambda: [1, 2, 3, 6])
    """Regions per side of the pyramid pooling, as far as the map has cells; empty: plain FPN."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """Optimiser and learning rate, per step."""

    name: Literal["adamw", "sgd", "lamb"] = "adamw"
    """Optimiser, from timm."""
    lr: Positive = 1e-3
    """Peak learning rate at this batch size (no scaling is applied)."""
    weight_decay: Weight = 0.05
    """Weight decay; biases and normalisation parameters (1-D) have none."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = field(default_factory=lambda: [0.9, 0.95])
    """Adam's decay rates; for sgd the first is the momentum."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the rate rises linearly (0..1)."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the peak rate that the cosine ends at (0..1)."""
    clip: Weight = 5.0
    """Largest norm of the whole gradient; 0: no clipping."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if len(self.betas) == 2:
            return []
        return [Problem("betas", str(self.betas), "two numbers", "Try [0.9, 0.95].")]


@dataclass(kw_only=True)
class TrainConfig:
    """Train a student on recorded features."""

    run_dir: str = "runs/train"
    """Folder of this run: checkpoints, metrics, the trained student. A rerun into it resumes."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the samples and dropout."""
    steps: Count = 1000
    """Optimiser steps in all."""
    batch_size: Count = 256
    """Samples per step over all processes; a multiple of their number."""
    method: str = "dreamteacher"
    """Distillation method: dreamteacher, or module:Class; its settings are the section so named."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The backbone to train."""
    data: DataConfig = field(default_factory=DataConfig)
    """The recorded features to train on."""
    dreamteacher: DreamTeacherConfig = field(default_factory=DreamTeacherConfig)
    """Settings of the method dreamteacher."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and learning rate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: CUDA where there is one."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of a process (count); 0: PyTorch's own choice. Sums depend on their number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward pass; bf16 only where the device computes in it."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side in memory, the faster order for convolutions."""
    sync_batchnorm: Literal["auto", "on", "off"] = "auto"
    """Share batch norm's statistics between processes; auto: on GPUs (CPUs cannot)."""
    log_every: Count = 10
    """Steps per line of metrics.jsonl; figures are means over them."""
    save_every: Count = 500
    """Steps between checkpoints, a multiple of log_every."""
    keep: Count = 2
    """Checkpoints to keep, the newest."""
    restart: bool = False
    """Throw the run folder's checkpoints away and start from step 0."""

    def method_settings(self) -> DreamTeacherConfig | None:
        """Return the section of the method chosen; None for a method of the user's own."""
        return {"dreamteacher": self.dreamteacher}.get(self.method)

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        found = []
        unknown = name_problem(self.method, table=METHODS, key="method")
        if unknown:
            found.append(unknown)
        if self.save_every % self.log_every:
            up = math.ceil(self.save_every / self.log_every) * self.log_every
            allowed = f"a multiple of log_every ({self.log_every})"
            hint = f"Try --save_every {up}."
            found.append(Problem("save_every", str(self.save_every), allowed, hint))
        return found
