"""Work out what a stream is of, with all mistakes at once and nothing heavy loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.cluster.join import OBJECT_STORE_BYTES
from pipeline.request.config import EncodeConfig, PipelineConfig
from pipeline.request.lookup import create
from pipeline.request.paths import settle_paths
from pipeline.request.resolve import Request, check_root, resolve
from pipeline.streaming.config import StreamConfig
from pipeline.streaming.server import ServedPart
from storage import catalog
from storage.codecs.arrays import ArraySpec, Codec, array_specs, codec_for
from storage.dataset import Dataset, Snapshot
from storage.schema import Level, Pins, Recipe


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a stream, understood.

    Args:
        served: what actors need to know of it; None for cached shards.
        snapshot: cached shards, or None.
        num_samples: samples per epoch; None for a generator without end.
        keep: the dataset that is filled on the way, or None.
    """

    weight: int
    recipe: Recipe
    levels: tuple[Level, ...]
    image_size: tuple[int, int]
    micro_batch: int
    has_labels: bool
    num_samples: int | None
    licence: str
    served: ServedPart | None = None
    snapshot: Snapshot | None = None
    keep: Dataset | None = None


@dataclass(frozen=True)
class Stream:
    """A stream understood; the first part is the one that names it."""

    name: str
    parts: tuple[Part, ...]
    identity: dict[str, object]
    """What two sides must agree on, by dotted key."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels that every part gives."""
        return self.parts[0].levels

    def codec(self, level: str) -> Codec:
        """Return how a level is stored in batches."""
        by_name = {item.name: item for item in self.levels}
        return codec_for(self.parts[0].recipe, by_name[level])

    def arrays(self, levels: Sequence[str], *, labels: bool = False) -> dict[str, ArraySpec]:
        """List the arrays of a batch that holds some levels, by name."""
        first = self.parts[0]
        chosen = [level for level in self.levels if level.name in levels]
        specs = array_specs(
            first.recipe, chosen, image_size=first.image_size, images=True, labels=labels,
            masks=False,
        )  # fmt: skip
        return {spec.name: spec for spec in specs}

    def store_bytes(self, window: int, *, clients: int) -> int:
        """Size the object store of a cluster of our own: four windows per client, as measured."""
        row = sum(spec.row_bytes for spec in self.arrays([lv.name for lv in self.levels]).values())
        windows = 4 * clients * window * self.parts[0].micro_batch * row
        return max(OBJECT_STORE_BYTES, windows + (64 << 20))

    def versions(self) -> str:
        """Name the snapshots that cached shards are read from, for checkpoints."""
        return ",".join(part.snapshot.version for part in self.parts if part.snapshot is not None)


def resolve_stream(config: StreamConfig, *, versions: str = "", prefix: str = "") -> Stream:
    """Understand a config; make the dataset that `keep` fills.

    Args:
        config: the stream's.
        versions: of a run that goes on, as `Stream.versions` gave them.
        prefix: dotted key of the config within a larger one, for messages.

    Raises:
        ConfigError: everything that is wrong, in one go.
        DataError: a source or dataset that is empty or damaged.
    """
    config = settle_paths(config)
    problems: list[Problem | str] = []
    wanted = iter(versions.split(",") if versions else [])
    parts: list[Part] = []
    for key, weight, what in config.parts():
        try:
            if isinstance(what, str):
                parts.append(_shards(what, weight, next(wanted, None)))
            else:
                parts.append(_online(config, what, weight, keep=config.keep and not key))
        except ConfigError as error:
            problems += error.under(key).problems
    if not problems:
        problems += _differences(parts)
    if not problems and config.keep:
        problems += _keep_problems(parts[0])
    if problems:
        raise ConfigError(problems).under(prefix)
    if config.keep:
        parts[0] = _with_dataset(config, parts[0])
    return Stream(config.name, tuple(parts), _identity(parts))


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """List in what a service and a trainer disagree, one line per dotted key."""
    return [
        f"{key}: {there.get(key)!r} served, {here.get(key)!r} asked for"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _online(config: StreamConfig, what: PipelineConfig, weight: int, *, keep: bool) -> Part:
    if keep:
        check_root(config.root)
    endless = what.samples is None and not isinstance(what, EncodeConfig)
    asked = dataclasses.replace(what, samples=1) if endless else what
    request = resolve(asked, writing=False)
    return _part(config, what, request, weight, endless=endless)


def _part(
    config: StreamConfig, what: PipelineConfig, request: Request, weight: int, *, endless: bool
) -> Part:
    served = ServedPart(
        input=request.input,
        recipe=request.recipe,
        levels=request.spec.levels,
        image_size=request.spec.image_size,
        seed=what.seed,
        teacher=what.teacher,
        pins=request.pins,
        fresh_noise=config.fresh_noise and request.input.mode == "encode",
        fsync=config.fsync,
    )
    return Part(
        weight=weight,
        recipe=request.recipe,
        levels=request.spec.levels,
        image_size=request.spec.image_size,
        micro_batch=request.pins.micro_batch,
        has_labels=request.input.has_labels,
        num_samples=None if endless else request.plan.num_samples,
        licence=request.spec.licence,
        served=served,
    )


def _shards(url: str, weight: int, version: str | None) -> Part:
    try:
        dataset = catalog.find_dataset(url)
    except DataError as error:
        raise ConfigError(Problem("dataset", url, "a dataset that is there", str(error))) from error
    snapshot = dataset.snapshot(version=version)
    return Part(
        weight=weight,
        recipe=dataset.recipe,
        levels=dataset.levels,
        image_size=dataset.image_size,
        micro_batch=dataset.pins.micro_batch,
        has_labels="label" in snapshot.array_names,
        num_samples=snapshot.num_samples,
        licence=dataset.about.licence,
        snapshot=snapshot,
    )


def _with_dataset(config: StreamConfig, part: Part) -> Part:
    """Find or make the dataset of the first part; its pins hold."""
    assert part.served is not None
    offline = config.offline()
    request = resolve(offline)
    match = catalog.find(config.root, request.recipe, prefix_digest=request.input.prefix_digest)
    if match is not None and match.extendable:
        dataset = Dataset.open(match.url, fsync=config.fsync)
    else:
        dataset = create(offline, request)
    dataset.grow(request.plan.num_samples)
    pins: Pins = dataset.pins
    served = dataclasses.replace(part.served, pins=pins, url=dataset.url)
    return dataclasses.replace(part, keep=dataset, served=served, micro_batch=pins.micro_batch)


def _keep_problems(part: Part) -> list[Problem]:
    size, step = part.recipe.samples_per_unit, part.micro_batch
    if size % step == 0:
        return []
    near = max(1, size // step) * step
    allowed = f"a multiple of micro_batch ({step}), so that micro-batches add up to units"
    return [Problem("samples_per_unit", str(size), allowed, f"Try --samples_per_unit {near}.")]


def _differences(parts: Sequence[Part]) -> list[Problem]:
    """Compare every source with the first: one batch must be able to hold all of them."""
    first, found = parts[0], []
    names = [level.name for level in first.levels]
    for number, part in enumerate(parts[1:]):
        key = f"mix.{number}"
        if part.image_size != first.image_size:
            allowed = f"{first.image_size} as in the first source"
            found.append(Problem(f"{key}.image.size", str(part.image_size), allowed))
        there = {level.name: level for level in part.levels}
        for level in first.levels:
            if level.name not in there:
                allowed = f"one with the levels {', '.join(names)}"
                found.append(Problem(key, f"a source without level {level.name}", allowed))
                continue
            ours, theirs = _stored(first, level), _stored(part, there[level.name])
            if ours != theirs:
                hint = "Give both the same codec, for example --codec float16."
                found.append(Problem(f"{key}: level {level.name}", theirs, ours, hint))
    return found


def _stored(part: Part, level: Level) -> str:
    specs = codec_for(part.recipe, level).arrays(level)
    codec = part.recipe.codec_of(level)
    return f"{codec} " + ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)


def _identity(parts: Sequence[Part]) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, part in enumerate(parts):
        key = f"mix.{number - 1}." if number else ""
        if part.served is None:
            continue
        _flatten(f"{key}content", part.recipe.content, found)
        _flatten(f"{key}codecs", part.recipe.layout["codecs"], found)
        found[f"{key}micro_batch"] = part.micro_batch
        found[f"{key}fresh_noise"] = part.served.fresh_noise
        found[f"{key}keep"] = part.served.url
    return found


def _flatten(key: str, value: object, found: dict[str, object]) -> None:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            _flatten(f"{key}.{name}", item, found)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for item in value:
            name = item.get("name") if isinstance(item, Mapping) else None
            found[f"{key}.{name}"] = item
    else:
        found[key] = value
