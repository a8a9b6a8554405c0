"""The commands `dreamshard ls`, `inspect` and `verify`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.pictures import picture_path, write_picture
from dreamshard.progress import Progress
from storage.catalog import find_dataset
from storage.dataset import Dataset
from storage.ledger import requests
from storage.snapshot import Snapshot
from storage.verbs.as_json import SCHEMA, inspected, listed, strict, verified
from storage.verbs.findings import Report
from storage.verbs.inspect import Summary, describe, summarize
from storage.verbs.statistics import (
    STATISTICS_SAMPLES,
    LevelStatistics,
    contact_sheet,
    level_statistics,
    spread,
)
from storage.verbs.verify import repair, verify_dataset

DAMAGED = DataError.exit_code
_MAX_LINES = 20


def ls(argv: Sequence[str]) -> int:
    """List the feature datasets under a root; exit code 0, 3 if there is no such root."""
    parser = verb_parser("ls", "List the feature datasets under a folder.", told=True)
    parser.add_argument("root", help="folder of datasets, a path or file:// URL")
    options = parser.parse_args(argv)
    entries = list(listed(options.root))
    if options.json:
        print_json({"schema": SCHEMA, "root": options.root, "datasets": entries})
        return 0
    if not entries:
        print(
            f"{options.root}: no datasets yet. `dreamshard encode` and `dreamshard synthesize` "
            "make them."
        )
        return 0
    table = Table("dataset", "samples", "units", "size", "levels", "state", box=None)
    for entry in entries:
        if "error" in entry:
            state = "damaged" if entry["state"] == "damaged" else "cannot be read"
            table.add_row(entry["name"], "", "", "", "", f"{state}: see `dreamshard inspect`")
            continue
        table.add_row(
            entry["name"],
            f"{entry['samples']:,}",
            f"{entry['units']:,}",
            format_bytes(entry["bytes"]),
            ", ".join(entry["levels"]),
            _state(entry),
        )
    _console().print(table)
    return 0


def inspect(argv: Sequence[str]) -> int:
    """Show what a feature dataset holds; exit code 0, 3 if it is damaged or not there."""
    parser = verb_parser("inspect", "Show what a feature dataset holds.", told=True)
    parser.add_argument("dataset", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument(
        "--samples",
        type=int,
        default=STATISTICS_SAMPLES,
        help="samples to look at for the levels' statistics; 0 for none (%(default)s)",
    )
    parser.add_argument(
        "--sheet",
        metavar="PNG",
        help="write a picture: images and maps as colours",
    )
    options = parser.parse_args(argv)
    sheet = None if options.sheet is None else picture_path(options.sheet, key="--sheet")
    if options.samples < 0:
        raise ConfigError(Problem("--samples", str(options.samples), "a count; 0 for none"))
    dataset = find_dataset(options.dataset)
    summary = summarize(dataset)
    if options.json:
        snapshot = dataset.snapshot()
        seen = options.samples > 0 and snapshot.valid.any()
        statistics = _statistics(snapshot, options.samples) if seen else []
        print_json(inspected(dataset, summary, statistics))
    else:
        _show(dataset, summary, samples=options.samples)
    if sheet is not None:
        write_picture(contact_sheet(dataset.snapshot()), sheet, key="--sheet")
        told = sys.stderr if options.json else sys.stdout
        print(f"{sheet}: one row a sample: its image, then its maps.", file=told)
    return 0


def _show(dataset: Dataset, summary: Summary, *, samples: int) -> None:
    """Print what a dataset holds, for people."""
    console = _console()
    console.print(dataset.url)
    facts = Table(show_header=False, box=None)
    facts.add_row("samples", f"{summary.samples:,} of {summary.requested:,} requested")
    facts.add_row("invalid", f"{summary.invalid:,}")
    units = f"{summary.units:,} of {dataset.samples_per_unit:,} samples"
    facts.add_row("units", units + (f", {summary.missing:,} missing" if summary.missing else ""))
    facts.add_row("size", format_bytes(summary.stored_bytes))
    for what, value in describe(dataset):
        facts.add_row(what, value)
    console.print(facts)
    console.print(_level_table(summary))
    snapshot = dataset.snapshot()
    if samples > 0 and snapshot.valid.any():
        console.print(_statistics_table(snapshot, samples))
    for index, error in summary.errors.items():
        print(f"sample {index} is invalid: {error}")
    for unit, error in list(dataset.quarantined().items())[:_MAX_LINES]:
        print(f"unit {unit} was left out: {error}")


def verify(argv: Sequence[str]) -> int:
    """Check a dataset against its digests; exit code 0 if it is whole, 3 if it is damaged."""
    parser = verb_parser("verify", "Check a feature dataset against its digests.", told=True)
    parser.add_argument("dataset", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument("--quick", action="store_true", help="look at sizes only, not at bytes")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="withdraw damaged units, so that a rerun of the command that made the dataset makes "
        "them, and only them, again; make the manifest again from the commit records",
    )
    options = parser.parse_args(argv)
    dataset = find_dataset(options.dataset)
    requested = max(requests.ends(dataset.files), default=0)  # by name: records are checked below
    total = -(-requested // dataset.samples_per_unit)
    with Progress("verify", total=total, unit="units") as progress:
        report = verify_dataset(dataset, quick=options.quick, on_unit=lambda _: progress.update())
    if options.json:
        print_json(verified(dataset, report))
    else:
        _print_report(dataset, report)
    if not report.findings:
        return DAMAGED if report.unreadable else 0
    told = sys.stderr if options.json else sys.stdout
    if options.repair:
        units = repair(dataset, report)
        if stay := sum(finding.by_hand for finding in report.findings):
            print(f"{stay} of these no repair puts right: what to do is said above.", file=told)
        again = f"it makes {_some(units)} again."
        print(f"repaired: rerun the command that made the dataset; {again}", file=told)
    else:
        mend = f"`dreamshard verify --repair {dataset.url}`"
        print(f"{mend} marks what a rerun makes again.", file=told)
    return DAMAGED


def format_bytes(count: float) -> str:
    """Return bytes for people, such as 1.5 GB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_json(value: object) -> None:
    """Print plain values as JSON, for scripts."""
    print(json.dumps(strict(value), indent=2, allow_nan=False))


def verb_parser(verb: str, description: str, *, told: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a command, with what all of them take; `told` adds --json."""
    parser = argparse.ArgumentParser(prog=f"dreamshard {verb}", description=description)
    if told:
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


PLAIN: dict[str, Any] = {
    "highlight": False, "markup": False, "emoji": False, "color_system": None
}  # fmt: skip
"""Names are data: no markup, no emoji, no escapes."""


def _console() -> Console:
    console = Console(**PLAIN, soft_wrap=True)
    return console if console.is_terminal else Console(**PLAIN, width=200)


def _state(entry: Mapping[str, Any]) -> str:
    if entry["missing"]:
        return f"{entry['missing']:,} units to make"
    return f"whole, {entry['invalid']:,} invalid" if entry["invalid"] else "whole"


def _level_table(summary: Summary) -> Table:
    table = Table("array", "kind", "stride", "shape", "dtype", "codec", "bytes/sample", box=None)
    for facts in summary.arrays:
        shape = " x ".join(map(str, facts.shape)) or "scalar"
        ratio = f" ({facts.raw_bytes / facts.stored_bytes:.3g}x)" if facts.kind else ""
        size = f"{facts.stored_bytes:,}{ratio}"
        stride = str(facts.stride or "")
        table.add_row(facts.name, facts.kind, stride, shape, facts.dtype, facts.codec, size)
    return table


def _statistics(snapshot: Snapshot, count: int) -> list[LevelStatistics]:
    samples = spread(snapshot, count)
    total = len(samples) * len(snapshot.levels)
    with Progress("statistics", total=total, unit="samples") as progress:
        return [
            level_statistics(snapshot, level, samples, on_samples=progress.update)
            for level in snapshot.levels
        ]


def _statistics_table(snapshot: Snapshot, count: int) -> Table:
    names = ("level", "mean", "std", "min", "max", "zeros", "dead channels", "norm")
    table = Table(*names, box=None)
    levels = _statistics(snapshot, count)
    for facts in levels:
        numbers = (facts.mean, facts.std, facts.low, facts.high)
        table.add_row(
            facts.name,
            *(f"{number:.4g}" for number in numbers),
            f"{100 * facts.zeros:.3g} %",
            str(facts.dead),
            f"{facts.norm:.4g}",
        )
    samples = max((facts.samples for facts in levels), default=0)
    table.caption = f"over {samples:,} samples, evenly spread; norm: over the channels"
    return table


def _print_report(dataset: Dataset, report: Report) -> None:
    for finding in report.findings[:_MAX_LINES]:
        print(f"damaged: {finding}")
    if len(report.findings) > _MAX_LINES:
        print(f"damaged: {len(report.findings) - _MAX_LINES} more")
    for finding in report.unreadable[:_MAX_LINES]:
        print(f"not read: {finding}")
    if report.unreadable:
        print(
            f"{len(report.unreadable)} files could not be read. That is no damage, and nothing is "
            "repaired there: mend what keeps them from being read and verify again."
        )
    for note in report.notes[:_MAX_LINES]:
        print(f"note: {note}")
    if report.missing:
        print(f"note: {_some(report.missing)} requested and not made yet; a rerun makes them.")
    state = f"{len(report.findings)} problems" if report.findings else "no damage"
    state += f" in what could be read ({len(report.unreadable)} not)" * bool(report.unreadable)
    print(
        f"{dataset.url}: {report.units:,} units, {report.samples:,} samples "
        f"({report.invalid:,} invalid), {format_bytes(report.bytes)}: {state}."
    )


def _some(units: Sequence[int]) -> str:
    if len(units) == 1:
        return f"unit {units[0]}"
    listed = ", ".join(map(str, units[:10])) + (", ..." if len(units) > 10 else "")
    return f"{len(units)} units ({listed})" if units else "nothing"
