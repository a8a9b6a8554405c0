"""The command line `dreamshard VERB ...`: find the verb's script and call its main.

Nothing is imported before the verb is known, so that `dreamshard --help` answers at once and
`dreamshard ls` works without torch or Ray.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from dreamshard.console.shadow import prefer_ours
from dreamshard.errors import ConfigError, Problem, run_main
from dreamshard.foreign import trusted
from dreamshard.versions import VERSION

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("dreamshard.console.demo:main", "go the whole road on handwritten digits, in minutes"),
    "init": (
        "dreamshard.console.own.begin:main",
        "look at your own images and write the recipes of their whole road",
    ),
    "run": (
        "dreamshard.console.own.chain:main",
        "go through a folder of recipes: encode, train, evaluate, report",
    ),
    "plan": (
        "pipeline.request.plan_command:main",
        "show samples, bytes, hours and bandwidth before spending them",
    ),
    "pretrain": ("pipeline.pretrain:main", "train a teacher on your own images: diffusion or GAN"),
    "clean": (
        "pipeline.learning.pretraining.cleaning.command:main",
        "train a copy of a diffusion teacher that needs no noise",
    ),
    "interpret": ("pipeline.interpret:main", "teach a teacher's features to name what they show"),
    "encode": ("pipeline.encode:main", "record a teacher's features of given images"),
    "import": (
        "dreamshard.console.importing.command:main",
        "make a dataset of features that somebody else recorded, in tar files",
    ),
    "synthesize": (
        "pipeline.synthesize:main",
        "draw images from a teacher and record its features",
    ),
    "serve": ("pipeline.serve:main", "serve a teacher's features to trainers, while they train"),
    "train": ("distill.train:main", "distil recorded features into a student backbone"),
    "publish": (
        "dreamshard.console.publish:main",
        "copy a dataset, a student or a teacher for the Hub; a student for timm or ONNX, too",
    ),
    "evaluate": ("distill.evaluate:main", "measure what a student has learned"),
    "report": ("dreamshard.console.report:main", "write an HTML report of runs and datasets"),
    "view": (
        "dreamshard.console.view:main",
        "look into datasets and runs in a browser on this machine",
    ),
    "ls": ("storage.verbs.commands:ls", "list the feature datasets under a folder or URL"),
    "inspect": ("storage.verbs.commands:inspect", "show what a feature dataset holds"),
    "inspect teacher": (
        "pipeline.request.inspect_teacher:main",
        "show a teacher's taps: channels, map sizes, strides, cost",
    ),
    "list teachers": (
        "pipeline.teachers.inspecting.listing:main",
        "list the families of teachers, and the teachers found",
    ),
    "list students": (
        "distill.students.listing:main",
        "list the trained students found, and what students can be",
    ),
    "verify": (
        "dreamshard.console.verify:main",
        "check a feature dataset against its digests, or its source",
    ),
    "export": (
        "storage.verbs.export:main",
        "copy a feature dataset into another format, codec or part",
    ),
    "gc": (
        "storage.verbs.collect_commands:gc",
        "list what may be removed under a folder, or remove it",
    ),
    "pin": ("storage.verbs.collect_commands:pin", "keep a feature dataset from being removed"),
    "drop": ("storage.verbs.collect_commands:drop", "take samples out of a feature dataset"),
    "completion": (
        "dreamshard.console.completion:main",
        "print a script that completes verbs and settings in bash, zsh or fish",
    ),
    "doctor": (
        "dreamshard.console.doctor:main",
        "check this machine and name the next thing to fix",
    ),
}
"""Verb -> (`module:function` of its main, what it does)."""


def usage() -> str:
    """Return the list of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return f"""usage: dreamshard VERB [--config FILE] [--SETTING VALUE ...]

Turn pretrained image generators into training data for image backbones.

{chr(10).join(lines)}

`dreamshard VERB --help` lists a verb's main settings, `--help all` every one.
`dreamshard demo` is the place to start.
Exit codes: 0 done, 2 configuration, 3 data, 4 teacher, 130 interrupted, 1 anything else.
"""


def load_verb(verb: str) -> Callable[[Sequence[str]], int | None]:
    """Import a verb's main.

    Raises:
        ConfigError: there is no such verb.
    """
    if verb not in VERBS:
        longer = [name for name in VERBS if name.startswith(f"{verb} ")]
        close = longer or difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean `dreamshard {close[0]}`?" if close else "See `dreamshard --help`."
        raise ConfigError(Problem("dreamshard", f"the verb {verb!r}", ", ".join(VERBS), hint))
    return trusted.listed(verb, table={name: target for name, (target, *_) in VERBS.items()})


def main(argv: Sequence[str]) -> int | None:
    """Run `dreamshard` with the given arguments (without the program's name)."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if argv[0] == "--version":
        sys.stdout.write(f"dreamshard {VERSION}\n")
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS else 1
    return load_verb(" ".join(argv[:words]))(list(argv[words:]))


def entry() -> int:
    """Run `dreamshard` with the process's arguments; the console script."""
    prefer_ours()
    code = 1
    try:
        code = run_main(main, sys.argv[1:])
    finally:
        _end_when_asked(code)
    return code


def _end_when_asked(code: int) -> None:
    """Have one more Ctrl-C or SIGTERM end the process, with the exit code that is decided.

    What is left is the libraries' own end, Ray's of seconds: an exception there is a traceback.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):  # whoever read them may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
