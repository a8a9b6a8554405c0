"""Say what a run will make before anything is spent: units, bytes, hours. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from storage.codecs.arrays import array_specs
from storage.schema import Level, Recipe

UNIT_BYTES = 128 << 20
"""Most per unit: large enough that a commit costs nothing, small enough to lose without regret."""


@dataclass(frozen=True)
class Plan:
    """What there is to make."""

    num_samples: int
    """Samples of the dataset after rounding up to whole units, or to the end of the source."""
    samples_per_unit: int
    bytes_per_sample: dict[str, int]
    """Stored bytes of one sample, by array."""
    codecs: Mapping[str, str] = field(default_factory=dict)
    """How each level is stored."""

    @property
    def num_units(self) -> int:
        """Count the units, the partial one at the end included."""
        return math.ceil(self.num_samples / self.samples_per_unit)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole dataset, manifest aside."""
        return self.num_samples * sum(self.bytes_per_sample.values())

    def count(self, unit: int) -> int:
        """Count the samples of a unit."""
        return min(self.samples_per_unit, self.num_samples - unit * self.samples_per_unit)


def bytes_per_sample(
    levels: Sequence[Level],
    *,
    codecs: Mapping[str, str],
    image_size: tuple[int, int],
    has_labels: bool,
    has_masks: bool,
) -> dict[str, int]:
    """Give the stored bytes of one sample, by array name."""
    specs = array_specs(
        Recipe("plan", {}, {"codecs": dict(codecs)}),
        levels,
        image_size=image_size,
        images=True,
        labels=has_labels,
        masks=has_masks,
    )
    return {spec.name: spec.row_bytes for spec in specs}


def choose_samples_per_unit(sample_bytes: int) -> int:
    """Size a unit at 64 to 128 MB, a power of two: micro-batches fill it, whatever is pinned.

    Depends on the recipe alone, so that a later request finds the same units.
    """
    return 1 << max(0, (UNIT_BYTES // max(1, sample_bytes)).bit_length() - 1)


def make_plan(
    wanted: int,
    *,
    available: int | None,
    samples_per_unit: int,
    sizes: dict[str, int],
    codecs: Mapping[str, str] | None = None,
) -> Plan:
    """Round a request up to whole units, but not beyond the end of the source.

    Args:
        wanted: samples asked for.
        available: samples of the source; None for a generator.
        samples_per_unit: samples of a whole unit.
        sizes: stored bytes of one sample, by array.
        codecs: how each level is stored.
    """
    count = math.ceil(wanted / samples_per_unit) * samples_per_unit
    end = count if available is None else min(count, available)
    return Plan(end, samples_per_unit, sizes, codecs or {})


@dataclass(frozen=True)
class Speed:
    """What a run would go by; 0 where nothing is known.

    Args:
        rate: images per second of the whole cluster.
        write_bytes_per_s: what the root was measured to take.
        memory_bytes: of one actor.
        gpus: GPUs of the whole cluster in use (count).
        gpu_hour_price: of one, in any currency.
    """

    rate: float = 0.0
    write_bytes_per_s: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    gpu_hour_price: float = 0.0


def describe(plan: Plan, *, speed: Speed | None = None) -> str:
    """Write a plan as a table; hours, bandwidth and cost as far as speeds are known.

    Args:
        plan: what there is to make.
        speed: what the run would go by.
    """
    lines = [
        f"samples   {plan.num_samples:,}",
        f"shards    {plan.num_units:,} of {plan.samples_per_unit:,} samples",
        "bytes     per sample         total  codec",
    ]
    width = max(len(name) for name in (*plan.bytes_per_sample, "all arrays"))
    for name, size in plan.bytes_per_sample.items():
        line = f"  {name:<{width}} {size:>10,} {format_bytes(size * plan.num_samples):>12}"
        lines.append(f"{line}  {plan.codecs.get(name, '')}".rstrip())
    total = sum(plan.bytes_per_sample.values())
    lines.append(f"  {'all arrays':<{width}} {total:>10,} {format_bytes(plan.total_bytes):>12}")
    return "\n".join([*lines, *_speeds(plan, speed or Speed())])


def _speeds(plan: Plan, speed: Speed) -> Iterator[str]:
    """Write the lines that depend on speeds."""
    if speed.memory_bytes:
        yield f"memory    {format_bytes(speed.memory_bytes)} per actor"
    if speed.rate <= 0:
        return
    hours = plan.num_samples / speed.rate / 3600
    needed = speed.rate * sum(plan.bytes_per_sample.values())
    yield f"time      {hours:,.2f} h at {speed.rate:,.4g} img/s"
    measured = ""
    if speed.write_bytes_per_s:
        share = needed / speed.write_bytes_per_s
        measured = f" needed, {format_bytes(speed.write_bytes_per_s)}/s measured from here"
        if share > 1:
            hours *= share
            measured += f": the root is the bottleneck, {hours:,.2f} h"
    yield f"write     {format_bytes(needed)}/s{measured}"
    if speed.gpu_hour_price:
        cost = hours * speed.gpus * speed.gpu_hour_price
        yield f"cost      {cost:,.2f} at {speed.gpu_hour_price:g} per GPU hour, {speed.gpus:g} GPUs"


def format_bytes(count: float) -> str:
    """Write a count of bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
