"""Commands of README and documentation are ones that the product takes; links lead somewhere."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dreamshard.console.cli import VERBS, load_verb
from dreamshard.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "AGENTS.md",
        ROOT / "skills/dreamshard/SKILL.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
CONFIGURED = {
    "pretrain", "clean", "interpret", "encode", "synthesize", "serve", "train", "evaluate",
    "publish", "plan",
}  # fmt: skip
"""Verbs that take `--print_config`."""


def commands() -> list[tuple[str, str]]:
    """Return (page, command) of every line that begins with `dreamshard`."""
    found = []
    for page in PAGES:
        if not page.exists():
            continue
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text("utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|;|\|", line.partition(" #")[0].removeprefix("$ ")):
                    if part.strip().startswith("dreamshard "):
                        found.append((page.relative_to(ROOT).as_posix(), part.strip()))
    return found


class Parsed(Exception):
    """Stand for all that a command would do once its words are parsed."""


def parses(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Tell whether a verb that argparse reads takes some words; nothing of it is done."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: list[str] | None = None, *_: object) -> None:
        parse(self, args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    words = words[: words.index(">")] if ">" in words else words
    try:
        load_verb(verb)(words)
    except Parsed:
        return True
    except SystemExit:
        return False
    except ConfigError as error:  # what it is told of is not there
        return not unknown_keys(error)
    raise AssertionError(f"{verb} does without argparse: name it in CONFIGURED")


def unknown_keys(error: ConfigError) -> list[object]:
    return [p for p in error.problems if "unknown" in f"{p.got} {p.allowed}".lower()]


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_known_to_the_last_setting(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if word != "&"][1:]
    verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
    assert verb in VERBS, f"{page}: {command}"
    rest = words[len(verb.split()) :]
    if verb not in CONFIGURED or (verb == "publish" and not rest[0].startswith("-")):
        monkeypatch.chdir(tmp_path)  # where nothing is that a command could go on with
        assert parses(verb, rest, monkeypatch), f"{page}: {command}"
        return
    # What a run of one's own would have written is not there; its keys are ours all the same.
    for place, word in enumerate(rest):
        if word == "--config" and not (ROOT / rest[place + 1]).exists():
            rest[place : place + 2] = []
            break
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            load_verb(verb)([*rest, "--print_config"])
        except SystemExit as left:
            assert left.code == 0
        except ConfigError as error:
            assert not unknown_keys(error), f"{page}: {command}\n{error}"


def test_links_lead_somewhere() -> None:
    lost = []
    for page in filter(Path.exists, PAGES):
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
            if target.startswith(("http:", "https:", "mailto:")) or "reference/" in target:
                continue  # reference pages are made while the site is built, which is strict
            there = page.parent / target if target else page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                lost.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert not lost


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\s-]", "", t.lower()).strip().replace(" ", "-") for t in titles}


def test_what_is_read_first_is_short() -> None:
    for name, most in (("README.md", 120), ("AGENTS.md", 150), ("skills/dreamshard/SKILL.md", 150)):
        assert (ROOT / name).read_text("utf-8").count("\n") <= most


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed ([docs])")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/site/mkdocs.yml",
         "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for verb in VERBS:
        page = tmp_path / "site" / "reference" / f"{verb.replace(' ', '-')}.html"
        assert f"dreamshard {verb}" in page.read_text("utf-8")
    # Nothing is fetched when it is looked at.
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text()
        )
        assert not loaded, page
