"""The commands `dreamshard gc`, `pin` and `drop`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamshard.errors import ConfigError, Problem
from storage.catalog import find_dataset
from storage.ledger import holds
from storage.verbs import collect
from storage.verbs.as_json import planned
from storage.verbs.commands import format_bytes, print_json, verb_parser


def gc(argv: Sequence[str]) -> int:
    """List what may go under a root, or remove it; exit code 0."""
    parser = verb_parser(
        "gc",
        "List what may be removed under a folder of datasets: what dead runs left, files of units "
        "that are not done, and datasets by the rules given. Nothing is removed without --yes; "
        "pinned datasets, those somebody reads and those a run is at work on stay.",
        told=True,
    )
    parser.add_argument("root", help="folder of datasets, a path or URL")
    parser.add_argument(
        "--keep-latest", type=int, metavar="N", help="of datasets of one name keep the N latest"
    )
    parser.add_argument(
        "--superseded", action="store_true", help="datasets that another one here has all of"
    )
    parser.add_argument(
        "--remove", action="append", default=[], metavar="NAME", help="a dataset by name or folder"
    )
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    options = parser.parse_args(argv)
    garbage = collect.plan(
        options.root,
        keep_latest=options.keep_latest,
        superseded=options.superseded,
        remove=options.remove,
    )
    if options.json:
        print_json(planned(options.root, garbage, _removed(garbage) if options.yes else None))
        return 0
    for item in garbage:
        size = "" if item.bytes < 0 else f", {format_bytes(item.bytes)}"
        print(f"{item.kind}: {item.url}: {item.reason}{size}")
    if not garbage:
        print(f"{options.root}: nothing to remove.")
    elif options.yes:
        _remove(garbage)
    else:
        print(f"about {_total(garbage)} in all; nothing was removed. Add --yes to remove it.")
    return 0


def _removed(garbage: Sequence[collect.Garbage]) -> list[int]:
    return [collect.remove(item) for item in garbage]


def _remove(garbage: Sequence[collect.Garbage]) -> None:
    removed, gone = _removed(garbage), []
    for item, files in zip(garbage, removed, strict=True):
        if files:
            gone.append(item)
        else:
            print(f"stays: {item.url}: it was taken up, opened, pinned or removed meanwhile")
    print(f"removed {sum(removed):,} files, about {_total(gone)}.")


def _total(garbage: Sequence[collect.Garbage]) -> str:
    return format_bytes(sum(max(0, item.bytes) for item in garbage))


def pin(argv: Sequence[str]) -> int:
    """Keep a dataset from `gc`, or stop to; exit code 0, 3 if it is not there."""
    parser = verb_parser("pin", "Keep a dataset from being removed by `dreamshard gc`.")
    parser.add_argument("dataset", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument("--name", default="kept", help="name of the pin (default: kept)")
    parser.add_argument("--reason", default="", help="why, for the record")
    parser.add_argument("--remove", action="store_true", help="take the pin off")
    options = parser.parse_args(argv)
    dataset = find_dataset(options.dataset)
    if options.remove:
        was = holds.unpin(dataset.files, name=options.name)
        print(f"{dataset.url}: {'taken off' if was else 'there was no such pin'}.")
    else:
        holds.pin(dataset.files, name=options.name, reason=options.reason)
    left = ", ".join(holds.pins(dataset.files))
    print(f"{dataset.url}: {f'pinned ({left})' if left else 'not pinned'}.")
    return 0


def drop(argv: Sequence[str]) -> int:
    """Take samples out of a dataset's later snapshots; exit code 0, 3 if a key is no sample's."""
    parser = verb_parser(
        "drop",
        "Take samples out of a dataset: readers skip them from now on. Their rows stay in the "
        "files; runs that pinned an earlier snapshot still see them.",
    )
    parser.add_argument("dataset", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="the source's name of a sample")
    parser.add_argument("--from-file", metavar="FILE", help="file with one key per line")
    parser.add_argument("--reason", required=True, help="why, for the record")
    options = parser.parse_args(argv)
    keys = [*options.keys, *_lines(options.from_file)]
    if not keys:
        raise ConfigError(Problem("keys", "none", "one or more, or --from-file FILE"))
    if not options.reason.strip():
        raise ConfigError(Problem("--reason", repr(options.reason), "a text, for the record"))
    dataset = find_dataset(options.dataset)
    count = dataset.drop(keys, reason=options.reason)
    print(f"{dataset.url}: dropped {count:,} samples that had not been before.")
    return 0


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("--from-file", f"{path} ({error})", "a text file")) from None
    return [line for line in text.splitlines() if line]
