"""Settings of teacher pretraining; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dreamshard.config import FolderName
from dreamshard.config.reads import Table, When
from dreamshard.errors import Problem
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.stylegan2.config import (
    StyleGAN2Config,
    size_problems,
)
from pipeline.learning.pretraining.encoding.config import PosthocConfig

if TYPE_CHECKING:
    from pipeline.learning.schedule import WarmupCosine

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
SIZE_OF_DIGITS = 16
KINDS = ("stylegan2", "ssgan", "bigbigan")
"""Kinds that train a generator against a discriminator; each has a section of its own."""
ENCODER = "encoder"
"""The kind that trains an encoder for a generator that is there."""


@dataclass(kw_only=True)
class UNetConfig:
    """The network: a diffusers UNet2DModel."""

    reads: ClassVar = (
        When(
            "without unet.config",
            "block_out_channels layers_per_block attention_levels attention_head_dim "
            "norm_num_groups time_scale_shift resampling dropout self_conditioning",
            lambda unet: not unet.config,
            "config",
        ),
    )

    config: str = ""
    """A config.json of a UNet2DModel to take as it is; empty to build one from the fields below."""
    block_out_channels: Annotated[list[Count], Field(min_length=1)] = field(
        default_factory=lambda: [32, 64, 64]
    )
    """Channels per resolution, finest first (count); each further entry halves the resolution."""
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 1
    """Residual layers per resolution on the way down; one more on the way up (count)."""
    attention_levels: list[CountOrNone] = field(default_factory=list)
    """Resolutions with self-attention, 0 for the finest."""
    attention_head_dim: Count = 8
    """Channels per attention head (count)."""
    norm_num_groups: Count = 8
    """Groups of the group normalisation (count); must divide every width."""
    time_scale_shift: Literal["default", "scale_shift"] = "default"
    """How the timestep enters: added to the features, or scaling and shifting them (ADM)."""
    resampling: Literal["conv", "resnet"] = "conv"
    """Change of resolution by strided convolutions or by residual blocks (ADM)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of features dropped in training, 0 .. 1."""
    self_conditioning: bool = False
    """Tell the decoder the pooled middle feature (DDAE++)."""
    weights: str = ""
    """Folder of a teacher of this architecture to begin with; parts that it lacks begin at zero."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        if self.config:
            return problems
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                allowed = f"a divisor of every width in {self.block_out_channels}"
                problems.append(Problem("norm_num_groups", str(self.norm_num_groups), allowed))
                break
        for level in self.attention_levels:
            if level >= len(self.block_out_channels):
                allowed = f"0..{len(self.block_out_channels) - 1}"
                problems.append(Problem("attention_levels", str(level), allowed))
            elif self.block_out_channels[level] % self.attention_head_dim:
                allowed = f"a divisor of {self.block_out_channels[level]}"
                problems.append(
                    Problem("attention_head_dim", str(self.attention_head_dim), allowed)
                )
        return problems


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What the network learns."""

    reads: ClassVar = (
        Table(
            "kind", dict.fromkeys(("epsilon", "v_prediction", "sample"), "noise_schedule min_snr")
        ),
        When(
            "with dispersive above 0",
            "dispersive_temperature",
            lambda objective: objective.dispersive > 0,
            "dispersive",
        ),
    )

    kind: Literal["epsilon", "v_prediction", "sample", "flow", "edm"] = "epsilon"
    """Target: the noise, v (Salimans and Ho), the image, the flow's velocity, or EDM's mix."""
    noise_schedule: Literal["linear", "cosine", "scaled_linear"] = "linear"
    """Noise schedule of epsilon, v_prediction and sample; flow and edm have their own."""
    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """Timesteps of the schedule (count)."""
    min_snr: Annotated[float, Field(ge=0)] = 0.0
    """Cap gamma of min-SNR loss weighting, 5 in the paper; 0 for none."""
    augment: Share = 0.0
    """Probability of each of EDM's geometric changes, which the network is told; 0.12 there."""
    dispersive: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the dispersive loss of the middle features; 0.5 in the paper, 0 for none."""
    dispersive_temperature: Positive = 0.5
    """Temperature of the dispersive loss; 0.5 in the paper."""


@dataclass(kw_only=True)
class PretrainConfig:
    """Train a teacher on your own images: a diffusion model, a GAN, or a generator's encoder."""

    main_settings: ClassVar[str] = """
    kind out source.kind source.path source.split image.size image.views class_conditional
    minutes steps batch_size lr ema precision device seed licence num_samples distance_every
    unet.block_out_channels unet.attention_levels objective.kind stylegan2.channel_max generator
    """

    reads: ClassVar = (
        When(
            "with distance_every above 0",
            "distance_samples distance_extractor",
            lambda config: config.distance_every > 0,
            "distance_every",
        ),
        When(
            "without minutes, which decide them",
            "steps ema",
            lambda config: config.minutes is None,
            "minutes",
        ),
        Table(
            "kind",
            {
                "diffusion": "crop unet objective lr weight_decay warmup_steps floor clip ema "
                "sample_steps class_conditional distance_every",
                "stylegan2": "teacher stylegan2 class_conditional distance_every",
                "ssgan": "teacher ssgan class_conditional distance_every",
                "bigbigan": "teacher bigbigan distance_every",
                ENCODER: "generator encoder",
            },
        ),
        When(
            "with kind encoder where encoder.real_share is above 0, and with every other kind",
            "source image",
            lambda config: config.sees_images,
            "kind",
        ),
    )

    kind: Literal["diffusion", "stylegan2", "ssgan", "bigbigan", "encoder"] = "diffusion"
    """What is trained."""
    generator: str = ""
    """Folder or file of the generator that an encoder is trained for."""
    out: FolderName = "teachers/my-teacher"
    """Folder for the teacher, laid out as diffusers does; reused if one that fits is there."""
    run_dir: str = ""
    """Folder for the record and the checkpoint of this run; empty for <out>/run."""
    overwrite: bool = False
    """Replace a different teacher that is already in the folder."""
    licence: str = "unknown"
    """Licence of the trained weights, recorded in their card and in datasets made with them."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The images."""
    image: ImageConfig = field(default_factory=lambda: ImageConfig(size=SIZE_OF_DIGITS))
    """How images are brought to size; views above 1: every sample is a fresh jittered view."""
    crop: CountOrNone = 0
    """Side of the random window of each image that a step sees (pixels); 0 for whole images."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """The network."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the network learns."""
    class_conditional: bool = False
    """Condition the network on the source's labels."""
    stylegan2: StyleGAN2Config = field(default_factory=StyleGAN2Config)
    """Settings of kind stylegan2."""
    ssgan: SSGANConfig = field(default_factory=SSGANConfig)
    """Settings of kind ssgan."""
    bigbigan: BigBiGANConfig = field(default_factory=BigBiGANConfig)
    """Settings of kind bigbigan."""
    encoder: PosthocConfig = field(default_factory=PosthocConfig)
    """Settings of kind encoder."""
    minutes: Positive | None = None
    """Time to train for, instead of steps, and more minutes extend a run. Diffusion: a measured
    rate says how many steps it buys, schedule and average are fitted to them. A GAN: all its starts
    together take this time."""
    steps: Count = 600
    """Optimiser steps (count); of a GAN, those of its generator."""
    teacher: Literal["best", "last"] = "best"
    """Which generator becomes the teacher: the best by proxy distance where distance_every says to
    measure it, or the last."""
    batch_size: Count = 64
    """Images per step over all processes (count)."""
    lr: Positive = 1e-3
    """Peak learning rate (AdamW)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up (count); a cosine down to floor follows."""
    floor: Share = 0.02
    """Learning rate at the end, as a share of the peak, 0 .. 1."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 for no clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights that become the teacher, 0 .. 1; warmed up from 0.1."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass; auto is bfloat16 where the hardware has it natively."""
    weights_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the finished weights; float16 halves the file, and they are computed with in
    the teacher's own compute_dtype all the same."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network's blocks with torch.compile; auto where it pays: long runs on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: CountOrNone = 0
    """CPU threads (count); 0 for torch's choice."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the initial weights, the order of images, the noise and the views."""
    checkpoint_every: Count = 200
    """Steps between checkpoints (count); a rerun goes on from the last one, and one with more steps
    extends a finished run."""
    sample_every: CountOrNone = 0
    """Steps between sample grids (count); 0 for one at the end."""
    num_samples: Annotated[int, Field(ge=1, le=1024)] = 16
    """Images in a sample grid (count)."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Sampler steps of the grid (count)."""
    distance_every: CountOrNone = 0
    """Steps between measurements of the proxy distance of samples to the images (count), and one at
    the end; 0 for none."""
    distance_samples: Annotated[int, Field(ge=2, le=50_000)] = 512
    """Samples, and as many training images, that the distance compares (count)."""
    distance_extractor: str = "pixels"
    """Features compared: pixels, timm:MODEL[@FILE], resnet56:FILE (of a CIFAR classifier),
    inception:FILE (the network of published FID; tells the Inception Score, too), or a
    module:function of your own."""

    @property
    def sees_images(self) -> bool:
        """Return whether there are real images to learn from."""
        return self.kind != ENCODER or self.encoder.real_share > 0

    @property
    def record(self) -> Path:
        """Return the folder of the run's record."""
        return Path(self.run_dir or Path(self.out) / "run")

    def schedule(self) -> WarmupCosine:
        """Return the learning rate: linear warm-up, then a cosine down to the floor."""
        from pipeline.learning.schedule import WarmupCosine

        warmup, floor = self.warmup_steps, self.floor
        return WarmupCosine(peak=self.lr, steps=self.steps, warmup=warmup, floor=floor, lag=1)

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = []
        if self.image.size == 0:
            problems.append(Problem("image.size", "0", "a size in pixels", "Try --image.size 32."))
        if self.kind == ENCODER and not self.generator:
            hint = "Give --generator FOLDER, of a StyleGAN2, SS-GAN or BigGAN."
            problems.append(Problem("generator", "nothing", "a generator's folder or file", hint))
        if self.kind != "diffusion":
            return problems + self._adversarial_problems()
        stride = 2 ** (len(self.unet.block_out_channels) - 1)
        sides = {"image.size": self.image.size, "image.width": self.image.width, "crop": self.crop}
        for key, side in sides.items():
            if not self.unet.config and side % stride:
                allowed = f"a multiple of {stride} (one halving per further width of unet)"
                problems.append(Problem(key, str(side), allowed))
        if self.crop > min(self.image.shape or (0,)):
            allowed = f"0..{min(self.image.shape or (0,))}, the shorter side of the images"
            problems.append(Problem("crop", str(self.crop), allowed))
        if self.minutes is None and self.warmup_steps >= self.steps:
            allowed = f"less than steps ({self.steps})"
            problems.append(Problem("warmup_steps", str(self.warmup_steps), allowed))
        if self.sample_steps > self.objective.timesteps:
            allowed = f"1..{self.objective.timesteps} (objective.timesteps)"
            problems.append(Problem("sample_steps", str(self.sample_steps), allowed))
        return problems

    def _adversarial_problems(self) -> list[Problem]:
        problems, section, side = [], self.stylegan2, self.image.size
        if self.kind in KINDS and self.image.width not in (0, side):
            allowed = f"{side} or 0: a GAN's images are square"
            problems.append(Problem("image.width", str(self.image.width), allowed))
        if self.kind == "ssgan" and self.class_conditional != (self.ssgan.method == "conditional"):
            got = f"{str(self.class_conditional).lower()} with ssgan.method {self.ssgan.method}"
            allowed = "true with ssgan.method conditional, and with no other"
            problems.append(Problem("class_conditional", got, allowed))
        if self.kind == "stylegan2" and side:
            problems += size_problems(side, self.batch_size, section.statistics_group)
        if self.kind == "stylegan2" and section.augment == "ada" and self.checkpoint_every % 10:
            allowed = "a multiple of 10 (ADA's strength moves every ten steps)"
            problems.append(Problem("checkpoint_every", str(self.checkpoint_every), allowed))
        return problems
