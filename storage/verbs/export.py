"""`dreamshard export SRC DST`: copy a dataset into another format, codec, or a part of it.

The copy is a dataset like any other, made unit by unit through the same commits: stopped, it goes
on where it was when the same command runs again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from secrets import token_hex

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.progress import Progress
from storage.catalog import find_dataset
from storage.codecs.arrays import IMAGE, MASK, codec_for
from storage.codecs.bases import FIT_SAMPLES
from storage.dataset import Dataset
from storage.formats.stores import STORES
from storage.ledger.holds import name_readers
from storage.level_names import choose_levels, match_levels
from storage.rows.pick import read_rows
from storage.schema import FeatureBatch, Level, Recipe
from storage.snapshot import Snapshot
from storage.verbs.commands import verb_parser
from storage.verbs.statistics import spread

_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Copy:
    """Say what is to be copied where.

    Args:
        source: what to read.
        levels: levels to copy.
        samples: the first so many samples.
        layout: format and codecs of the copy; codecs of levels not named stay.
    """

    source: Dataset
    snapshot: Snapshot
    levels: tuple[Level, ...]
    samples: int
    recipe: Recipe


def main(argv: Sequence[str]) -> int:
    """Run `dreamshard export`; exit code 0 when the copy is whole."""
    options = _parser().parse_args(argv)
    name_readers("export")
    copy = plan_copy(
        find_dataset(options.source),
        layout_format=options.format,
        levels=options.levels,
        samples=options.samples,
        codecs=options.codec or (),
        images=options.images,
    )
    target = create_copy(copy, options.root)
    done = run_copy(copy, target)
    state = f"{done:,} samples copied" if done else "already there, nothing to copy"
    sys.stdout.write(
        f"{target.url}: {state}.\nnext: dreamshard inspect {shlex.quote(target.url)}\n"
    )
    return 0


def plan_copy(
    source: Dataset,
    *,
    layout_format: str | None = None,
    levels: Sequence[str] | None = None,
    samples: int | None = None,
    codecs: Sequence[str] = (),
    images: str | None = None,
) -> Copy:
    """Work out a copy, with everything that is wrong about it at once.

    Args:
        source: the dataset to read.
        layout_format: "zarr" or "tar"; None keeps the source's.
        levels: names, taps or strides of the levels to copy; None for all.
        samples: the first so many samples; None for all.
        codecs: "name" for all levels that hold floats, or "level=name" for one.
        images: "png" or "npy": how format tar keeps images; None for png.

    Raises:
        ConfigError: if a level, count or codec is not possible.
        DataError: if the source has holes.
    """
    snapshot = source.snapshot()
    chosen, wrong = list(source.levels), []
    if levels is not None:
        chosen, wrong = choose_levels(source.levels, levels, key="levels")
    problems: list[Problem | str] = [*wrong]
    count = snapshot.num_samples if samples is None else samples
    if not 1 <= count <= snapshot.num_samples:
        problems.append(Problem("samples", str(count), f"1..{snapshot.num_samples}"))
    kept_as = layout_format or source.recipe.layout.get("format", "zarr")
    if images and kept_as != "tar":
        hint = "Leave it out, or add --format tar."
        problems.append(Problem("images", images, f"nothing with format {kept_as}", hint))
    if problems:
        raise ConfigError(problems)
    if any(unit * source.samples_per_unit < count for unit in snapshot.holes):
        raise DataError(
            f"{source.url}: got {len(snapshot.holes)} missing units, allowed none. Run the command "
            "that made the dataset again."
        )
    wanted = {level.name for level in chosen}
    layout: dict[str, object] = {
        **source.recipe.layout,
        "format": kept_as,
        "codecs": _codecs(source, chosen, codecs),
    }
    layout.pop("images", None)
    if layout["format"] == "tar":
        layout["images"] = images or "png"
    content = dict(source.recipe.content)
    listed = content.get("levels")
    if isinstance(listed, list):
        content["levels"] = [
            item for item in listed if not isinstance(item, dict) or item.get("name") in wanted
        ]
    recipe = Recipe(source.recipe.name, content, layout)
    for level in chosen:
        codec_for(recipe, level).arrays(level)
    return Copy(source, snapshot, tuple(chosen), count, recipe)


def create_copy(copy: Copy, root: str, *, origin: str | None = None) -> Dataset:
    """Make the dataset to copy into, or return the one that is there.

    Args:
        copy: what goes into it.
        root: folder of datasets.
        origin: what it says it was copied from; None for the source's URL.

    Raises:
        DataError: if it is the source itself, or the root cannot be written.
    """
    about, names = copy.source.about, copy.snapshot.classes
    extra = {key: value for key, value in about.extra.items() if key != "classes"}
    if names:  # those of the labels that are copied, not of the ones it was begun with
        extra["classes"] = list(names)
    target = Dataset.create(
        root,
        copy.recipe,
        levels=copy.levels,
        image_size=about.image_size,
        pins=about.pins,
        extra={**extra, "licence": about.licence, "exported_from": origin or copy.source.url},
        images=about.images,
        labels=about.labels,
        masks=about.masks,
    )
    if target.url == copy.source.url:
        raise DataError(f"{target.url}: got the source as target, allowed another root or layout.")
    return target


def run_copy(copy: Copy, target: Dataset) -> int:
    """Copy the units that are missing; return how many samples that were."""
    target.grow(copy.samples)
    run_id = f"export-{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}"
    done = 0
    with target.lease(run_id):
        _fit(copy, target)
        missing = target.missing(copy.samples).tolist()
        size = target.samples_per_unit
        counts = [min(size, copy.samples - unit * size) for unit in missing]
        made = copy.samples - sum(counts)
        with Progress("export", total=copy.samples, initial=made) as progress:
            for unit, count in zip(missing, counts, strict=True):
                _copy_unit(copy, target, unit, count, run_id)
                target.roll_up()
                progress.update(count)
                done += count
        target.roll_up(final=True)
    return done


def read_batch(copy: Copy, samples: np.ndarray) -> FeatureBatch:
    """Read samples of the source as a teacher would hand them over."""
    snapshot, names = copy.snapshot, set(copy.snapshot.array_names)

    def rows(name: str) -> np.ndarray | None:
        return read_rows(snapshot, name, samples) if name in names else None

    errors, valid = snapshot.errors if snapshot.num_invalid else {}, snapshot.valid[samples]
    return FeatureBatch(
        index=samples,
        key=[snapshot.keys[index] for index in samples.tolist()],
        valid=valid,
        image=rows(IMAGE),
        levels={level.name: read_rows(snapshot, level.name, samples) for level in copy.levels},
        label=snapshot.labels[samples],
        mask=rows(MASK),
        error={row: errors.get(int(samples[row]), "") for row in np.flatnonzero(~valid).tolist()},
    )


def _copy_unit(copy: Copy, target: Dataset, unit: int, count: int, run_id: str) -> None:
    first = unit * target.samples_per_unit
    origin = copy.source.commit_of(unit)
    with target.unit_writer(unit, count=count, run_id=run_id) as writer:
        for samples in _batches(copy, first, count):
            writer.write(int(samples[0]) - first, read_batch(copy, samples))
        writer.commit(input_digest="" if origin is None else origin.input_digest)


def _batches(copy: Copy, first: int, count: int) -> Iterator[np.ndarray]:
    row = sum(spec.row_bytes for spec in copy.source.arrays.values())
    step = max(1, _BATCH_BYTES // max(1, row))
    for start in range(first, first + count, step):
        yield np.arange(start, min(start + step, first + count))


def _fit(copy: Copy, target: Dataset) -> None:
    """Fit learned codecs to samples spread evenly over the source."""
    if target.unfitted():
        target.fit(read_batch(copy, spread(copy.snapshot, FIT_SAMPLES, first=copy.samples)))


def _codecs(source: Dataset, levels: Sequence[Level], asked: Sequence[str]) -> dict[str, str]:
    """Give every level its codec: the one asked for it, that for all, or the source's."""
    names = {level.name: source.recipe.codec_of(level) for level in levels}
    chosen: dict[str, str] = {}
    for text in sorted(asked, key=lambda text: "=" in text):  # one for all stands below
        name, mark, codec = text.rpartition("=")
        meant = match_levels(levels, name)
        if mark and not meant:
            raise ConfigError(Problem("codec", repr(text), f"LEVEL=CODEC with {', '.join(names)}"))
        meant = meant if mark else [level for level in levels if "float" in level.dtype]
        for level in meant:
            before = chosen.setdefault(f"{level.name}{mark}", codec)
            if before != codec:
                got = f"{before} and {codec} for {level.name}"
                raise ConfigError(Problem("codec", got, "one for all, and one for each level"))
            names[level.name] = codec
    for level in levels:  # values read back from a quantised level are float32
        if names[level.name] == "raw" and source.recipe.codec_of(level) not in ("raw",):
            raise ConfigError(
                Problem("codec", f"{level.name}=raw", "float16, float32 or another codec")
            )
    stated = source.recipe.layout.get("codecs")
    before = set(stated) if isinstance(stated, dict) else set()
    return {name: codec for name, codec in names.items() if codec != "raw" or name in before}


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "export", "Copy a feature dataset into another format or codec, or a part of it."
    )
    parser.add_argument("source", metavar="SRC", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument("root", metavar="DST", help="folder of datasets to put the copy in")
    parser.add_argument(
        "--format", choices=sorted(STORES), help="zarr to train on, tar to exchange; as SRC if not"
    )
    parser.add_argument(
        "--levels", nargs="+", help="levels to copy, by name or stride (s4); all if not given"
    )
    parser.add_argument("--samples", type=int, help="copy the first so many; all if not given")
    parser.add_argument(
        "--codec",
        nargs="+",
        metavar="CODEC",
        help="how levels are stored, such as int8 or lowrank16-int4; LEVEL=CODEC for one level; "
        "as in SRC if not given",
    )
    parser.add_argument("--images", choices=("png", "npy"), help="how tar keeps images (png)")
    return parser


if __name__ == "__main__":
    from dreamshard.errors import run_main

    sys.exit(run_main(main, sys.argv[1:]))
