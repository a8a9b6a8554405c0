"""`dreamshard report FOLDER`: one HTML page that shows what a demo, a run or a dataset is.

Reading order: runs (what run folders keep) and material (what belongs together), then the sections:
looks (pictures), learning (losses, probe, time) and facts (disk, commands); page renders them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreamshard.errors import DataError, DreamshardError

if TYPE_CHECKING:
    from dreamshard.console.report.material import Material
    from dreamshard.console.report.page import Section


def main(argv: Sequence[str]) -> int:
    """Run the command; see `dreamshard report --help`."""
    parser = argparse.ArgumentParser(
        prog="dreamshard report",
        description="Write one HTML page about a demo, a run or a dataset; it needs no other file.",
    )
    parser.add_argument("folder", type=Path, help="folder of a demo, of a run or of a dataset")
    parser.add_argument("--out", type=Path, help="the page to write (FOLDER/report.html)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    path = write_report(options.folder, out=options.out)
    sys.stdout.write(f"report: {path} ({path.stat().st_size / 1e6:.2f} MB)\n")
    return 0


def write_report(folder: Path, *, out: Path | None = None) -> Path:
    """Write the page about a folder.

    Args:
        folder: of a demo, of a run or of a dataset.
        out: the page; None for report.html in the folder.

    Returns:
        The page's path.

    Raises:
        DataError: there is nothing to report in the folder.
        DreamshardError: the page cannot be written, or a package for pictures is not installed.
    """
    from dreamshard.runfolder import write_text

    if not folder.is_dir():
        raise DataError(f"{folder}: got no such folder. `dreamshard demo` makes one to report.")
    path = out or folder / "report.html"
    try:
        html = build(folder)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "matplotlib", "PIL"):
            raise
        raise DreamshardError(
            f"report: {error.name} is not installed. Run `pip install 'dreamshard[report]'`."
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    except OSError as error:
        raise DreamshardError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another with --out."
        ) from error
    return path


def build(folder: Path) -> str:
    """Return the page about a folder as HTML text."""
    from dreamshard.console.report import facts, learning, looks
    from dreamshard.console.report.material import gather
    from dreamshard.console.report.page import Page, render

    material = gather(folder)
    sections: list[Callable[[Material], Section]] = [
        learning.probe,
        looks.inputs,
        looks.samples,
        looks.features,
        learning.losses,
        learning.throughput,
        facts.made,
        facts.again,
    ]
    page = Page(
        title=f"dreamshard: {folder.resolve().name}",
        subtitle=f"{time.strftime('%Y-%m-%d %H:%M')} · {facts.stamp(material)}",
        tiles=facts.tiles(material),
        sections=[_guarded(make, material) for make in sections],
    )
    return render(page)


def _guarded(make: Callable[[Material], Section], material: Material) -> Section:
    """Make a section; if its data is damaged, make one that says so instead."""
    from dreamshard.console.report.page import Missing, Section

    try:
        return make(material)
    except (DreamshardError, OSError) as error:
        name = make.__name__
        return Section(name=name, title=name.capitalize(), missing=Missing(str(error)))
