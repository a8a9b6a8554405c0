"""Print a configuration's help and its values, both with the fields' docstrings."""

from __future__ import annotations

import textwrap
from typing import Any

from dreamshard.config.allowed import (
    REQUIRED,
    Setting,
    choices,
    defaults,
    describe,
    element,
    parts,
    range_text,
    schema_of,
    settings,
    walk,
)
from dreamshard.config.yaml12 import dump_yaml

NULL = {"type": "null"}
PLACEHOLDERS = {"integer": "N", "number": "X", "string": "TEXT"}
FLAGS = {
    "print_config": "print the settings that would be used, with their meaning, and stop",
    "debug": "show the traceback of errors",
}


def format_help(cls: type, *, prog: str, description: str, full: bool) -> str:
    """Format the help of a configuration: settings with meaning, range, type and default.

    Args:
        cls: configuration dataclass; its `main_settings`, if any, are the dotted keys of the
            settings that people change, one text with spaces between.
        prog: what the user typed to get here.
        description: one sentence on what the command does.
        full: show every setting, not the main and the required ones alone.
    """
    from jsonargparse import SUPPRESS, ArgumentParser  # slow to import

    main = None if full else getattr(cls, "main_settings", None)
    more = f"`{prog} --help all` shows every setting." if main else None
    usage = f"{prog} [--config FILE] [--SETTING VALUE ...]"
    parser = ArgumentParser(prog=prog, description=description, usage=usage, epilog=more)
    text = "YAML file of settings; repeatable: the next one is laid over the one before"
    parser.add_argument("--config", metavar="FILE", default=SUPPRESS, help=text)
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", default=SUPPRESS, help=text)
    group, heading = parser.add_argument_group("settings"), None
    for setting in walk(cls, defaults(schema_of(cls))):
        if setting.hint is None:
            off = " Not used (null) unless one of these is set." if setting.value is None else ""
            heading = (setting.key, _meaning(setting) + off)
        elif main is None or setting.key in main.split() or setting.value is REQUIRED:
            group = parser.add_argument_group(*heading) if heading else group
            heading = None
            group.add_argument(f"--{setting.key}", **_argument(setting))
    return parser.format_help()


def _meaning(setting: Setting) -> str:
    """Return a setting's docstring and range."""
    limits = range_text(setting.node)
    return f"{setting.doc} Range: {limits}.".strip() if limits else setting.doc


def _argument(setting: Setting) -> dict[str, Any]:
    """Return what jsonargparse needs to show a setting."""
    node, required = setting.node, setting.value is REQUIRED
    meaning = _meaning(setting) or " "  # without any help the type would not be shown
    # Of a list of classes, jsonargparse would show an option of its own that nobody reads here.
    kind = list[dict] if settings(element(node)) is not None else setting.hint
    shown = {"type": kind, "help": meaning, "required": required}
    names = {PLACEHOLDERS.get(part.get("type", "")) for part in parts(node) if part != NULL}
    if len(names) == 1 and None not in names and not choices(node):
        shown["metavar"] = names.pop()
    return shown if required else {**shown, "default": setting.value}


def format_config(cls: type, values: dict[str, Any]) -> str:
    """Format settings as YAML with their meaning as comments; `--config` reads it back.

    Args:
        cls: configuration dataclass.
        values: settings as nested dicts; what is absent is written as `null  # required`.
    """
    lines, off = [], "."
    for setting in walk(cls, values):
        indent, name = "  " * setting.key.count("."), setting.key.rpartition(".")[2]
        if setting.key.startswith(f"{off}."):
            continue
        block = [f"# {line}" for line in textwrap.wrap(_meaning(setting), 96 - len(indent))]
        if setting.value is REQUIRED and setting.hint is not None:
            block.append(f"{name}: null  # required: {describe(setting.node)}")
        elif setting.hint is not None or setting.value is None:
            block.append(f"{name}: {dump_yaml(setting.value, one_line=True)}")
            off = setting.key  # of a nested configuration that is null, nothing more is shown
        else:
            block = [*([""] if lines else []), *block, f"{name}:"]
        lines += [f"{indent}{line}".rstrip() for line in block]
    return "\n".join(lines) + "\n"
