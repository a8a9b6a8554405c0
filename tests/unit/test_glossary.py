"""The glossary points at files that exist, and every term once."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "glossary.md"
ROWS = re.findall(r"^\| (?!term|-)(.+?) \| (.+?) \| (.+?) \|", PAGE.read_text("utf-8"), re.M)


def test_every_file_it_names_exists() -> None:
    assert len(ROWS) > 30
    for term, _, cell in ROWS:
        link = re.fullmatch(r"\[(.+)\]\(\.\./(.+)\)", cell)
        assert link and link[1] == link[2], f"{term}: one link to one file"
        assert (PAGE.parents[1] / link[1]).is_file(), f"{term}: {link[1]} has moved"


def test_every_term_stands_once() -> None:
    terms = [term for term, *_ in ROWS]
    assert len(set(terms)) == len(terms)
