"""`dreamshard view DATASET|RUN|ROOT...`: look into datasets and runs in a browser, on this machine.

Reading order: places (what was named: datasets, runs, students), samples (rows, found and listed),
features (maps as colours, likeness, statistics, neighbours), students (their maps as levels of the
dataset they saw), feed (a run's figures while it trains), server (who may ask, and for what);
`page/` is what the browser runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dreamshard.errors import ConfigError, DreamshardError, Problem
from dreamshard.progress import begin

PORT, TRIES = 8321, 20


def main(argv: Sequence[str]) -> int:
    """Run the command until Ctrl-C; see `dreamshard view --help`."""
    options = _parser().parse_args(argv)
    if options.port is not None and not 0 <= options.port < 1 << 16:
        raise ConfigError(Problem("port", str(options.port), "0..65535; 0 for any that is free"))
    begin(f"view: looking at {', '.join(options.place)}")
    from dreamshard.console.view.places import find_places

    places = find_places(options.place)
    try:
        from dreamshard.console.view.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("aiohttp", "PIL"):
            raise
        raise DreamshardError(
            f"view: {error.name} is not installed. Run `pip install 'dreamshard[view]'`."
        ) from error

    def told(url: str) -> None:
        sys.stdout.write(f"view: {places.told()}\n{url}\nCtrl-C ends it.\n")
        sys.stdout.flush()
        if options.open:
            import webbrowser

            webbrowser.open(url)

    ports = [options.port] if options.port is not None else range(PORT, PORT + TRIES)
    serve(places, ports=ports, on_ready=told)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamshard view",
        description="Look into datasets and runs in a browser on this machine. Nothing is written, "
        "and no other machine can ask.",
    )
    parser.add_argument(
        "place",
        nargs="+",
        help="a dataset (folder or URL), a run's folder, or a folder of either",
    )
    parser.add_argument(
        "--port", type=int, help=f"port on the loopback interface ({PORT}, or the next free one)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in your browser")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser
