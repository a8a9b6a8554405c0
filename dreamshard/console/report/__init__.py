"""`dreamshard report FOLDER...`: one HTML page about a demo, a run, a dataset, or several runs.

Reading order: runs (what run folders keep) and material (what belongs together), then the sections:
evaluation (every task), looks (pictures), learning (losses, few labels, time) and facts (disk,
commands), or compare (several runs side by side); svg draws, page renders.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.errors import DataError, DreamshardError
from dreamshard.owner.urls import local_folder
from dreamshard.progress import begin

if TYPE_CHECKING:
    from dreamshard.console.report.material import Material
    from dreamshard.console.report.page import Section, Tile

DAMAGE = (
    *(DreamshardError, OSError, LookupError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, RecursionError),
)
"""What reading a run's or a dataset's files can end in; a page shows the rest."""


def main(argv: Sequence[str]) -> int:
    """Run the command; see `dreamshard report --help`."""
    parser = argparse.ArgumentParser(
        prog="dreamshard report",
        description="Write one HTML page about a demo, a run or a dataset, or about several runs "
        "side by side; it needs no other file.",
    )
    parser.add_argument(
        "folder", type=Path, nargs="+", help="folder of a demo, of a run or of a dataset"
    )
    parser.add_argument(
        "--out",
        type=local_folder,
        help="the page to write (FOLDER/report.html; of several, comparison.html where they lie)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    begin(f"report: reading {', '.join(map(str, options.folder))}")
    path = write_report(*options.folder, out=options.out)
    sys.stdout.write(f"report: {path} ({path.stat().st_size / 1e6:.2f} MB)\n")
    return 0


def write_report(first: Path, *others: Path, out: Path | None = None) -> Path:
    """Write the page about a folder, or about several side by side.

    Args:
        first: folder of a demo, of a run or of a dataset.
        others: of what is compared with it.
        out: the page; None for report.html in the folder, or for comparison.html in the folder
            that holds all of them.

    Returns:
        The page's path.

    Raises:
        DataError: there is nothing to report in a folder.
        DreamshardError: the page cannot be written, or a package for pictures is not installed.
    """
    from dreamshard.runfolder import write_text

    folders = (first, *others)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: got no such folder. `dreamshard demo` makes one to report.")
    path = out or _usual_place(folders)
    try:
        html = build(*folders)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "matplotlib", "PIL"):
            raise
        raise DreamshardError(
            f"report: {error.name} is not installed. Run `pip install dreamshard`."
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    except OSError as error:
        raise DreamshardError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another with --out."
        ) from error
    return path


def _usual_place(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / "report.html"
    shared = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return (shared if shared not in folders else shared.parent) / "comparison.html"


def build(first: Path, *others: Path) -> str:
    """Return the page about a folder, or about several side by side, as HTML text."""
    from dreamshard.console.report.compare import comparison
    from dreamshard.console.report.facts import stamp
    from dreamshard.console.report.material import gather
    from dreamshard.console.report.page import Page, render

    now = time.strftime("%Y-%m-%d %H:%M")
    if others:
        compared = [gather(folder) for folder in (first, *others)]
        title = f"dreamshard: {len(compared)} runs side by side"
        sections = [_guarded(make, compared) for make in comparison()]
        page = Page(title=title, subtitle=now, sections=[s for part in sections for s in part])
        return render(page)
    material = gather(first)
    sections = [_guarded(make, material) for make in _makers()]
    page = Page(
        title=f"dreamshard: {first.resolve().name}",
        subtitle=f"{now} · {stamp(material)}",
        tiles=_tiles(material),
        sections=[section for part in sections for section in part],
    )
    return render(page)


def _makers() -> list[Callable[[Material], Section | list[Section] | None]]:
    from dreamshard.console.report import evaluation, facts, learning, looks

    return [
        learning.probe,
        evaluation.tasks,
        looks.inputs,
        looks.samples,
        looks.features,
        facts.statistics,
        learning.losses,
        learning.throughput,
        facts.made,
        facts.following,
        facts.again,
    ]


def _tiles(material: Material) -> list[Tile]:
    """Choose headline numbers; none where the section that tells more says what is damaged."""
    from dreamshard.console.report import evaluation, facts

    try:
        return [
            *facts.few_label_tiles(material),
            *evaluation.tiles(material),
            *facts.tiles(material),
        ]
    except DAMAGE:
        return []


def _guarded(make: Callable[[Any], Section | list[Section] | None], given: object) -> list[Section]:
    """Make sections, none if they do not belong; of damaged data, one that says so."""
    from dreamshard.console.report.page import Section

    try:
        made = make(given)
    except DAMAGE as error:
        name, why = make.__name__, str(error)
        if not isinstance(error, (DreamshardError, OSError)):
            why = f"its records are not as this version writes them ({error!r})"
        return [Section(name=name, title=name.capitalize(), error=why)]
    return made if isinstance(made, list) else [made] if made else []
