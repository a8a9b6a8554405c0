"""Work out what a stream is of, with all mistakes at once and nothing heavy loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.cluster.join import OBJECT_STORE_BYTES
from pipeline.request.config import DatasetRequest
from pipeline.request.lookup import create, look_up
from pipeline.request.resolve import ResolvedRequest, resolve
from pipeline.request.same_source import check_source
from pipeline.streaming.config import StreamRequest
from pipeline.streaming.server import ServedPart
from storage import catalog
from storage.codecs.arrays import array_specs, codec_for
from storage.codecs.base import ArraySpec, Codec
from storage.dataset import Dataset
from storage.schema import Level, Recipe
from storage.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a stream, understood.

    Args:
        num_samples: samples per epoch; None for a generator without end.
        served: what actors need to know of it; None for cached shards.
        dataset: of cached shards, or the one that is filled on the way; None without.
        snapshot: cached shards; None where samples are made.
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
    dataset: Dataset | None = None
    snapshot: Snapshot | None = None

    @property
    def keep(self) -> Dataset | None:
        """Return the dataset that is filled on the way, if there is one."""
        return self.dataset if self.snapshot is None else None


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

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what was guessed about the teachers of sources that are made now."""
        served = [part.served.request.spec for part in self.parts if part.served is not None]
        return tuple(dict.fromkeys(note for spec in served for note in spec.notes))

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

    def at(self, versions: str) -> Stream:
        """Return the stream of a run that goes on: cached shards as `versions` once named them."""
        if versions == self.versions():
            return self
        wanted = iter(versions.split(","))
        parts = tuple(
            _shards(part.dataset, part.weight, next(wanted, None))
            if part.dataset is not None and part.snapshot is not None
            else part
            for part in self.parts
        )
        return dataclasses.replace(self, parts=parts)


def resolve_stream(asked: StreamRequest, *, prefix: str = "") -> Stream:
    """Understand a request; make the dataset that `keep` fills.

    Args:
        asked: its settings.
        prefix: dotted key of the settings within larger ones, for messages.

    Raises:
        ConfigError: everything that is wrong, in one go.
        DataError: a source or dataset that is empty or damaged.
    """
    problems: list[Problem | str] = []
    parts: list[Part] = []
    kept: ResolvedRequest | None = None
    for part in asked.parts:
        try:
            if isinstance(part.asked, str):
                parts.append(_shards(_dataset(part.asked), part.weight))
                continue
            first = not part.key
            resolved, endless = _resolve_part(part.asked, writing=asked.keep and first)
            kept = resolved if first else kept
            parts.append(_made(resolved, part.weight, asked, endless=endless))
        except ConfigError as error:
            problems += error.under(part.key).problems
    if not problems:
        problems += _differences(parts)
    if not problems and asked.keep:
        problems += _keep_problems(parts[0])
    if problems:
        raise ConfigError(problems).under(prefix)
    if asked.keep and kept is not None:
        kept.check_writable()
        parts[0] = _kept(parts[0], kept)
    return Stream(asked.name, tuple(parts), _identity(parts))


def differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """List in what a service and a trainer disagree, one line per dotted key."""
    return [
        f"{key}: {theirs.get(key)!r} served, {ours.get(key)!r} asked for"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]


def _resolve_part(asked: DatasetRequest, *, writing: bool) -> tuple[ResolvedRequest, bool]:
    """Resolve a source that is made now; say whether it has no end."""
    endless = asked.samples is None and asked.source is None
    asked = dataclasses.replace(asked, samples=1) if endless else asked
    return resolve(asked, writing=writing), endless


def _made(request: ResolvedRequest, weight: int, asked: StreamRequest, *, endless: bool) -> Part:
    fresh_noise = asked.fresh_noise and request.asked.mode == "encode"
    served = ServedPart(request, fresh_noise, mixup=asked.mixup)
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


def _dataset(url: str) -> Dataset:
    try:
        return catalog.find_dataset(url)
    except DataError as error:
        raise ConfigError(Problem("dataset", url, "a dataset that is there", str(error))) from error


def _shards(dataset: Dataset, weight: int, version: str | None = None) -> Part:
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
        dataset=dataset,
        snapshot=snapshot,
    )


def _kept(part: Part, request: ResolvedRequest) -> Part:
    """Find or make the dataset that a source fills; its pins hold."""
    assert part.served is not None
    existing = look_up(request)
    if existing:
        check_source(existing.dataset, request.input)
    dataset = existing.dataset if existing and existing.extendable else create(request)
    dataset.grow(request.plan.num_samples)
    pins = dataset.pins
    served = dataclasses.replace(
        part.served, request=dataclasses.replace(request, pins=pins), url=dataset.url
    )
    return dataclasses.replace(part, dataset=dataset, served=served, micro_batch=pins.micro_batch)


def _keep_problems(part: Part) -> list[Problem]:
    size, step = part.recipe.samples_per_unit, part.micro_batch
    if size % step == 0:
        return []
    near = max(1, size // step) * step
    allowed = f"a multiple of micro_batch ({step}), so that micro-batches add up to units"
    return [Problem("samples_per_unit", str(size), allowed, f"Try --samples_per_unit {near}.")]


def _differences(parts: Sequence[Part]) -> list[Problem]:
    """Compare every source with the first: one batch must be able to hold all of them."""
    first, problems = parts[0], []
    names = [level.name for level in first.levels]
    for number, part in enumerate(parts[1:]):
        key = f"mix.{number}"
        if part.image_size != first.image_size:
            allowed = f"{first.image_size} as in the first source"
            problems.append(Problem(f"{key}.image.size", str(part.image_size), allowed))
        given = {level.name: level for level in part.levels}
        for level in first.levels:
            if level.name not in given:
                allowed = f"one with the levels {', '.join(names)}"
                problems.append(Problem(key, f"a source without level {level.name}", allowed))
                continue
            ours, theirs = _stored(first, level), _stored(part, given[level.name])
            if ours != theirs:
                hint = "Give both the same codec, for example --codec float16."
                problems.append(Problem(f"{key}: level {level.name}", theirs, ours, hint))
    return problems


def _stored(part: Part, level: Level) -> str:
    specs = codec_for(part.recipe, level).arrays(level)
    codec = part.recipe.codec_of(level)
    return f"{codec} " + ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)


def _identity(parts: Sequence[Part]) -> dict[str, object]:
    identity: dict[str, object] = {}
    for number, part in enumerate(parts):
        key = f"mix.{number - 1}." if number else ""
        if part.served is None:
            continue
        _flatten(f"{key}content", part.recipe.content, identity)
        _flatten(f"{key}codecs", part.recipe.layout["codecs"], identity)
        identity[f"{key}micro_batch"] = part.micro_batch
        identity[f"{key}fresh_noise"] = part.served.fresh_noise
        identity[f"{key}keep"] = part.served.url
        if (
            part.served.mixup
        ):  # streams without have the identity that they had before there was any
            identity[f"{key}mixup"] = True
    return identity


def _flatten(key: str, value: object, flat: dict[str, object]) -> None:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            _flatten(f"{key}.{name}", item, flat)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for item in value:
            name = item.get("name") if isinstance(item, Mapping) else None
            flat[f"{key}.{name}"] = item
    else:
        flat[key] = value
