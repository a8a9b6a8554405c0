"""Texts that are, or were meant as, URLs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

TORN = re.compile(r"(s3a?|gc?s|az|abfs|hf|https?|file|memory):/(?!/)")

LOCAL = "a folder of this machine"
COPY_LATER = "Write it here, and copy it to the store afterwards."


def mended_url(text: str) -> str:
    """Return what a text with one slash behind its protocol was meant as; empty for all others.

    As a path it would be a folder called `s3:` in the working folder.
    """
    found = TORN.match(text)
    return f"{found[1]}://{text[found.end() :]}" if found else ""


def split_last(url: str) -> tuple[str, str]:
    """Split a path or URL into the folder above and the last name; a bucket alone has neither."""
    above, _, name = url.rpartition("/")
    return ("", "") if above.endswith(":/") else (above, name)


def local_folder(text: str) -> Path:
    """Return the folder that an argument names; refuse a URL, which is written to by no verb here.

    Raises:
        argparse.ArgumentTypeError: as argparse expects of a type.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"got {text}, allowed {LOCAL}. {COPY_LATER}")
    return Path(text)
