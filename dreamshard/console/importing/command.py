"""`dreamshard import FOLDER`: make a dataset of features that somebody else recorded.

Each sample is copied, unit by unit, through the same commits as any dataset's: shards tells which
members are of which sample, values what their tensors are.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from secrets import token_hex

import numpy as np

from dreamshard.console.importing.shards import IMAGES, MAX_MEMBER, Shards, find_shards
from dreamshard.console.importing.values import (
    CODECS,
    Tokens,
    image_of,
    levels_of,
    sample_values,
    stacked,
)
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.progress import Progress, begin, stage
from dreamshard.redact import redact_line
from pipeline.request.plan import bytes_per_sample, choose_samples_per_unit
from storage.dataset import Dataset
from storage.schema import FORMAT_VERSION, FeatureBatch, Level, Pins, Recipe, check_name
from storage.verbs.commands import verb_parser

ALGORITHM = 1
"""Version of what makes rows of members; a change of bytes raises it."""
BATCH_BYTES = 16 << 20
SPARE = 64 << 10
"""Bytes that a sample's member may have beyond the first one's: headers differ."""
SIDES = range(1, (1 << 16) + 1)


class Import:
    """Make a dataset of a folder of feature shards.

    Args:
        shards: what the folder has.
        tokens: how tokens become maps.
        image_size: (height, width) that the teachers saw; None: that of the images.
    """

    def __init__(
        self, shards: Shards, *, tokens: Tokens, image_size: tuple[int, int] | None
    ) -> None:
        self.shards, self.tokens = shards, tokens
        self.images = IMAGES in shards.places
        self.limits = dict.fromkeys(shards.places, MAX_MEMBER)
        if self.images:
            height, width, _ = self._images([0])[0].shape
            if image_size not in (None, (height, width)):
                allowed = f"{height}x{width}, that of the images, or none"
                raise ConfigError(Problem("image_size", "x".join(map(str, image_size)), allowed))
            image_size = height, width
        if image_size is None:
            hint = "Try --image_size 224."
            allowed = "the pixels that the teachers saw, as there are no images"
            raise ConfigError(Problem("image_size", "none", allowed, hint))
        self.image_size = image_size
        self.levels: dict[str, dict[str, Level]] = {}
        for teacher in shards.teachers:
            where = shards.where(teacher, 0)
            first = self._features(teacher, [0])[0]
            levels = levels_of(first, image_size=image_size, where=where)
            self.levels[teacher] = {level.name: level for level in levels}
        for column, places in shards.places.items():
            most = int(places[0, 2]) + SPARE
            self.limits[column] = MAX_MEMBER if column == IMAGES else most
        self.every = [level for levels in self.levels.values() for level in levels.values()]

    def recipe(self, name: str, *, samples_per_unit: int = 0) -> Recipe:
        """Write down what decides the dataset's bytes."""
        codecs = {level.name: CODECS[level.dtype] for level in self.every}
        sizes = bytes_per_sample(
            self.every, codecs=codecs, image_size=self.image_size, has_labels=False, has_masks=False
        )
        count = len(self.shards.keys)
        # No more than there are: a chunk is padded to a whole unit, and nothing is added later.
        most = min(choose_samples_per_unit(sum(sizes.values())), 1 << (count - 1).bit_length())
        levels: list[object] = [
            {key: value for key, value in level.to_dict().items() if key != "kind"}
            for level in self.every
        ]
        content: dict[str, object] = {
            "algorithm": ALGORITHM,
            "teacher": {"kind": "import", "names": self.shards.teachers},
            "mode": {"kind": "import", "prefix_tokens": self.tokens.prefix},
            "levels": levels,
            "image": {"size": list(self.image_size), "range": "0..255"},
            "source": {"kind": "features", "count": count, "digest": self.shards.digest},
            "seed": 0,
        }
        layout: dict[str, object] = {
            "format": "zarr",
            "format_version": FORMAT_VERSION,
            "codecs": codecs,
            "samples_per_unit": samples_per_unit or most,
        }
        return Recipe(name, content, layout)

    def run(self, dataset: Dataset) -> int:
        """Make the units that are missing; return how many samples that were."""
        total, size = len(self.shards.keys), dataset.samples_per_unit
        dataset.grow(total)
        run_id = f"import-{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}"
        done = 0
        with dataset.lease(run_id):
            missing = dataset.missing(total).tolist()
            counts = [min(size, total - unit * size) for unit in missing]
            with Progress("import", total=total, initial=total - sum(counts)) as progress:
                for unit, count in zip(missing, counts, strict=True):
                    with dataset.unit_writer(unit, count=count, run_id=run_id) as writer:
                        for samples in self._batches(unit * size, count):
                            writer.write(samples[0] - unit * size, self._batch(samples))
                        writer.commit()
                    dataset.roll_up()
                    progress.update(count)
                    done += count
            dataset.roll_up(final=True)
        return done

    def _batches(self, first: int, count: int) -> list[list[int]]:
        row = sum(int(places[0, 2]) for places in self.shards.places.values())
        step = max(1, BATCH_BYTES // max(1, row))
        stop = first + count
        return [list(range(at, min(at + step, stop))) for at in range(first, stop, step)]

    def _batch(self, samples: list[int]) -> FeatureBatch:
        values: dict[str, np.ndarray] = {}
        for teacher, levels in self.levels.items():
            wheres = [self.shards.where(teacher, sample) for sample in samples]
            values |= stacked(self._features(teacher, samples), levels, wheres=wheres)
        return FeatureBatch(
            index=np.array(samples),
            key=[self.shards.keys[sample] for sample in samples],
            valid=np.ones(len(samples), bool),
            image=np.stack(self._images(samples, size=self.image_size)) if self.images else None,
            levels=values,
        )

    def _features(self, teacher: str, samples: list[int]) -> list[dict]:
        return [
            sample_values(
                data,
                teacher=teacher,
                tokens=self.tokens,
                where=self.shards.where(teacher, sample),
            )
            for sample, data in zip(
                samples,
                self.shards.read(teacher, samples, limit=self.limits[teacher]),
                strict=True,
            )
        ]

    def _images(
        self, samples: list[int], *, size: tuple[int, int] | None = None
    ) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        for sample, data in zip(
            samples,
            self.shards.read(IMAGES, samples, limit=self.limits[IMAGES]),
            strict=True,
        ):
            where = self.shards.where(IMAGES, sample)
            images.append(image_of(data, where=where))
            height, width = images[-1].shape[:2]
            if (height, width) != (size or images[0].shape[:2]):
                allowed = "x".join(map(str, size or images[0].shape[:2]))
                raise DataError(
                    f"{where}: got {height}x{width} pixels, allowed {allowed} as in the first "
                    "sample. Leave images out with --no_images and --image_size."
                )
        return images


def main(argv: Sequence[str]) -> int:
    """Run `dreamshard import`; exit code 0 when the dataset is whole."""
    options = _parser().parse_args(argv)
    tokens, size = _tokens(options), _sides(options.image_size, key="image_size")
    if not 0 <= options.samples_per_unit < 1 << 31:
        got = str(options.samples_per_unit)
        raise ConfigError(Problem("samples_per_unit", got, "1 or more; 0: chosen by size"))
    check_name(options.name, what="--name")
    begin(f"import: {options.folder} into {options.root}")
    shards = find_shards(
        options.folder,
        pattern=options.shards,
        teachers=options.teachers,
        images=not options.no_images,
    )
    for line in shards.passed.lines():
        stage(f"passed over: {line}")
    importer = Import(shards, tokens=tokens, image_size=size)
    dataset = Dataset.create(
        options.root,
        importer.recipe(options.name, samples_per_unit=options.samples_per_unit),
        levels=importer.every,
        image_size=importer.image_size,
        pins=Pins(micro_batch=1, compute_dtype="unknown", device="unknown", threads=1),
        extra={"licence": options.licence, "imported_from": redact_line(options.folder)},
        images=importer.images,
    )
    done = importer.run(dataset)
    state = f"{done:,} samples imported" if done else "already there, nothing to import"
    sys.stdout.write(
        f"{dataset.url}: {state}.\nnext: dreamshard inspect {shlex.quote(dataset.url)}\n"
    )
    return 0


def _tokens(options: argparse.Namespace) -> Tokens:
    if not 0 <= options.prefix_tokens <= 1000:
        raise ConfigError(Problem("prefix_tokens", str(options.prefix_tokens), "0..1000"))
    return Tokens(options.prefix_tokens, _sides(options.grid, key="grid"))


def _sides(text: str | None, *, key: str) -> tuple[int, int] | None:
    """Read `16x24` or `16`: rows and columns, or height and width."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(side in SIDES for side in sides):
        raise ConfigError(Problem(key, repr(text), "one number, or two such as 16x24"))
    return sides


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("import", str(__doc__).partition(": ")[2].partition("\n")[0].capitalize())
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="folder or URL with a folder of tar files per teacher, as Theia writes them: "
        "KEY.TEACHER.safetensors per sample, images as KEY.image",
    )
    parser.add_argument("--root", required=True, help="folder of datasets to put it in")
    parser.add_argument("--name", default="imported", help="of the dataset (imported)")
    parser.add_argument("--teachers", nargs="+", help="whose features to take; all if not given")
    parser.add_argument(
        "--shards", default="*.tar", help="tar files to read, by their names ('*.tar')"
    )
    parser.add_argument("--no_images", action="store_true", help="leave the images there")
    parser.add_argument(
        "--image_size", help="pixels that the teachers saw, 224 or 224x448, where images are not"
    )
    parser.add_argument(
        "--prefix_tokens",
        type=int,
        default=0,
        help="of tensors of tokens (T, C), how many stand before the image's: the class token, "
        "which becomes a level of its own (.cls), then registers (0)",
    )
    parser.add_argument("--grid", help="rows and columns of the image's tokens; a square if not")
    parser.add_argument("--licence", default="unknown", help="of the teachers' weights (unknown)")
    parser.add_argument(
        "--samples_per_unit", type=int, default=0, help="samples of a unit; chosen by size if not"
    )
    return parser
