"""`dreamshard completion bash`: a script that completes verbs, settings and files, made once.

All settings are written into it, so that a press of Tab starts no Python.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence

from dreamshard.console.cli import VERBS, load_verb
from dreamshard.progress import Progress

_OPTION = re.compile(r"(?<![\w.-])--[a-z][\w.-]*")

_SCRIPT = """# dreamshard {shell} completion; `dreamshard completion {shell}` makes it.
{before}_dreamshard() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" verb="${{COMP_WORDS[1]}}" options=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$cur")); return
  fi
  case "$verb ${{COMP_WORDS[2]}}" in
{pairs}
  esac
  if [ -z "$options" ]; then case "$verb" in
{singles}
  esac; fi
  if [ "$COMP_CWORD" -eq 2 ]; then case "$verb" in
{seconds}
  esac; fi
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$cur")) ;;
    *) COMPREPLY+=($(compgen -f -- "$cur")) ;;
  esac
}}
complete -o filenames -F _dreamshard dreamshard
"""
_ZSH = """(( $+functions[compdef] )) || {{ autoload -U +X compinit && compinit }}
autoload -U +X bashcompinit && bashcompinit
"""
_FISH = """# dreamshard fish completion; `dreamshard completion fish` makes it.
function __dreamshard_on
  set -l words (commandline -opc)
  test (count $words) -gt (count $argv); or return 1
  for at in (seq (count $argv))
    set -l next (math $at + 1)
    test "$words[$next]" = "$argv[$at]"; or return 1
  end
end
function __dreamshard_next
  test (count (commandline -opc)) -eq (math (count $argv) + 1); and __dreamshard_on $argv
end
complete -c dreamshard -n "test (count (commandline -opc)) -eq 1" -f -a "{verbs}"
"""


def main(argv: Sequence[str]) -> int:
    """Print the script; see `dreamshard completion --help`."""
    parser = argparse.ArgumentParser(
        prog="dreamshard completion",
        description="Print a script that completes dreamshard's verbs and settings: "
        'eval "$(dreamshard completion bash)", or write it to '
        "~/.local/share/bash-completion/completions/dreamshard (bash), or "
        "~/.config/fish/completions/dreamshard.fish (fish).",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    with Progress("completion", total=len(VERBS), unit="verbs") as progress:
        settings = {}
        for verb in VERBS:
            settings[verb] = options_of(verb) if verb != "completion" else ["--debug"]
            progress.update()
    sys.stdout.write(script(settings, shell=options.shell))
    return 0


def options_of(verb: str) -> list[str]:
    """List the options that a verb's own `--help all` names, in its order."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        load_verb(verb)(["--help", "all"])
    return list(dict.fromkeys(_OPTION.findall(told.getvalue())))


def script(settings: dict[str, list[str]], *, shell: str) -> str:
    """Write the script of some verbs and their options."""

    def cases(names: Sequence[str]) -> str:
        return "\n".join(f'    "{n}") options="{" ".join(settings[n])}" ;;' for n in names)

    pairs = [verb for verb in settings if " " in verb]
    seconds: dict[str, list[str]] = {}
    for verb in pairs:
        seconds.setdefault(verb.split()[0], []).append(verb.split()[1])
    if shell == "fish":
        return _fish(settings, seconds)
    return _SCRIPT.format(
        shell=shell,
        before=_ZSH.format() if shell == "zsh" else "",
        verbs=" ".join(dict.fromkeys(verb.split()[0] for verb in settings)),
        pairs=cases(pairs),
        singles=cases([verb for verb in settings if " " not in verb]),
        seconds="\n".join(
            f'    "{first}") COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur"))'
            ' && [ -n "$COMPREPLY" ] && return ;;'
            for first, words in seconds.items()
        ),
    )


def _fish(settings: dict[str, list[str]], seconds: dict[str, list[str]]) -> str:
    lines = [_FISH.format(verbs=" ".join(dict.fromkeys(verb.split()[0] for verb in settings)))]
    lines += [
        f'complete -c dreamshard -n "__dreamshard_next {first}" -f -a "{" ".join(words)}"\n'
        for first, words in seconds.items()
    ]
    for verb, options in settings.items():
        on = f'complete -c dreamshard -n "__dreamshard_on {verb}"'
        lines += [f"{on} -l {option.removeprefix('--')}\n" for option in options]
    return "".join(lines)
