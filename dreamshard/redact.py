"""Keep secrets out of everything that is written down about a run.

What is written of the environment is an allow-list of names (`runfolder`). Of texts, everything
that may carry a secret goes: what stands before the @ of a URL, query values but a few harmless
ones, headers, values under a secret's name however deep in JSON or YAML, tokens of known forms.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from dreamshard.foreign.text import parse_yaml

REDACTED = "<redacted>"
# A name is secret if one of its words is: `hf_token`, `s3.secretAccessKey`, but not `tokenizer`.
_NAME = re.compile(
    r"(token|secrets?|pass_?wor[dt]s?|passwd|pass_?phrase|credentials?|authorization|"
    r"(api|access|account|private|secret|signing|shared|storage|encryption|license|ssh|master)"
    r"_?keys?(_?id)?)($|[^a-z])"
    r"|(^|[^a-z])(creds?|cookies?|bearer|jwt|signature|webhook|dsn|conn(ection)?_?str(ing)?)"
    r"($|[^a-z])"
    r"|(^|\.)key$|(^|\.|(api|auth|access|bearer|hf)_)tokens$|(^|[^a-z])(x?o?auth\d?|(user|db|root|admin|ssh)?_?pass|pwd|pw|pat|sas|sig|"
    r"pin_?code|otp|api)$"
)
_COUNTED = re.compile(r"tokens$", re.IGNORECASE)
"""Names under which a number is no secret."""
# Every repetition that may begin at any letter has a bound: of long texts none takes squared time.
_URL = re.compile(r"[A-Za-z][\w+.-]{0,40}://[^\s\"'<>,\]})]*")
_QUERY = re.compile(r"(?P<mark>[?&;#])(?P<name>[\w.%$-]+)=(?P<value>[^&;#\s\"',\]})]*)")
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,60}(?:key|token|auth))"
    r"(\"?\s*[:=]\s*)[^\n\r\"'}]+"
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic|digest|apikey)\s+(?!<)[\w.~+/=:-]{4,}")
_PAIR = re.compile(
    r"(?P<name>[\w.-]{1,120})(?P<mark>\\*[\"']?\s*(?:=>|:=|[:=])\s*)"
    r"(?P<value>\\*(?P<quote>[\"'])[^\"']*(?P=quote)?|[^\s\"',;&\]})]+)"
)
_BESIDE = (
    re.compile(r"(?P<name>--?[A-Za-z][\w.-]{0,120})(?P<mark>\s+)(?P<value>(?!-)[^\s\"']+)"),
    re.compile(r"<(?P<name>[\w.-]+)(?P<mark>>)(?P<value>[^<>]+)(?=</)"),
    re.compile(
        r"\b(?:key|name)\s*=\s*[\"'](?P<name>[^\"']+)(?P<mark>[\"']\s+value\s*=\s*[\"'])"
        r"(?P<value>[^\"']+)"
    ),
    re.compile(
        r"(?i)/(?P<name>[\w.-]{0,60}(?:token|secret|passw)\w{0,60})(?P<mark>/)(?P<value>[^\s/\"'?#]+)"
    ),
)
"""A secret's name and value that stand side by side: options, tags, attributes, parts of a URL."""
_LOGIN = re.compile(
    r"(\blogin\s+\S+\s+password\s+|(?:^|\s)(?:-u|--user)[\s=]{1,3}[^\s:\"']+:)[^\s\"']+"
)
_AT = re.compile(r"(?<![\w/])([\w.+-]{1,64}):[^\s@/:\"'<>]+@(?=[\w.-]+:\d)")
_FORMS = (
    re.compile(
        r"\bgh[pousr]_\w{16,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}"
    ),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}|\bAIza[\w-]{30,}|\bya29\.[\w-]{16,}"),
    re.compile(
        r"\bsk-[\w-]{16,}|\bwandb_\w{16,}|\bxox[abposr]-[\w-]{8,}|\bnpm_\w{16,}|\bpypi-[\w-]{16,}"
    ),
    re.compile(r"\beyJ[\w-]{6,2000}\.[\w-]+(?:\.[\w-]*)?"),  # a JSON web token
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.S
    ),
    re.compile(r"(?<=hooks\.slack\.com/services/)\S+|(?<=discord\.com/api/webhooks/)\S+"),
    re.compile(r"(?<=/bot)\d+:[\w-]{16,}"),
)
HARMLESS_QUERIES = frozenset(
    "part page revision ref version versionid split format download raw region subset".split()
)
"""Names in a URL's query whose values stay; all others go."""


def is_secret(name: str) -> bool:
    """Tell whether a setting or environment variable of this name holds a secret."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _NAME.search(snake.replace("-", "_").lower()) is not None


def redact(value: object, *, name: str = "") -> object:
    """Return the value with everything that looks like a secret replaced.

    Args:
        value: strings, numbers, and lists and dicts of them; strings may hold JSON or YAML.
        name: the value's own name; what stands under a secret's name is replaced as a whole.
    """
    if isinstance(value, Mapping):
        beside = next((value[key] for key in ("name", "key", "header") if key in value), None)
        told = {"value": beside} if isinstance(beside, str) else {}
        return {k: redact(item, name=str(told.get(k, k))) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and isinstance(value[0], str) and _is_header(value[0]):
            return [value[0], redact(value[1], name=value[0])]
        return [redact(item, name=name) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret(name) and (isinstance(value, str) or not _COUNTED.search(name)):
        return REDACTED
    return _text(value) if isinstance(value, str) else value


def _is_header(name: str) -> bool:
    """Tell whether what follows in a pair is its secret; a pair may also be two plain names."""
    return name != "key" and re.fullmatch(r"[\w.-]+", name) is not None and is_secret(name)


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


def redact_line(line: str) -> str:
    """Return a line for a shell without its secrets; one that is no such line, as text."""
    try:
        words = shlex.split(line)
    except ValueError:
        return str(redact(line))
    safe = redact_command(words)
    return line if safe == shlex.join(words) else safe


def _text(text: str) -> str:
    """Redact a text: as the structure that it spells, else piece by piece."""
    if text.lstrip()[:1] in ("{", "[") or re.match(r"[\w.-]+:\s", text):
        import yaml  # slow, and few texts are structures

        try:
            parsed = parse_yaml(text, yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict | list):
            safe = redact(parsed)
            if safe != parsed:
                flow = yaml.safe_dump(safe, default_flow_style=True, width=1 << 20, sort_keys=False)
                return _pieces(flow.strip())
    return _pieces(text)


def _pieces(text: str) -> str:
    text = _URL.sub(lambda match: _url(match.group()), text)
    text = _HEADER.sub(rf"\g<1>\g<2>{REDACTED}", text)
    text = _SCHEME.sub(rf"\g<1> {REDACTED}", text)
    text = _QUERY.sub(_query, text)
    for beside in (*_BESIDE, _PAIR):
        text = beside.sub(_pair, text)
    text = _LOGIN.sub(rf"\g<1>{REDACTED}", text)
    text = _AT.sub(rf"\g<1>:{REDACTED}@", text)
    for form in _FORMS:
        text = form.sub(REDACTED, text)
    return text


def _url(url: str) -> str:
    """Leave out whatever may be user and password: all before the last @ ahead of a query."""
    scheme, _, rest = url.partition("://")
    cut = min((rest.find(mark) for mark in "?#" if mark in rest), default=len(rest))
    address, query = rest[:cut], rest[cut:]
    _, at, host = address.rpartition("@")
    if not at and "@" in query:  # a password with ? or # in it
        return f"{scheme}://{REDACTED}@{query.rpartition('@')[2]}"
    return f"{scheme}://{REDACTED}@{host}{query}" if at else url


def _query(match: re.Match[str]) -> str:
    value = match["value"]
    if match["name"].lower() not in HARMLESS_QUERIES and value:
        value = REDACTED
    return f"{match['mark']}{match['name']}={value}"


def _pair(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if not is_secret(name) or value.startswith("<"):
        return match.group()
    if value in ("true", "false", "null") or (value.isdecimal() and _COUNTED.search(name)):
        return match.group()
    quote = match.groupdict().get("quote") or ""
    start, end = match.span("value")
    before, after = match.group()[: start - match.start()], match.group()[end - match.start() :]
    return f"{before}{quote}{REDACTED}{quote}{after}"
