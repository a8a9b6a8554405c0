"""`dreamshard verify`: against a dataset's own digests, or with --source against its images."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Check a dataset; exit code 0 if it is whole, 3 if it is damaged or its source changed."""
    if any(word.split("=")[0] == "--source" for word in argv):
        from pipeline.request.verify_source import main as verify_source

        return verify_source(argv)
    from storage.verbs.commands import verify

    return verify(argv)
