"""Choose how each level is stored: the setting `codec`, one for all or one per level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreamshard.errors import ConfigError, DataError, Problem
from storage.codecs.lossless import CompressedCodec
from storage.codecs.table import ALLOWED, find_codec
from storage.schema import Level

DEFAULT = "default"
FALLBACK = "float16"

CodecSetting = str | Mapping[str, str]


def by_key(setting: CodecSetting) -> dict[str, str]:
    """Return the codecs by what they are for: `default`, a level, a tap, or a stride (`s4`)."""
    return {DEFAULT: setting} if isinstance(setting, str) else dict(setting)


def setting_problems(setting: CodecSetting, *, layout_format: str) -> list[Problem]:
    """List codecs that do not exist, or not in the format; what they are for is not looked at."""
    problems = []
    for key, name in by_key(setting).items():
        codec = find_codec(name)
        where = "codec" if isinstance(setting, str) else f"codec.{key}"
        if codec is None:
            problems.append(Problem(where, repr(name), ALLOWED, "Try int8."))
        elif layout_format == "tar" and isinstance(codec, CompressedCodec):
            allowed = "one without compression in format tar"
            problems.append(Problem(where, repr(name), allowed, f"Try {codec.inner.name}."))
    return problems


def choose_codecs(levels: Sequence[Level], setting: CodecSetting = FALLBACK) -> dict[str, str]:
    """Give each level the codec that is set for its name, else its tap, else its stride, else all.

    Levels that hold no floats are stored as they are.

    Raises:
        ConfigError: with every key that is for no level, and every codec that does not fit one.
    """
    codecs, used = by_key(setting), {DEFAULT}
    chosen: dict[str, str] = {}
    for level in levels:
        if "float" not in level.dtype:
            chosen[level.name] = "raw"
            continue
        keys = (level.name, level.tap, f"s{level.stride}", DEFAULT)
        fitting = [key for key in keys if key in codecs]
        used.update(fitting)
        chosen[level.name] = codecs[fitting[0]] if fitting else FALLBACK
    floats = [level for level in levels if "float" in level.dtype]
    problems: list[Problem | str] = [
        Problem(f"codec.{key}", repr(name), _allowed(floats))
        for key, name in codecs.items()
        if key not in used
    ]
    problems += [problem for level in floats for problem in _misfits(level, chosen[level.name])]
    if problems:
        raise ConfigError(problems)
    return chosen


def _allowed(levels: Sequence[Level]) -> str:
    keys = dict.fromkeys([DEFAULT, *(level.name for level in levels)])
    keys |= dict.fromkeys(level.tap for level in levels)
    keys |= dict.fromkeys(f"s{level.stride}" for level in levels if level.stride)
    return "a key of " + ", ".join(keys)


def _misfits(level: Level, name: str) -> list[Problem]:
    """Say why a codec cannot store a level, such as more components than it has channels."""
    codec = find_codec(name)
    if codec is None:
        return []  # reported by `setting_problems`
    if name.partition("+")[0] == "float32" and level.dtype == "float16":
        hint = "It would take twice the bytes for the same digits: try --codec float16."
        allowed = "float16 or less: this level is recorded as float16"
        return [Problem(f"codec ({level.name})", repr(name), allowed, hint)]
    try:
        codec.arrays(level)
    except DataError as error:
        allowed = str(error).rpartition("allowed ")[2].removesuffix(".")
        return [Problem(f"codec ({level.name})", repr(name), allowed)]
    return []
