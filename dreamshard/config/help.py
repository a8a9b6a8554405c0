"""Print a configuration's help and its values, both with the fields' docstrings."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser
from typing import Any

from dreamshard.config.allowed import REQUIRED, Setting, defaults, describe, schema_of, walk
from dreamshard.config.yaml12 import dump_yaml

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
    main = None if full else getattr(cls, "main_settings", None)
    more = f"`{prog} --help all` shows every setting." if main else None
    usage = f"{prog} [--config FILE] [--SETTING VALUE ...]"
    parser = ArgumentParser(prog=prog, description=description, usage=usage, epilog=more)
    text = "YAML file of settings; repeatable: the next one is laid over the one before"
    parser.add_argument("--config", metavar="FILE", help=text)
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    group, heading = parser.add_argument_group("settings"), None
    for setting in walk(cls, defaults(schema_of(cls))):
        if setting.is_heading:
            off = " Not used (null) unless one of these is set." if setting.value is None else ""
            heading = (setting.key, setting.doc + off)
        elif main is None or setting.key in main.split() or setting.value is REQUIRED:
            group = parser.add_argument_group(*heading) if heading else group
            heading = None
            names = [f"--{setting.key}", *_append(setting)]
            group.add_argument(*names, metavar="VALUE", help=_meaning(setting).replace("%", "%%"))
    return parser.format_help()


def _append(setting: Setting) -> list[str]:
    """Return the option that adds to a list."""
    return [f"--{setting.key}+"] if setting.node.get("type") == "array" else []


def _meaning(setting: Setting) -> str:
    """Return a setting's docstring, what is allowed and the default."""
    is_required = setting.value is REQUIRED
    usual = "required" if is_required else f"default: {dump_yaml(setting.value, one_line=True)}"
    return f"{setting.doc} ({describe(setting.node)}; {usual})".strip()


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
        allowed = "" if setting.is_heading else f" ({describe(setting.node)})"
        block = textwrap.wrap(f"{setting.doc}{allowed}".strip(), 96 - len(indent))
        block = [f"# {line}" for line in block]
        if setting.is_heading and setting.value not in (None, REQUIRED):
            block = [*([""] if lines else []), *block, f"{name}:"]
        elif setting.value is REQUIRED:
            block.append(f"{name}: null  # required")
        else:
            block.append(f"{name}: {dump_yaml(setting.value, one_line=True)}")
            off = setting.key  # of a nested configuration that is null, nothing more is shown
        lines += [f"{indent}{line}".rstrip() for line in block]
    return "\n".join(lines) + "\n"
