"""What MkDocs asks while it builds: reference made from the code, links into the checkout."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")


def help_of(verb: str) -> str:
    """Return what `dreamshard VERB --help all` prints, 80 columns wide."""
    from dreamshard.console.cli import load_verb

    os.environ["COLUMNS"] = "80"
    said = io.StringIO()
    words = sys.argv
    sys.argv = ["dreamshard", *verb.split()]
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            load_verb(verb)(["--help", "all"])
    finally:
        sys.argv = words
    return said.getvalue().strip()


def reference() -> dict[str, str]:
    """Return the generated pages, path -> Markdown: a page for every verb, and their list."""
    from dreamshard.console.cli import VERBS, usage

    pages = {
        "reference/verbs.md": f"# Every verb\n\n```text\n{usage().strip()}\n```\n\n"
        + "\n".join(
            f"- [`{verb}`]({verb.replace(' ', '-')}.md): {text}"
            for verb, (_, text) in VERBS.items()
        )
    }
    for verb, (_, text) in VERBS.items():
        page = f"# dreamshard {verb}\n\n{text[0].upper()}{text[1:]}.\n\n"
        page += f"```text\n{help_of(verb)}\n```\n"
        pages[f"reference/{verb.replace(' ', '-')}.md"] = page
    return pages


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in reference().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Say in plain words what lies in the checkout, outside of the site."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def plain(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            raise SystemExit(f"{page.file.src_uri}: {match[2]} is not in the checkout.")
        name = target.relative_to(ROOT).as_posix()
        return match[1] if match[1] == name else f"{match[1]} (`{name}`)"

    return _LINK.sub(plain, markdown)
