"""Settings of training; no torch here, so that help and errors come at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.methods import (
    METHODS,
    DreamTeacherConfig,
    SimSiamConfig,
    SupervisedConfig,
    VICRegConfig,
)
from distill.configs.mix import MixConfig
from distill.configs.monitor import MonitorConfig
from distill.configs.optimizer import OptimizerConfig
from distill.configs.similarity import ClusterConfig, CompressConfig, CRDConfig, RegConfig
from distill.configs.squeeze import SqueezeAndSpanConfig
from distill.configs.student import StudentConfig
from distill.configs.types import Count, Seed
from distill.tables import name_problem
from dreamshard.config import FolderName
from dreamshard.config.reads import OWN, Table, When
from dreamshard.errors import Problem
from pipeline.streaming.config import StreamConfig

MethodConfig = (
    DreamTeacherConfig
    | CompressConfig
    | SqueezeAndSpanConfig
    | MixConfig
    | RegConfig
    | CRDConfig
    | ClusterConfig
    | SimSiamConfig
    | VICRegConfig
    | SupervisedConfig
)


Summarised = DreamTeacherConfig | CompressConfig | SqueezeAndSpanConfig | MixConfig
"""Sections that say what a reader of a student's card wants to know."""

SERVED = (
    "stream.ray stream.actors stream.actor_resources stream.start_actors stream.deadline_s "
    "stream.patience_s"
)
"""What a stream needs for the processes that make it, and a live teacher has not."""


@dataclass(kw_only=True)
class DataConfig:
    """Where batches come from."""

    reads: ClassVar = (
        Table(
            "kind",
            {
                "shards": "dataset join allow_holes threads access",
                "stream": f"stream {SERVED}",
                "live": "stream",
            },
        ),
        When("by `dreamshard serve`", "stream.run_dir"),
        When(
            "with shuffle block",
            "stream.window_units",
            lambda data: data.shuffle == "block",
            "shuffle",
        ),
    )

    kind: Literal["shards", "stream", "live"] = "shards"
    """Source of batches: shards, a dataset that `dreamshard encode` or `synthesize` wrote; stream,
    teachers on a Ray cluster, meanwhile; live, the teacher in this process."""
    dataset: str = ""
    """Kind shards: folder or URL of the dataset, or ROOT/NAME for the one of that name under
    ROOT."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Kinds stream and live: what is made, by whom, and how far ahead."""
    join: list[str] = field(default_factory=list)
    """Kind shards: further datasets of the same samples, whose levels are read beside (soft labels,
    say)."""
    real: str = ""
    """Dataset of real images, of the same size, for methods that learn from those beside the
    teacher's samples; of each as many. Its levels are not read."""
    levels: list[str] = field(default_factory=list)
    """Levels to distil, by name (up.1.t100), tap (up.1) or stride (s4); empty: every one of the
    kinds that the method distils."""
    image_size: list[Count] = field(default_factory=list)
    """Height and width the dataset must have, in pixels; empty: those it has."""
    pixel_range: str = "0..255"
    """Range that pixels must have in the dataset, as its recipe names it; empty: any."""
    shuffle: Literal["full", "block", "none"] = "full"
    """Order of the samples: full permutation, blocks (for cold disks; of a stream, whole
    micro-batches), or as stored."""
    flip: Literal["none", "mirror"] = "none"
    """Mirror half of the samples left to right, image and maps alike (mirror). Refused for
    transformer teachers; for a convolutional one, too, a mirrored image's own maps are others
    (cosine 0.65 to 0.91 on CIFAR-10). `dreamshard encode --image.flip random` is exact."""
    crop: list[Count] = field(default_factory=list)
    """Height and width in pixels of a random part of each sample, cut alike from image and maps;
    empty: the whole. Multiples of the largest stride."""
    allow_holes: bool = False
    """Train although work units are missing from the dataset."""
    access: Literal["map", "pread"] = "map"
    """Kind shards: how local files are read. map: mapped, fastest on local disks; pread: read row
    by row, for network disks, where a mapped file that goes away ends the process."""
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that gather batches, per process."""
    prefetch: Annotated[int, Field(ge=1, le=64)] = 2
    """Batches read ahead, per process."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        if self.kind == "shards" and not self.dataset:
            hint = "Make one with `dreamshard encode`."
            problems.append(Problem("dataset", "nothing", "a dataset's folder, URL or name", hint))
        if self.kind != "shards" and self.dataset:
            hint = "Remove it, or set data.kind: shards; a mix names datasets in data.stream.mix."
            problems.append(
                Problem("dataset", f"{self.dataset} with kind {self.kind}", "none", hint)
            )
        if self.kind != "shards" and self.stream.keep and self.shuffle != "block":
            allowed = "block where data.stream.keep is true, so that units fill up"
            problems.append(Problem("shuffle", repr(self.shuffle), allowed, "Set it to block."))
        if self.join and self.kind != "shards":
            problems.append(Problem("join", str(self.join), f"none with kind {self.kind}"))
        if len(self.image_size) not in (0, 2):
            problems.append(Problem("image_size", str(self.image_size), "two numbers or none"))
        if len(self.crop) not in (0, 2):
            problems.append(Problem("crop", str(self.crop), "two numbers or none"))
        if len(set(self.levels)) < len(self.levels):
            problems.append(Problem("levels", str(self.levels), "every level once"))
        return problems


@dataclass(kw_only=True)
class TrainConfig:
    """Train a student on recorded features."""

    main_settings: ClassVar[str] = """
    run_dir seed steps batch_size method device precision ema log_every save_every student.name
    student.settings student.strides student.pretrained data.kind data.dataset data.join
    data.levels data.flip dreamteacher.mode optimizer.name optimizer.lr optimizer.weight_decay
    monitor.every
    """

    reads: ClassVar = (
        Table(
            "method",
            {
                **{
                    name: f"{name} data.levels data.join"
                    for name in ("dreamteacher", "compress", "reg", "crd", "cc")
                },
                **{
                    name: f"{name} data.levels data.join data.real"
                    for name in ("squeeze_and_span", "mix")
                },
                **{name: name for name in ("simsiam", "vicreg", "supervised")},
                OWN: "data.levels data.join data.real",
            },
        ),
    )

    run_dir: FolderName = "runs/train"
    """Folder of this run: checkpoints, metrics, the trained student. A rerun into it resumes."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the samples and dropout."""
    steps: Count = 1000
    """Optimiser steps in all. A rerun with more extends the run: from its last checkpoint on, with
    the learning rate that a run of so many steps has there."""
    batch_size: Count = 256
    """Samples per step over all processes; a multiple of their number times accumulate."""
    accumulate: Count = 1
    """Parts that a step's batch is worked on in, one after another: less memory, the same step
    (but batch norm sees a part at a time)."""
    method: str = "dreamteacher"
    """Method: dreamteacher; compress, and its baselines reg, crd and cc; squeeze_and_span; mix, any
    of their objectives by weights; the baselines simsiam, vicreg and supervised on the dataset's
    images; or module:Class. Its settings are the section so named."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The backbone to train."""
    data: DataConfig = field(default_factory=DataConfig)
    """The recorded features to train on."""
    dreamteacher: DreamTeacherConfig = field(default_factory=DreamTeacherConfig)
    """Settings of the method dreamteacher."""
    compress: CompressConfig = field(default_factory=CompressConfig)
    """Settings of the method compress."""
    squeeze_and_span: SqueezeAndSpanConfig = field(default_factory=SqueezeAndSpanConfig)
    """Settings of the method squeeze_and_span."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Objectives of the method mix, and their weights."""
    reg: RegConfig = field(default_factory=RegConfig)
    """Settings of the method reg."""
    crd: CRDConfig = field(default_factory=CRDConfig)
    """Settings of the method crd."""
    cc: ClusterConfig = field(default_factory=ClusterConfig)
    """Settings of the method cc."""
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    """Settings of the method simsiam."""
    vicreg: VICRegConfig = field(default_factory=VICRegConfig)
    """Settings of the method vicreg."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    """Settings of the method supervised."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and learning rate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: CUDA where there is one."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of a process (count); 0: PyTorch's own choice. Sums depend on their number."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass; bf16 only where the device computes in it, fp16 (with
    scaled losses) only on GPUs."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the student's weights, which is then what is kept;
    0: none. Its first steps decay faster."""
    sync_batchnorm: Literal["auto", "on", "off"] = "auto"
    """Share batch norm's statistics between processes; auto: on GPUs (CPUs cannot)."""
    trackers: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = field(
        default_factory=list
    )
    """Where metrics go besides metrics.jsonl; each needs the extra of its name."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """A look at the student while it trains."""
    log_every: Count = 10
    """Steps per line of metrics.jsonl; figures are means over them."""
    log_gradients: Literal["auto", "on", "off"] = "auto"
    """Write with each line every loss term's weight and the norm of its gradient at the student's
    deepest map, for one more backward pass of the heads per term; auto: of several objectives."""
    save_every: Count = 500
    """Steps between checkpoints, a multiple of log_every."""
    keep: Count = 2
    """Checkpoints to keep, the newest."""
    restart: bool = False
    """Throw the run folder's checkpoints away and start from step 0."""

    @property
    def part_size(self) -> int:
        """Samples per forward pass over all processes."""
        return self.batch_size // self.accumulate

    def tells_gradients(self, step: int, *, several: bool) -> bool:
        """Say whether a step tells its terms' gradients; `several`: of several objectives."""
        wanted = several if self.log_gradients == "auto" else self.log_gradients == "on"
        return wanted and (step % self.log_every == 0 or step == self.steps)

    def method_settings(self) -> MethodConfig | None:
        """Return the section of the method chosen; None for a method of the user's own."""
        sections: dict[str, MethodConfig] = {
            "dreamteacher": self.dreamteacher,
            "compress": self.compress,
            "squeeze_and_span": self.squeeze_and_span,
            "mix": self.mix,
            "reg": self.reg,
            "crd": self.crd,
            "cc": self.cc,
            "simsiam": self.simsiam,
            "vicreg": self.vicreg,
            "supervised": self.supervised,
        }
        return sections.get(self.method)

    def summary(self, *, views: int, extended: Sequence[Sequence[int]] = ()) -> dict[str, object]:
        """Say how a student was trained, for its card.

        Args:
            views: forward passes of the student per sample and step.
            extended: [steps before, step it was at] of every time the run was extended.
        """
        settings, optimizer = self.method_settings(), self.optimizer
        told: dict[str, object] = {
            "method": self.method,
            "settings": settings.summary() if isinstance(settings, Summarised) else "",
            "optimizer": f"{optimizer.name}, lr {optimizer.lr:g}, weight decay "
            f"{optimizer.weight_decay:g}",
            "steps": self.steps,
            "batch_size": self.batch_size,
            "student_images": self.steps * self.batch_size * views,
            "ema": self.ema,
        }
        if extended:
            told["extended"] = [list(pair) for pair in extended]
        return told

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = []
        unknown = name_problem(self.method, table=METHODS, key="method")
        if unknown:
            problems.append(unknown)
        if self.monitor.every % self.log_every:
            up = math.ceil(self.monitor.every / self.log_every) * self.log_every
            allowed = f"a multiple of log_every ({self.log_every})"
            hint = f"Try --monitor.every {up}."
            problems.append(Problem("monitor.every", str(self.monitor.every), allowed, hint))
        if self.save_every % self.log_every:
            up = math.ceil(self.save_every / self.log_every) * self.log_every
            allowed = f"a multiple of log_every ({self.log_every})"
            hint = f"Try --save_every {up}."
            problems.append(Problem("save_every", str(self.save_every), allowed, hint))
        return problems
