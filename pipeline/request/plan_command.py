"""`dreamshard plan`: read a config as encode or synthesize would, and print what it would make."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dreamshard.config import load_config
from dreamshard.config.reads import When
from dreamshard.config.yaml12 import read_yaml
from dreamshard.progress import begin
from pipeline.request.config import EncodeConfig, SynthesizeConfig

if TYPE_CHECKING:
    from pipeline.request.plan import Plan, Speed
    from pipeline.request.resolve import ResolvedRequest

SCHEMA = 1
"""Raised when a member of --json changes its meaning or goes."""
Rate = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class MeasureConfig:
    """What the hours, the bandwidth and the cost go by."""

    reads: ClassVar = (
        When(
            "with rate or measure, and GPUs",
            "gpu_hour_price",
            lambda plan: (plan.rate > 0 or plan.measure) and plan.gpus_per_actor > 0,
        ),
    )

    rate: Rate = 0.0
    """Images per second of the whole cluster, for hours and bandwidth; 0 leaves them out, or takes
    what --measure finds."""
    measure: bool = False
    """Load the teacher here, run a few micro-batches, and write and read 128 MiB at the root."""
    gpu_hour_price: Rate = 0.0
    """Price of a GPU for an hour, in any currency; 0 leaves the cost out."""


@dataclass(kw_only=True)
class EncodePlanConfig(EncodeConfig, MeasureConfig):
    """Show what `dreamshard encode` would make of the same settings."""

    main_settings: ClassVar[str] = EncodeConfig.main_settings + " rate measure"


@dataclass(kw_only=True)
class SynthesizePlanConfig(SynthesizeConfig, MeasureConfig):
    """Show what `dreamshard synthesize` would make of the same settings."""

    main_settings: ClassVar[str] = SynthesizeConfig.main_settings + " rate measure"


def main(argv: Sequence[str]) -> int:
    """Print a plan: `dreamshard plan [encode | synthesize] --config FILE [--rate N]`.

    Unless it is to measure, no weights are loaded and nothing is written.
    """
    words = [word for word in argv if word != "--json"]
    verb = words.pop(0) if words[:1] in (["encode"], ["synthesize"]) else _guess(words)
    cls = EncodePlanConfig if verb == "encode" else SynthesizePlanConfig
    description = (
        "Show samples, shards, bytes and hours before anything is spent; --json for scripts."
    )
    config = load_config(cls, words, prog="dreamshard plan", description=description)
    begin(f"plan: {verb} {config.name}")
    plan = _look(config.settled())
    if "--json" in argv:
        from storage.verbs.commands import print_json

        print_json({"schema": SCHEMA, "verb": verb, **plan.as_json()})
    else:
        sys.stdout.write("\n".join(plan.lines()) + "\n")
    return 0


@dataclass(frozen=True)
class Found:
    """Hold what a plan says.

    Args:
        plan, speed: what there is to make, and how fast that goes.
        notes: what the teacher notes, and what was assumed.
        dataset: where it would lie; "" where that is not known.
        there: units made already.
        reason: in what the dataset that is there differs; "" for none there.
    """

    plan: Plan
    speed: Speed
    notes: tuple[str, ...]
    dataset: str = ""
    there: int = 0
    reason: str = ""

    def lines(self) -> Iterator[str]:
        """Yield what people read."""
        from pipeline.request.plan import describe

        yield describe(self.plan, speed=self.speed)
        yield from (f"note      {note}" for note in self.notes)
        if self.dataset:
            yield f"dataset   {self.dataset}"
        if self.reason:
            num_units = self.plan.num_units
            whole = self.there == num_units
            state = "complete" if whole else f"{self.there:,} of {num_units:,} shards"
            yield f"there     {state}: {self.reason}"

    def as_json(self) -> dict[str, object]:
        """Return what scripts read; null where it is not known."""
        plan, speed = self.plan, self.speed
        seconds = plan.num_samples / speed.rate if speed.rate > 0 else None
        return {
            "samples": plan.num_samples,
            "units": plan.num_units,
            "samples_per_unit": plan.samples_per_unit,
            "bytes": plan.total_bytes,
            "arrays": {
                name: {"bytes_per_sample": size, "codec": plan.codecs.get(name)}
                for name, size in plan.bytes_per_sample.items()
            },
            "images_per_s": speed.rate or None,
            "seconds": seconds,
            "root_bytes_per_s": speed.write_bytes_per_s or None,
            "memory_bytes_per_actor": speed.memory_bytes or None,
            "notes": list(self.notes),
            "dataset": self.dataset or None,
            "units_there": self.there,
            "match": self.reason or None,
        }


def _look(config: EncodePlanConfig | SynthesizePlanConfig) -> Found:
    """Work out a plan."""
    from pipeline.request.assume import images_are_missing, teacher_is_missing
    from pipeline.request.lookup import look_up
    from pipeline.request.resolve import resolve

    asked = config.request()
    request = resolve(asked, assume=config.assume)
    no_images = images_are_missing(asked, config.assume)
    # Which dataset it would be follows from the weights and the images.
    known = not no_images and not teacher_is_missing(asked, config.assume)
    speed, notes = _speed(config, request if known else None), [*map(str, request.spec.notes)]
    if no_images:
        notes.append(f"the images are not there: {config.assume.samples:,}, says `assume`")
    if not known:
        return Found(request.plan, speed, tuple(notes))
    place, existing = f"{config.root}/{request.recipe.folder}", look_up(request)
    if existing is None:
        return Found(request.plan, speed, tuple(notes), place)
    missing = len(existing.dataset.missing(request.plan.num_samples))
    made = request.plan.num_units - (0 if existing.complete else missing)
    return Found(request.plan, speed, tuple(notes), place, made, existing.reason)


def _speed(
    config: EncodePlanConfig | SynthesizePlanConfig, request: ResolvedRequest | None
) -> Speed:
    """Measure what is asked for, where there is something to measure; `actors` 0 counts as one."""
    from pipeline.request.plan import Speed

    actors = max(1, config.actors)
    rate, write, memory = config.rate, 0.0, 0
    if config.measure and request is not None:
        from pipeline.request.trial import try_out
        from storage.fs.speed import measure_root

        trial = try_out(
            request.asked, request.spec.image_size, request.pins, num_gpus=config.gpus_per_actor
        )
        rate, memory = rate or trial.rate * actors, trial.memory_bytes
        write = measure_root(config.root).write_bytes_per_s
    return Speed(
        rate=rate,
        write_bytes_per_s=write,
        memory_bytes=memory,
        gpus=actors * config.gpus_per_actor,
        gpu_hour_price=config.gpu_hour_price,
    )


def _guess(argv: Sequence[str]) -> str:
    """Tell from the settings whether they are for encode: those of images are."""
    for words in (argv, *_files(argv)):
        for word in words:
            name = word.removeprefix("--").partition("=")[0].partition(".")[0]
            if name in ("source", "image"):
                return "encode"
    return "synthesize" if any(word.startswith("--config") for word in argv) else "encode"


def _files(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield the top-level keys of each config file that can be read, and of no other."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--config":
            try:
                content, _ = read_yaml(value or after)
            except OSError:
                continue
            yield [str(key) for key in content] if isinstance(content, dict) else []
