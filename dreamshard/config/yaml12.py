"""Read YAML with the scalars of YAML 1.2: `1e-4` is a number, `off` is text, 010 is ten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dreamshard.errors import Problem

_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS = (  # tag, pattern of the whole text, what it may start with
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<"), "<"),
)


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2 scalars, and refuse a key given twice."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - none of YAML 1.1's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value)
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(name if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(
        str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


class _Dumper(yaml.SafeDumper):
    """Quote the texts that a reader of YAML 1.1 or 1.2 would take for something else."""


for _tag, _pattern, _first in _SCALARS:
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str) -> Any:
    """Parse YAML with the scalars of YAML 1.2; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(value: object, *, one_line: bool = False) -> str:
    """Return plain dicts, lists and scalars as YAML, keys in the order given.

    Args:
        value: what to write.
        one_line: write `[a, b]` and `{a: b}` instead of indented lines.
    """
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=one_line,
        sort_keys=False,
        allow_unicode=True,
        width=10**6 if one_line else 100,
    )
    return text.removesuffix("...\n").strip() if one_line else text


def find_file(name: str) -> Path:
    """Find a configuration file; `recipes/...` may be one that came with the package."""
    path = Path(name).expanduser()
    if not path.exists() and path.parts[:1] == ("recipes",):
        installed = Path(__file__).resolve().parents[2] / path
        return installed if installed.exists() else path
    return path


def read_yaml(name: str) -> tuple[dict[str, Any], Problem | None]:
    """Read one configuration file into a dict, or say why it cannot be read."""
    allowed = "a YAML file of settings"
    try:
        content = parse_yaml(find_file(name).read_text(encoding="utf-8"))
    except OSError as error:
        hint = "Give an existing file to --config."
        return {}, Problem(name, error.strerror or str(error), allowed, hint)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        return {}, Problem(name, _where(error), allowed, "Correct the file.")
    if content is None:
        return {}, None
    if not isinstance(content, dict):
        return {}, Problem(
            name, f"a {type(content).__name__}", allowed, "Write `name: value` lines."
        )
    return {str(key): value for key, value in content.items()}, None


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error)
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})" if mark else text
