"""Read YAML with the scalars of YAML 1.2: `1e-4` is a number, `off` is text, 010 is ten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dreamshard.errors import Problem
from dreamshard.foreign import text as text_reader
from dreamshard.foreign.files import read_bytes
from dreamshard.owner.home import expanded

_FLOAT = (
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS = (  # tag, pattern of the whole text, what it may start with
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """Read YAML 1.2 scalars, and refuse a key given twice."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - none of YAML 1.1's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.value != "<<":
                text = f"{key.value} is given twice"
                raise yaml.MarkedYAMLError(problem=text, problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


class _Dumper(yaml.SafeDumper):
    """Quote the texts that a reader of YAML 1.1 or 1.2 would take for something else."""


for _tag, _pattern, _first in _SCALARS:
    _whole = re.compile(rf"(?:{_pattern})\Z")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str) -> Any:
    """Parse YAML with the scalars of YAML 1.2; raises yaml.YAMLError or ValueError."""
    return text_reader.parse_yaml(text, _Loader)


def dump_yaml(value: object, *, one_line: bool = False) -> str:
    """Return plain values as YAML, keys in the order given; in one line, `[a, b]` and `{a: b}`."""
    layout = {"default_flow_style": one_line, "width": 10**6 if one_line else 100}
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **layout)
    return text.removesuffix("...\n").strip() if one_line else text


def find_file(name: str) -> Path:
    """Find a configuration file; `recipes/...` may be one that came with the package."""
    path = expanded(name)
    if not path.exists() and path.parts[:1] == ("recipes",):
        installed = Path(__file__).resolve().parents[2] / path
        return installed if installed.exists() else path
    return path


def read_yaml(name: str) -> tuple[dict[str, Any], Problem | None]:
    """Read one configuration file into a dict, or say why it cannot be read."""
    hint = "Correct the file."
    try:
        content = parse_yaml(read_bytes(find_file(name)).decode("utf-8"))
    except OSError as error:
        got, hint = error.strerror or str(error), "Give an existing file to --config."
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        got = getattr(error, "problem", None) or str(error)
        got += f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    else:
        if content is None or isinstance(content, dict):
            return {str(key): value for key, value in (content or {}).items()}, None
        got, hint = f"a {type(content).__name__}", "Write `name: value` lines."
    return {}, Problem(name, got, "a YAML file of settings", hint)
