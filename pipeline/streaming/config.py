"""Settings of the online pipeline; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from dreamshard.config.reads import Table, When
from dreamshard.errors import Problem
from pipeline.images.source import LATENTS, ImageConfig, SourceConfig
from pipeline.request.config import Count, DatasetRequest, EncodeConfig, PipelineConfig
from pipeline.request.paths import input_path
from storage.codecs.table import find_codec


@dataclass(kw_only=True)
class PartConfig:
    """One more source that shares the stream."""

    reads: ClassVar = (
        Table(
            "mode",
            {
                "shards": "dataset",
                "encode": "source image samples seed",
                "synthesize": "samples seed",
            },
        ),
    )

    mode: Literal["encode", "synthesize", "shards"] = "shards"
    """Where its samples come from: images encoded now, images drawn now, or a dataset."""
    weight: Count = 1
    """Its share of the positions, as a count against the other weights."""
    dataset: str = ""
    """Mode shards: the dataset's folder or URL, or ROOT/NAME."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Mode encode: the images."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Mode encode: how images are brought to the teacher's size."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Samples per epoch (count); null for all of the images, or for a generator without end."""
    seed: int = 0
    """Decides noise, latents and views of this source."""

    def settled(self) -> PartConfig:
        """Return the settings with every local path absolute."""
        source = replace(self.source, path=input_path(self.source.path))
        return replace(self, source=source, dataset=input_path(self.dataset))

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        if self.mode == "shards" and not self.dataset:
            return [Problem("dataset", "nothing", "a dataset's folder, URL or name")]
        if self.mode != "shards" and self.dataset:
            hint = "Remove it, or set mode: shards."
            return [Problem("dataset", f"{self.dataset} with mode {self.mode}", "none", hint)]
        return []


@dataclass(frozen=True)
class PartRequest:
    """What is asked of one source of a stream.

    Args:
        key: dotted key of its settings, for messages; empty for the first one.
        weight: its share of the positions, as a count.
        asked: what would be asked of its dataset, or that dataset's URL if it is there already.
    """

    key: str
    weight: int
    asked: DatasetRequest | str


@dataclass(frozen=True)
class StreamRequest:
    """The settings that decide what is streamed; paths are absolute.

    Args:
        name: of the service.
        parts: its sources; the first one names it.
        fresh_noise: draw new noise for every epoch.
        keep: commit the first source's samples to its dataset, too.
        mixup: mix the images of a micro-batch before the teacher sees them.
    """

    name: str
    parts: tuple[PartRequest, ...]
    fresh_noise: bool
    keep: bool
    mixup: bool = False


@dataclass(kw_only=True)
class StreamConfig(PipelineConfig):
    """Features made while they are used: which, by how many actors, and how far ahead."""

    main_settings: ClassVar[str] = EncodeConfig.main_settings + " mode keep window"
    reads: ClassVar = (
        Table("mode", {"encode": "source image"}),
        Table("keep", {True: "root format fsync"}),
        When("by `dreamshard encode` and `synthesize`", "max_invalid_share"),
        When("with a mix", "weight", lambda stream: bool(stream.mix)),
    )

    name: str = "features"
    """Name of the service, and first part of the folder name of the dataset that `keep` fills."""
    mode: Literal["encode", "synthesize"] = "encode"
    """Encode given images, or draw images from a generator."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The images; mode encode."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to the teacher's size; mode encode."""
    weight: Count = 1
    """Share of the positions that come from here, as a count against the weights in mix."""
    mix: list[PartConfig] = field(default_factory=list)
    """Further sources in stated proportions: real images, drawn ones, cached shards."""
    fresh_noise: bool = False
    """Draw new noise for every epoch: stochastic encoding as augmentation. Crops and flips stay."""
    mixup: bool = False
    """Mix the images of a micro-batch before the teacher sees them, by one share of 0..1: every
    objective then learns from what the teacher says of mixtures, which the student sees, too."""
    keep: bool = False
    """Commit what is streamed as shards under root, too, and read them in later epochs."""
    window: int = 8
    """Micro-batches there and under way per process (count); twice the actors keeps them busy."""
    window_units: Count = 8
    """Units that are mixed with one another where whole micro-batches are shuffled (count)."""
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    """Time after which a micro-batch is asked of a second actor (seconds); null for 0.5 s plus
    four times the usual time."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """Time to wait for a service that is away before giving up (seconds)."""
    start_actors: Literal["auto", "never"] = "auto"
    """Whether a trainer that finds no service of this name starts actors of its own."""

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        problems = super().problems()
        names = self.codec.values() if isinstance(self.codec, dict) else [self.codec]
        codecs = [find_codec(name) for name in names]
        if any(codec is not None and codec.learned for codec in codecs):
            allowed = "a codec that needs no fit: float16 | float32 | bfloat16 | int8 | int4"
            problems.append(Problem("codec", repr(self.codec), allowed, "Try --codec int8."))
        if self.window < 1:
            allowed = "1 or more micro-batches"
            hint = f"Try --window {max(4, 2 * self.actors)}."
            problems.append(Problem("window", str(self.window), allowed, hint))
        if self.fresh_noise and self.keep:
            hint = "Shards hold one draw of the noise: set one of the two to false."
            problems.append(Problem("keep", "true with fresh_noise", "one of them", hint))
        if self.fresh_noise and self.mode == "synthesize":
            hint = "A generator draws new samples anyway: leave samples at null."
            problems.append(Problem("fresh_noise", "true with mode synthesize", "false", hint))
        if self.mixup:
            problems += self._mixup_problems()
        if self.keep and self.mode == "synthesize" and self.samples is None:
            hint = "Try --samples 50000: later epochs then read what the first one made."
            problems.append(Problem("samples", "null with keep", "a count", hint))
        return problems

    def _mixup_problems(self) -> list[Problem]:
        """Say why the images cannot be mixed: none are encoded now, or they are kept."""
        problems, others = [], [part.mode for part in self.mix if part.mode != "encode"]
        if self.keep:
            hint = "Set one of the two to false."
            problems.append(Problem("mixup", "true with keep", "false: shards hold images", hint))
        if self.mode == "synthesize" or others:
            got = f"true with mode {others[0] if others else self.mode}"
            hint = "Only images that a teacher encodes now can be mixed before it."
            problems.append(Problem("mixup", got, "false, or mode encode throughout", hint))
        kinds = [self.source.kind, *(part.source.kind for part in self.mix)]
        if LATENTS in kinds:
            allowed = "false: the teacher starts from latents, and sees no image"
            problems.append(Problem("mixup", f"true with source.kind {LATENTS}", allowed))
        return problems

    def settled(self) -> Self:
        """Return the settings with every local path absolute, those in mix included."""
        source = replace(self.source, path=input_path(self.source.path))
        mix = [part.settled() for part in self.mix]
        return replace(super().settled(), source=source, mix=mix)

    def request(self) -> DatasetRequest:
        """Return what `dreamshard encode` or `synthesize` would be asked for the same bytes."""
        return self._of(self)

    def stream(self) -> StreamRequest:
        """Return the settings that decide what is streamed."""
        parts: list[PartRequest] = [PartRequest("", self.weight, self.request())]
        for number, part in enumerate(self.mix):
            asked = part.dataset if part.mode == "shards" else self._of(part)
            parts.append(PartRequest(f"mix.{number}", part.weight, asked))
        return StreamRequest(self.name, tuple(parts), self.fresh_noise, self.keep, self.mixup)

    def _of(self, part: StreamConfig | PartConfig) -> DatasetRequest:
        if part.mode == "synthesize":
            return self._request("synthesize", None, ImageConfig(), part.samples, part.seed)
        return self._request("encode", part.source, part.image, part.samples, part.seed)


@dataclass(kw_only=True)
class ServeConfig(StreamConfig):
    """Serve a teacher's features to trainers on a Ray cluster."""

    main_settings: ClassVar[str] = StreamConfig.main_settings + " action"
    reads: ClassVar = (When("by the trainer", "deadline_s patience_s start_actors window_units"),)

    action: Literal["run", "start", "status", "stop"] = "run"
    """run: start the actors, show a status line, stop them on Ctrl-C; start: leave them running;
    status: show those that run; stop: stop them."""
