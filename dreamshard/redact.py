"""Keep secrets out of everything that is written down about a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

REDACTED = "<redacted>"
# A name is secret if one of its words is: `hf_token`, `s3.secretAccessKey`, but not `tokenizer`.
_NAME = re.compile(
    r"(^|[^a-z])(token|secrets?|passwords?|passwd|passphrase|credentials?|"
    r"(api|access|account|private|secret|signing)_?keys?)($|[^a-z])|(^|\.)key$"
)
_TEXT = (
    re.compile(r"(://)[^/@\s]+(@)"),  # user:password@ in a URL
    re.compile(r"(?i)\b([\w-]*(?:token|secret|password|signature|credential|\bsig|key)=)[^&\s]+()"),
    re.compile(r"(?i)\b(bearer\s+)\S+()"),
)


def is_secret(name: str) -> bool:
    """Tell whether a setting or environment variable of this name holds a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _NAME.search(snake.replace("-", "_").lower()) is not None


def redact(value: object, *, name: str = "") -> object:
    """Return the value with everything that looks like a secret replaced.

    Args:
        value: strings, numbers, and lists and dicts of them.
        name: the value's own name; a string under a secret's name is replaced as a whole.
    """
    if isinstance(value, dict):
        return {key: redact(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name=name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if is_secret(name):
        return REDACTED
    for pattern in _TEXT:
        value = pattern.sub(rf"\g<1>{REDACTED}\g<2>", value)
    return value


def redact_command(command: Sequence[str]) -> str:
    """Return a command as one line for a shell, without its secrets."""
    shown, name = [], ""
    for word in command:
        option, equals, value = word.partition("=")
        if option.startswith("--") and equals:
            shown.append(f"{option}={redact(value, name=option.lstrip('-'))}")
        else:
            shown.append(str(redact(word, name=name)))
        name = word.lstrip("-") if word.startswith("--") and not equals else ""
    return shlex.join(shown)
