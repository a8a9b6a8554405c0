"""`dreamshard verify DATASET --source RECIPE`: compare samples with the bytes of their source."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dreamshard.config import load_config
from dreamshard.errors import DataError
from dreamshard.progress import Progress
from pipeline.request.config import EncodeConfig
from storage.catalog import find_dataset

MAX_LINES = 20


def main(argv: Sequence[str]) -> int:
    """Compare a dataset with its source; exit code 0 if all is the same, 3 if not.

    Raises:
        ConfigError: the recipe, or the source that it names.
        DataError: no such dataset.
    """
    options = _parser().parse_args(argv)
    config = load_config(
        EncodeConfig, ["--config", options.source], prog="dreamshard verify", description=""
    )
    from pipeline.images.inputs import ImageInput, Input
    from pipeline.images.source import LATENTS, open_source
    from pipeline.images.stored import open_stored
    from pipeline.request.same_source import full_check

    dataset = find_dataset(options.dataset)
    source: Input
    if config.source.kind == LATENTS:
        source = open_stored(config.source.path)
    else:
        source = ImageInput(
            open_source(config.source), config=config.image, image_size=dataset.image_size, seed=0
        )
    available = source.num_samples or 0
    if dataset.snapshot().num_samples > available:
        raise DataError(
            f"{options.source}: got a source of {available:,} samples, allowed one of "
            f"{dataset.snapshot().num_samples:,} or more, as {dataset.url} holds. Name the recipe "
            "that it was made with."
        )
    with Progress("verify source", total=dataset.snapshot().num_samples) as progress:
        result = full_check(dataset, source, progress=progress.update)
    sys.stdout.write(f"{dataset.url}: {result}\n")
    for number, key in list(result.different.items())[:MAX_LINES]:
        sys.stdout.write(f"  sample {number} ({key}): the source holds other bytes now\n")
    if not result.different:
        return 0
    units = ", ".join(map(str, sorted(result.units)[:MAX_LINES]))
    sys.stdout.write(f"{len(result.different):,} samples differ, in units {units}\n")
    if options.repair:
        for unit in sorted(result.units):
            dataset.invalidate(unit, reason="its source changed")
        dataset.roll_up(final=True)
        sys.stdout.write("withdrawn: encode again, and these units are made anew\n")
    else:
        sys.stdout.write("with --repair their units are withdrawn, and made anew by encode\n")
    return DataError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamshard verify",
        description="Compare every sample of a dataset with the bytes that its source holds now.",
    )
    parser.add_argument("dataset", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument(
        "--source",
        required=True,
        metavar="RECIPE",
        help="the YAML file it was encoded with; its sections source and image are read",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="withdraw the units of changed images, so that encoding again makes them anew",
    )
    return parser
