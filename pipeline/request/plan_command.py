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
    from pipeline.request.plan import Speed
    from pipeline.request.resolve import ResolvedRequest

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
    words = list(argv)
    verb = words.pop(0) if words[:1] in (["encode"], ["synthesize"]) else _guess(words)
    cls = EncodePlanConfig if verb == "encode" else SynthesizePlanConfig
    description = "Show samples, shards, bytes and hours before anything is spent."
    config = load_config(cls, words, prog="dreamshard plan", description=description)
    begin(f"plan: {verb} {config.name}")
    sys.stdout.write("\n".join(_plan(config.settled())) + "\n")
    return 0


def _plan(config: EncodePlanConfig | SynthesizePlanConfig) -> Iterator[str]:
    """Yield the lines of a plan."""
    from pipeline.request.assume import images_are_missing, teacher_is_missing
    from pipeline.request.lookup import look_up
    from pipeline.request.plan import describe
    from pipeline.request.resolve import resolve

    asked = config.request()
    request = resolve(asked, assume=config.assume)
    no_images = images_are_missing(asked, config.assume)
    # Which dataset it would be follows from the weights and the images.
    known = not no_images and not teacher_is_missing(asked, config.assume)
    yield describe(request.plan, speed=_speed(config, request if known else None))
    yield from (f"note      {note}" for note in request.spec.notes)
    if no_images:
        yield f"note      the images are not there: {config.assume.samples:,}, says `assume`"
    if not known:
        return
    existing = look_up(request)
    yield f"dataset   {config.root}/{request.recipe.folder}"
    if existing is not None:
        num_units = request.plan.num_units
        made = num_units - len(existing.dataset.missing(request.plan.num_samples))
        state = "complete" if existing.complete else f"{made:,} of {num_units:,} shards"
        yield f"there     {state}: {existing.reason}"


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
