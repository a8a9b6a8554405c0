import io
import re

import pytest
from rich.console import Console

from dreamshard import progress
from dreamshard.progress import Progress, format_duration, is_interactive, stage


class Clock:
    """A clock that moves only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_have_total_rate_and_eta(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("encode", total=1000) as bar:
        for _ in range(8):
            clock.now += 1.0
            bar.update(50, loss=0.123456, state="fine")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "encode: 0/1,000 img (0 %), 0 img/s, ETA unknown",
        "encode: 250/1,000 img (25 %), 50 img/s, ETA 0:00:15, loss 0.1235, state fine",
        "encode: 400/1,000 img (40 %), 50 img/s, in 0:00:08, loss 0.1235, state fine",
    ]


def test_work_done_before_counts_for_the_share_not_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train", total=200, unit="step", initial=100) as bar:
        clock.now += 10.0
        bar.update(50)
        assert bar.rate == 5.0
    assert "train: 150/200 step (75 %), 5 step/s, ETA 0:00:10" in capsys.readouterr().err


def test_the_rate_follows_a_change(clock: Clock) -> None:
    with Progress("encode", total=10**6, quiet=True) as bar:
        for _ in range(60):
            clock.now += 1.0
            bar.update(100)
        assert bar.rate == pytest.approx(100)
        for _ in range(60):
            clock.now += 1.0
            bar.update(10)
        assert bar.rate == pytest.approx(10)


def test_an_error_says_stopped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"), Progress("encode", total=2) as bar:
        clock.now += 61.0
        bar.update()
        raise ValueError("boom")
    assert capsys.readouterr().err.endswith(
        "1/2 img (50 %), 0.01639 img/s, stopped after 0:01:01\n"
    )


def test_quiet_and_empty_work(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode", total=5, quiet=True) as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
    with Progress("encode", total=0):
        pass
    assert "0/0 img (100 %)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", True)],
)
def test_who_gets_a_live_bar(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert is_interactive() is expected
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert is_interactive() is False


def test_a_terminal_gets_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True))
    stage("[1/5] pretrain")
    with Progress("pretrain", total=10, unit="step") as bar:
        bar.update(10, loss=0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "[1/5] pretrain" in text
    assert "10/10 step (100 %)" in text and "loss 0.5" in text


def test_stage_and_durations(capsys: pytest.CaptureFixture[str]) -> None:
    stage("[2/5] encode")
    assert capsys.readouterr().err == "[2/5] encode\n"
    assert [format_duration(s) for s in (0.4, 59.6, 3600, 360000)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "100:00:00",
    ]


FIGURES = ["992/1,920 img (52 %)", "101.9 img/s", "ETA 0:00:09", "loss 0.9636", "mse 0.7442"]


def test_figures_that_do_not_fit_are_left_out_from_the_end() -> None:
    assert progress.fit(FIGURES, width=200) == ", ".join(FIGURES)
    assert progress.fit(FIGURES, width=60) == ", ".join(FIGURES[:4])
    assert progress.fit(FIGURES, width=5) == FIGURES[0]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_bar_with_its_label_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "_terminal", lambda: console)
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    with Progress("train", total=1920) as bar:
        bar.update(992, loss=0.9636, mse=0.7442, at=0.312, grad_norm=1.234, wait="0.1 %")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n")
    last = [line for line in lines.splitlines() if line.strip()][-1]
    assert last.startswith("train ━") and "…" not in last and len(last.rstrip()) <= width
    assert "992/1,920 img (52 %)" in last and "loss 0.9636" in last


def test_the_first_line_is_of_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.begin("train: one")
    monkeypatch.setenv("RANK", "1")
    progress.begin("train: two")
    assert capsys.readouterr().err == "train: one\n"


def test_what_is_on_its_way_is_shown_and_taken_back(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("encode", total=100) as bar:
        clock.now += 5.0
        bar.underway(30)
        clock.now += 5.0
        bar.underway(10)  # one unit failed
        clock.now += 5.0
        bar.update(20)
        bar.underway(500)
        assert (bar.done, bar.ahead) == (20, 80)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("encode: 30/100 img (30 %), 6 img/s, ETA 0:00:12")
    assert lines[2].startswith("encode: 10/100 img (10 %)")
    assert lines[-1].startswith("encode: 20/100 img (20 %)")
