"""The command `dreamshard inspect teacher PATH`: what a network can record, and what it costs.

With `--choose` it is read at every candidate tap and timestep, and the best place is told. With
`--measure` its features are probed, its reconstructions and samples judged. With
`--samples N` it is run, too: each level's ten strongest channels, and a contact sheet of
samples (or of images given) with every map's principal components as colours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dreamshard.config.yaml12 import parse_yaml
from dreamshard.errors import ConfigError, Problem
from dreamshard.pictures import picture_path, write_picture
from dreamshard.progress import begin
from pipeline.teachers.base import Scalar, guesses
from pipeline.teachers.diffusion.checkpoints import kind_of
from pipeline.teachers.inspecting import choosing, look
from pipeline.teachers.inspecting.tap_table import TapRow, format_table, tap_table
from pipeline.teachers.load import teacher_class
from pipeline.teachers.recording.taps import DEPTHS
from pipeline.teachers.recording.teacher import NetworkDescription
from storage.schema import FeatureBatch

Encode = Callable[..., Iterable[FeatureBatch]]
"""(teacher, images=path, count=n) -> batches of what it makes of images."""
Read = Callable[[str, int, tuple[int, int]], tuple[np.ndarray, np.ndarray | None]]
"""(path, count, (H, W)) -> images uint8 (N, H, W, 3), and their classes int64 (N,) or None."""
Measure = Callable[..., tuple[str, Callable[[Path], None] | None]]
"""What `measure_teacher` of `pipeline.request` is called with -> what to say, and what writes a
sheet, where there is one."""
MAX_SAMPLES = 4096
SOME = 384
"""Images that --choose and --measure look at where no --samples says how many (count)."""
SHEET = "teacher-sheet.png"
EXAMPLE = "dreamshard inspect teacher model.pt --image_size 64 --num_heads 4"


def main(
    argv: Sequence[str],
    *,
    encode: Encode | None = None,
    read: Read | None = None,
    measure: Measure | None = None,
) -> int:
    """Print a teacher's table of taps; exit code 0.

    Args:
        encode: gives a teacher a count of images of a path, or of the digits where it is empty.
        read: reads images of a path with their classes, drawn at random.
        measure: judges a teacher by such images.

    Raises:
        ConfigError, TeacherError: as when the teacher is loaded.
    """
    options, rest = _parser().parse_known_args(list(argv))
    settings = _settings(rest)
    size = _size(options.image_size)
    picture_path(_sheet(options), key="sheet")
    if options.choose:
        choosing.check(options.path, kind=options.kind, images=options.images)
    if options.measure and not options.images:
        hint = "Such as --images FOLDER, a Parquet file, or digits; labels are used if it has them."
        raise ConfigError(Problem("images", "nothing", "images to look at, with --measure", hint))
    begin(f"inspect teacher: reading {options.path}")
    description, rows = tap_table(
        options.path,
        kind=options.kind,
        part=options.part,
        settings=settings,
        image_size=size,
        costs=not options.no_costs,
    )
    chosen = _choose(rows, options.levels)
    print(_head(options.path, description))
    print(format_table(chosen))
    if not options.no_costs and rows:
        total = next((row.gflops / row.cost for row in rows if row.gflops and row.cost), 0.0)
        print(
            f"cost: share of one forward pass ({total:,.3g} GFLOP per image) run to reach the tap"
        )
    depths = [name for name in description.aliases if name in DEPTHS]
    if depths:
        print(f"aliases by depth: {', '.join(depths)}")
    return _act(options, settings, size, description, encode=encode, read=read, measure=measure)


def _act(
    options: argparse.Namespace,
    settings: dict[str, Scalar],
    size: tuple[int, int] | None,
    description: NetworkDescription,
    *,
    encode: Encode | None,
    read: Read | None,
    measure: Measure | None,
) -> int:
    """Run the teacher, if that is asked for; exit code 0."""
    if options.choose:
        assert read is not None, "given by whoever offers --choose"
        images, labels = read(options.images, options.samples or SOME, description.image_size)
        told = choosing.choose(
            options.path, description, images, labels, levels=options.levels,
            timesteps=options.timesteps, settings=settings, image_size=size,
        )  # fmt: skip
        print(told)
    elif options.measure:
        assert read is not None and measure is not None, "given by whoever offers --measure"
        images, labels = read(options.images, options.samples or SOME, description.image_size)
        _measure(options, settings, size, description, partial(measure, images, labels))
    elif options.samples:
        options.levels = options.levels or _usual(description)
        _show_samples(options, settings, size, encode)
    elif options.sheet is not None or options.images:
        hint = "Such as --samples 8."
        raise ConfigError(Problem("samples", "0", "a count, with --sheet or --images", hint))
    return 0


def _measure(
    options: argparse.Namespace,
    settings: dict[str, Scalar],
    size: tuple[int, int] | None,
    known: NetworkDescription,
    measure: Measure,
) -> None:
    """Print what was measured, and write a sheet where there is one."""
    told, write = measure(
        options.path,
        kind=options.kind or kind_of(Path(options.path)),
        part=options.part,
        levels=options.levels or (_usual(known) if known.aliases else None),
        timesteps=options.timesteps,
        settings=settings,
        image_size=size,
        taps=[tap.name for tap in known.taps],
        extractor=options.extractor,
    )
    print(told)
    if write is not None:
        write(Path(sheet := _sheet(options)))
        print(f"images and their reconstructions: {sheet}")


def _usual(known: NetworkDescription) -> list[str]:
    """Return the taps that aliases stand for, and the half-way block of a transformer as it is."""
    taps = dict.fromkeys(known.aliases.values())
    half = known.aliases.get("d50", "").removesuffix(".norm")
    names = {tap.name for tap in known.taps}
    return [*taps, *([half] if half in names and half not in taps else [])]


def _show_samples(
    options: argparse.Namespace,
    settings: dict[str, Scalar],
    size: tuple[int, int] | None,
    encode: Encode | None,
) -> None:
    """Print each level's strongest channels and write the contact sheet."""
    kind = options.kind or kind_of(Path(options.path))
    modes = teacher_class(kind, part=options.part).modes
    if options.images and "encode" not in modes:
        hint = "Leave --images out: it draws its own."
        raise ConfigError(Problem("images", options.images, f"none, as {kind} looks at none", hint))
    looks = None
    if encode is not None and (options.images or "synthesize" not in modes):
        looks = partial(encode, images=options.images, count=options.samples)
    seen = look.look(
        options.path,
        kind=kind,
        part=options.part,
        levels=options.levels,
        settings=settings,
        image_size=size,
        samples=options.samples,
        timesteps=options.timesteps,
        encode=looks,
    )
    print(look.format_energies(look.energies(seen)))
    write_picture(look.contact_sheet(seen), Path(sheet := _sheet(options)), key="sheet")
    print(f"contact sheet: {sheet}")


def _sheet(options: argparse.Namespace) -> str:
    return SHEET if options.sheet is None else options.sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamshard inspect teacher",
        description="Show what a diffusion teacher or a generator can record: taps, channels, map "
        "sizes, strides, cost.",
        epilog=f"Further settings of the teacher are given by name: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("path", help="folder of save_pretrained, or a checkpoint file")
    parser.add_argument("--kind", default="", help="as teacher.kind; else told from the path")
    parser.add_argument("--part", default="", help="generator | discriminator | encoder")
    parser.add_argument("--image_size", help="pixels, one number or HEIGHTxWIDTH")
    parser.add_argument("--levels", nargs="+", help="show these taps or aliases only")
    parser.add_argument("--no_costs", action="store_true", help="do not read the weights")
    parser.add_argument(
        "--samples", type=_count, default=0, help="run this many samples: strongest channels, sheet"
    )
    parser.add_argument(
        "--choose", action="store_true", help="find the best tap and timestep; needs --images"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="probe its features, judge its samples; needs --images",
    )
    parser.add_argument(
        "--extractor", default="pixels", help="of distances, as pretrain's distance_extractor"
    )
    parser.add_argument("--images", default="", help="look at these: folder, tar, Parquet or URL")
    parser.add_argument("--timesteps", nargs="+", type=_count, help="of a diffusion teacher")
    parser.add_argument("--sheet", help=f"where the contact sheet goes, a PNG file ({SHEET})")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _settings(words: Sequence[str]) -> dict[str, Scalar]:
    """Turn `--name value` pairs into settings."""
    settings: dict[str, Scalar] = {}
    for name, value in zip(words[::2], [*words[1::2], None], strict=False):
        if not name.startswith("--") or value is None or value.startswith("--"):
            raise ConfigError(Problem("settings", " ".join(words), "--name value pairs", EXAMPLE))
        key = name.removeprefix("--").removeprefix("settings.")
        # Lists such as channel_mult stay text, as in the official command lines.
        settings[key] = value if "," in value else parse_yaml(value)
    return settings


def _count(text: str) -> int:
    """Read a whole number; argparse words the refusal."""
    if not text.isdigit() or int(text) > MAX_SAMPLES:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed a count of 0..{MAX_SAMPLES}")
    return int(text)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise ConfigError(Problem("image_size", text, "pixels, such as 256 or 128x256"))
    return int(parts[0]), int(parts[-1])


def _choose(rows: list[TapRow], levels: Sequence[str] | None) -> list[TapRow]:
    if levels is None:
        return rows
    known = {name: row for row in rows for name in (row.name, *row.aliases)}
    missing = [level for level in levels if level not in known]
    if missing:
        raise ConfigError(Problem("levels", ", ".join(missing), ", ".join(known)))
    return [known[level] for level in levels]


def _head(path: str, known: NetworkDescription) -> str:
    height, width = known.image_size
    brief, *lines = known.summary()
    if known.classes:
        lines.insert(0, f"class-conditional: {known.classes} classes (settings.class_label)")
    first = f"{path}: {known.family}, {height}x{width} pixels, {brief}, licence {known.licence}"
    return "\n".join([first, *lines, *known.notes, *guesses(known.flags)])
