"""Settings of the offline pipeline; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from dreamshard.config.reads import When
from dreamshard.errors import Problem
from pipeline.cluster.config import RayConfig
from pipeline.cluster.worker import ActorSize
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request.layout import CodecSetting, setting_problems
from pipeline.request.paths import input_path, output_path
from pipeline.teachers.base import Mode, TeacherConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrAuto = Annotated[int, Field(ge=0)]
Channels = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(kw_only=True)
class AssumeConfig:
    """What `dreamshard plan` takes for granted of a teacher or images that are not there."""

    channels: dict[str, Channels] = field(default_factory=dict)
    """Channels of every level, by stride (`s8`) as in teacher.levels and teacher.soft_labels."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Images of the source (count)."""
    image_size: Annotated[int, Field(ge=0, le=8192)] = 0
    """Height and width of a generator's images (pixels)."""
    labels: bool = False
    """Whether images have labels."""


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """What is asked of a dataset: the settings that decide its bytes, and where it is kept.

    Paths are absolute, and nothing is `auto` any more but a micro-batch of 0, which only the
    teacher can decide; see `PipelineConfig` for each of them.
    """

    mode: Mode
    name: str
    root: str
    teacher: TeacherConfig
    source: SourceConfig | None
    """The images; None where they are drawn."""
    image: ImageConfig
    samples: int | None
    samples_per_unit: int
    codec: CodecSetting
    format: str
    seed: int
    device: Literal["cpu", "cuda"]
    micro_batch: int
    threads: int
    fsync: bool


@dataclass(kw_only=True)
class PipelineConfig:
    """What encode, synthesize and streams share."""

    main_settings: ClassVar[str] = """
    name root samples codec format seed device micro_batch actors gpus_per_actor run_dir
    teacher.kind teacher.path teacher.levels teacher.timesteps teacher.settings
    """

    name: str = "features"
    """First part of the dataset's folder name (letters, digits, dots, dashes)."""
    root: str = "data"
    """Folder or fsspec URL that holds datasets; relative paths count from the working directory."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The network whose features are recorded."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Samples wanted (count), views included; rounded up to whole units; null for all of the
    source."""
    samples_per_unit: CountOrAuto = 0
    """Samples per shard (count); 0 for 64 to 128 MB of them. Part of the recipe."""
    codec: dict[str, str] | str = "float16"
    """How levels that hold floats are stored: float16, float32, bfloat16, int8, int4; fitted to the
    features: dct16 (16 times fewer bytes than float16; any number) or lowrank16-int4 (16 principal
    components); +zstd or +blosc for cold archives. Or one per level, such as
    `{default: int8, s4: float16, up.1.t100: dct16}`, by level name, tap or stride. Part of the
    recipe."""
    format: Literal["zarr", "tar"] = "zarr"
    """Format of the shards: zarr to train on, tar (WebDataset) to exchange. Part of the recipe."""
    seed: int = 0
    """Decides noise, latents and views; part of the recipe."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teacher runs; auto is cuda if gpus_per_actor is not 0. Pinned with the dataset."""
    micro_batch: Annotated[int, Field(ge=0, le=65536)] = 32
    """Samples per forward pass (count); shorter batches are padded. 0 tries growing ones on an
    actor's place first, and takes the largest that fits and pays. Pinned with the dataset."""
    threads_per_actor: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of a teacher's forward pass (count). Pinned with the dataset."""
    actors: CountOrAuto = 0
    """Actors, each with one teacher (count); 0 for as many as the cluster has room for, more when
    nodes join. On a cluster that scales by demand, give the most you want: none is waited for."""
    gpus_per_actor: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs of an actor (count); a fraction puts several teachers on one GPU."""
    actor_resources: dict[str, float] = field(default_factory=dict)
    """Further Ray resources of an actor, by name, to choose among unlike nodes, such as
    {accelerator_type:A100: 0.001}."""
    max_invalid_share: Fraction = 0.01
    """Largest share of images that may turn out unusable before the run fails, 0 .. 1."""
    fsync: bool = True
    """Flush shards to the device before they count as done; off is for throw-away data."""
    run_dir: str = ""
    """Folder for the record of this run; empty for runs/<name>."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Cluster."""

    def settled(self) -> Self:
        """Return the settings with every local path absolute; see `pipeline.request.paths`."""
        teacher = replace(
            self.teacher,
            path=input_path(self.teacher.path),
            interpreter=input_path(self.teacher.interpreter),
        )
        run_dir = output_path(self.run_dir or f"runs/{self.name}")
        root = output_path(self.root, key="root")
        return replace(self, root=root, run_dir=run_dir, teacher=teacher)

    def request(self) -> DatasetRequest:
        """Return the settings that decide the dataset: of images that are drawn, here."""
        return self._request("synthesize", None, ImageConfig(), self.samples, self.seed)

    def actor_size(self) -> ActorSize:
        """Return what an actor takes of the cluster."""
        return ActorSize(self.threads_per_actor, self.gpus_per_actor, self.actor_resources)

    def _request(
        self,
        mode: Mode,
        source: SourceConfig | None,
        image: ImageConfig,
        samples: int | None,
        seed: int,
    ) -> DatasetRequest:
        on_gpu = self.device == "cuda" or (self.device == "auto" and self.gpus_per_actor > 0)
        return DatasetRequest(
            mode=mode,
            name=self.name,
            root=self.root,
            teacher=self.teacher,
            source=source,
            image=image,
            samples=samples,
            samples_per_unit=self.samples_per_unit,
            codec=self.codec,
            format=self.format,
            seed=seed,
            device="cuda" if on_gpu else "cpu",
            micro_batch=self.micro_batch,
            threads=self.threads_per_actor,
            fsync=self.fsync,
        )

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = setting_problems(self.codec, layout_format=self.format)
        if not self.root:
            problems.append(Problem("root", "nothing", "a folder or URL", "Try --root data."))
        if self.device == "cuda" and self.gpus_per_actor == 0:
            hint = "Try --gpus_per_actor 1."
            problems.append(Problem("gpus_per_actor", "0 with device cuda", "more than 0", hint))
        if self.device == "cpu" and self.gpus_per_actor > 0:
            hint = "Remove it, or set --device cuda."
            problems.append(Problem("gpus_per_actor", "GPUs with device cpu", "0", hint))
        return problems


@dataclass(kw_only=True)
class OfflineConfig(PipelineConfig):
    """What encode and synthesize share: they work in whole units, which streams do not have."""

    unit_deadline_s: Annotated[float, Field(gt=0)] | None = None
    """Time after which a unit is named and given to another actor, too, and after twice that its
    actor is replaced (seconds); null for ten times the median, at least a minute."""
    halve_on_oom: bool = False
    """Halve the micro-batch where memory runs out instead of stopping; those shards are marked, and
    may differ from others in the last digits."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Tries per unit before it is left out and listed (count)."""
    assume: AssumeConfig = field(default_factory=AssumeConfig)
    """Stands in for a teacher or images that are not there, in `dreamshard plan` alone."""


@dataclass(kw_only=True)
class EncodeConfig(OfflineConfig):
    """Record a teacher's features of given images."""

    main_settings: ClassVar[str] = (
        PipelineConfig.main_settings
        + " source.kind source.path source.split source.class_folders image.size image.views"
    )

    reads: ClassVar = (When("for generators", "assume.image_size"),)

    source: SourceConfig = field(default_factory=SourceConfig)
    """The images."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the teacher's size."""

    def settled(self) -> Self:
        """Return the settings with every local path absolute."""
        source = replace(self.source, path=input_path(self.source.path))
        return replace(super().settled(), source=source)

    def request(self) -> DatasetRequest:
        """Return the settings that decide the dataset."""
        return self._request("encode", self.source, self.image, self.samples, self.seed)


@dataclass(kw_only=True)
class SynthesizeConfig(OfflineConfig):
    """Draw samples from a generator and record its features on the way."""

    reads: ClassVar = (When("by `dreamshard encode`", "assume.samples"),)

    samples: Annotated[int, Field(ge=1)] | None = 10_000
    """Samples wanted (count); rounded up to whole units."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = super().problems()
        if self.samples is None:
            hint = "Try --samples 50000."
            problems.append(Problem("samples", "null", "a count: a generator has no end", hint))
        return problems
