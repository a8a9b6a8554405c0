"""Names and texts are data: no terminal escapes, no markup, no HTML from files."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError, DataError, Problem, run_main
from dreamshard.foreign.shown import PlainStream, drawable, plain, plain_streams
from dreamshard.progress import Progress, stage

ROOT = Path(__file__).resolve().parents[4]
NASTY = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe \r gone [bold]x[/] :smile: \udcff"
SHOWN = r"\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe \x0d gone [bold]x[/] :smile: \udcff"


def test_what_acts_is_spelt_out() -> None:
    assert plain(NASTY) == SHOWN
    assert plain("a\tb\nß € 漢字 \U0001f600") == "a\tb\nß € 漢字 \U0001f600"


def test_letters_that_nobody_sees_are_spelt_out() -> None:
    hidden = "\u00ad\u200b\u200c\u200d\u2060\u2062\u3164\ufeff\ufff9\U000e0041"
    for letter in hidden:
        assert plain(f"da{letter}ta") == f"da{ascii(letter)[1:-1]}ta", ascii(letter)
    for seen in ("\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e\u0648", "e\u0301"):
        assert plain(seen) == seen, "joiners shape pictures and letters"


def test_errors_show_what_files_hold() -> None:
    assert str(DataError(f"{NASTY}: damaged")) == f"{SHOWN}: damaged"
    assert str(ConfigError(Problem("a", NASTY, "b"))) == f"a: got {SHOWN}, allowed b."
    assert "\x1b" not in str(ConfigError([NASTY, NASTY]))


def test_commands_write_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_argv: object) -> int:
        print(NASTY)  # noqa: T201
        sys.stdout.writelines([NASTY, "\n"])
        sys.stderr.write(f"{NASTY}\n")
        stage(NASTY)
        with Progress(NASTY, total=1) as progress:
            progress.update(1, level=NASTY)
        raise DataError(NASTY)

    before = sys.stdout, sys.stderr
    assert run_main(main, []) == DataError.exit_code
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n{SHOWN}\n"
    assert err.count(SHOWN) >= 4
    assert not [letter for letter in out + err if ord(letter) < 32 and letter != "\n"]


def test_streams_keep_what_they_are() -> None:
    raw = io.StringIO()
    stream = PlainStream(raw)
    assert stream.write("\r50 %\x1b[A") == 8 and raw.getvalue() == "\r50 %\\x1b[A"
    assert drawable(stream) is raw and drawable(raw) is raw  # type: ignore[arg-type]
    assert not stream.isatty()
    with plain_streams():
        outer = sys.stdout
        with plain_streams():
            assert sys.stdout is outer, "once is enough"


def test_every_console_takes_names_as_they_are() -> None:
    for package in ("dreamshard", "storage", "pipeline", "distill"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console":
                    told = ast.unparse(node)
                    plainly = "markup=False" in told or "**PLAIN" in told or "**plain" in told
                    assert plainly, f"{path}: {told}"


def test_inspect_shows_a_licence_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from storage.verbs.commands import _console

    with plain_streams():
        from rich.table import Table

        table = Table(show_header=False, box=None)
        table.add_row("licence", "CC-BY-4.0 [see LICENSE] [/x] :smile:")
        _console().print(table)
        _console().print(f"{tmp_path}/data[v2]/\x1b[2J")
    out = capsys.readouterr().out
    assert "CC-BY-4.0 [see LICENSE] [/x] :smile:" in out
    assert "data[v2]/\\x1b[2J" in out and "\x1b" not in out


def test_model_cards_have_no_html_of_a_licence() -> None:
    from distill.students.card import StudentCard
    from distill.students.model_card import model_card

    card = StudentCard(
        student={"name": "resnet10t", "mean": [0.5] * 3, "std": [0.5] * 3},
        strides=[4],
        channels=[8],
        levels=["s4"],
        image_size=[32, 32],
        seed=0,
        provenance={"licence": "x\n<script>alert(1)</script>: [a", "dataset": "<img src=x>"},
        metrics={"<b>loss</b>": 1.0},
    )
    text = model_card(card)
    assert "<script>" not in text.split("---", 2)[2] and "<img" not in text and "<b>" not in text
    import yaml

    header = yaml.safe_load(text.split("---")[1])
    assert header["license_name"] == "x <script>alert(1)</script>: [a"
