"""`dreamshard demo`: go the whole road on handwritten digits, with the same code as the commands.

pretrain a teacher -> encode the digits -> train a student -> evaluate it -> report. A rerun goes on
where the last one stopped; after a finished one it reuses teacher and features and trains again.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamshard.console.api.calls import as_command
from dreamshard.console.report.material import DEMO_INDEX as INDEX
from dreamshard.console.report.material import RESULTS
from dreamshard.console.report.page import mean_and_std
from dreamshard.console.report.runs import read_json
from dreamshard.errors import INTERRUPTED, ConfigError, Problem
from dreamshard.owner.alone import only_one
from dreamshard.owner.urls import local_folder
from dreamshard.progress import format_duration, stage
from dreamshard.runfolder import write_text

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "digits"
"""Beside the package, in a checkout as in an installation."""
STAGES = ("pretrain", "encode", "train", "evaluate", "report")
FAST: Mapping[str, Sequence[str]] = {
    "pretrain": (
        "--steps 12 --warmup_steps 2 --num_samples 9 --sample_steps 4 "
        "--unet.block_out_channels [16,16,16]"
    ).split(),
    "encode": "--samples 256 --samples_per_unit 256".split(),
    "train": "--steps 12 --log_every 2 --save_every 12".split(),
    "evaluate": "--few_label.draws 2 --few_label.selection_draws 1 --few_label.shots [1,5]".split(),
}
"""What --fast changes: enough to see that every stage works, far too little to learn anything."""
README = """\
In this folder:
report.html   what was made and what it is worth; open it in a browser
demo.json     which of the folders below belong together, and their seconds
teacher*/     the diffusion teacher, in the layout of diffusers, and the run that trained it
datasets/     the teacher's features, committed shard by shard (`dreamshard ls`, `verify`)
encode*/      the run that made them
train*/       a training run: the student and, in evaluate/, what it is worth
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold what the user asked for."""

    out: Path
    root: str
    seed: int
    fast: bool

    @property
    def suffix(self) -> str:
        """Tell apart what is not from the default settings, so that all fit into one folder."""
        return ("-fast" if self.fast else "") + (f"-seed{self.seed}" if self.seed else "")


def main(argv: Sequence[str]) -> int:
    """Run the command; see `dreamshard demo --help`."""
    options = read_options(argv)
    with only_one(options.out, key="out"):
        try:
            code = Demo(options).go()
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code == INTERRUPTED:
            stage("interrupted; the same command goes on from here")
        return code


def read_options(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="dreamshard demo",
        description="Go the whole road on handwritten digits: pretrain a diffusion teacher, encode "
        "the digits with it, train a student on its features, evaluate, report. Needs no download "
        "and no GPU; minutes on two cores. Run it again to go on, or to train again.",
    )
    parser.add_argument(
        "--out",
        type=local_folder,
        default=Path("runs/demo"),
        help="folder of everything (runs/demo)",
    )
    parser.add_argument("--root", help="folder or URL of the feature dataset (OUT/datasets)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every stage, 0 or more (0)")
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything: a test, not a demonstration"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    given = parser.parse_args(argv)
    if given.seed < 0:
        raise ConfigError(Problem("seed", str(given.seed), "0 or more", "Try --seed 1."))
    root = given.root or str(given.out / "datasets")
    return Options(out=given.out, root=root, seed=given.seed, fast=given.fast)


@dataclass
class Demo:
    """Run the stages in order and keep demo.json, which says what belongs together."""

    options: Options
    index: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = self.options.out
        self.index = read_json(self.out / INDEX)

    def go(self) -> int:
        """Run every stage; stop at the first that fails and return its exit code."""
        suffix, seed = self.options.suffix, ("--seed", str(self.options.seed))
        began, encode = time.monotonic(), self.out / f"encode{suffix}"
        teacher, code = self.pretrain(seed)
        path = ["--teacher.path", str(teacher)]
        named = [*path, "--root", self.options.root, "--run_dir", str(encode), *seed]
        code = code or self.run("encode", encode, named)
        if code:
            return code
        dataset = find_dataset(self.argv("encode", named))
        train, code = self.train(["--data.dataset", dataset, *seed])
        evaluate = train / "evaluate"
        student = ["--student", str(train), *path, "--run_dir", str(evaluate), *seed]
        code = code or self.run("evaluate", evaluate, student)
        if code:
            return code
        self.index["dataset"] = dataset if "://" in dataset else str(Path(dataset).absolute())
        code = self.run("report", self.out, [str(self.out)])
        if not code:
            self.index.setdefault("finished", []).append(train.name)
            self.keep()
            self.say_goodbye(time.monotonic() - began, path=path)
        return code

    def argv(self, verb: str, settings: Sequence[str]) -> list[str]:
        """Return a stage's arguments, those of its command."""
        if verb == "report":
            return list(settings)
        fast = FAST[verb] if self.options.fast else ()
        return ["--config", shown(RECIPES / f"{verb}.yaml"), *settings, *fast]

    def run(self, verb: str, folder: Path, settings: Sequence[str]) -> int:
        """Run one stage as its command would, and time it if it had work to do.

        Args:
            verb: the stage.
            folder: of its run.
            settings: what it is told beside its recipe.

        Returns:
            Its exit code.
        """
        from dreamshard.console.cli import load_verb

        argv = self.argv(verb, settings)
        command = ["dreamshard", verb, *argv]
        number = f"[{STAGES.index(verb) + 1}/{len(STAGES)}]"
        stage(f"\n{number} {verb}  (equivalent: {shlex.join(command)})")
        before, began = _started(folder), time.monotonic()
        place = str(folder.relative_to(self.out))
        timed = self.index.setdefault("unfinished_seconds", {})
        try:
            quiet = redirect_stdout(io.StringIO()) if verb == "evaluate" else nullcontext()
            with as_command(command), quiet:  # its table is printed at the end instead
                code = load_verb(verb)(argv) or 0
        finally:  # an interrupted stage goes on in the next demo: its time counts too
            seconds = time.monotonic() - began
            worked = verb == "report" or _started(folder) != before
            timed[place] = timed.get(place, 0.0) + (seconds if worked else 0.0)
            self.keep()
        if code:
            return code
        total = timed.pop(place)
        if verb != "report":
            self.index.setdefault("runs", {})[verb] = place
            if worked:
                self.index.setdefault("seconds", {})[place] = round(total, 2)
        self.keep()
        stage(f"{number} {verb}: {'done' if worked else 'reused'}, {format_duration(seconds)}")
        return 0

    def pretrain(self, settings: Sequence[str]) -> tuple[Path, int]:
        """Train or reuse a teacher; return its folder and the exit code."""
        for number in itertools.count(1):
            name = f"teacher{self.options.suffix}" + (f"-{number}" if number > 1 else "")
            folder = self.out / name
            code = self.try_run("pretrain", folder / "run", ["--out", str(folder), *settings])
            if code is not None:
                return folder, code
        raise AssertionError("counted to the end")

    def train(self, settings: Sequence[str]) -> tuple[Path, int]:
        """Train in the folder whose turn it is; return it and the exit code."""
        first = self.next_train()
        for number in itertools.count(int(first.name.rpartition("-")[2])):
            folder = self._train_folder(number)
            code = self.try_run("train", folder, [*settings, "--run_dir", str(folder)])
            if code is not None:
                return folder, code
        raise AssertionError("counted to the end")

    def try_run(self, verb: str, folder: Path, settings: Sequence[str]) -> int | None:
        """Run a stage; return its exit code, or None if its folder holds other settings' run."""
        begun = _started(folder) is not None
        try:
            return self.run(verb, folder, settings)
        except ConfigError:
            if not begun:
                raise
            stage(f"{folder} was made with other settings: it is kept, and a new one is made")
            return None

    def next_train(self) -> Path:
        """Return the folder to train in: the last one until it is in a report, then a new one."""
        prefix = f"train{self.options.suffix}-"
        suffixes = [path.name[len(prefix) :] for path in self.out.glob(f"{prefix}*")]
        last = max((int(number) for number in suffixes if number.isdigit()), default=0)
        folder = self._train_folder(last)
        if last and folder.name not in self.index.get("finished", []):
            return folder
        return self._train_folder(last + 1)

    def _train_folder(self, number: int) -> Path:
        return self.out / f"train{self.options.suffix}-{number:03d}"

    def keep(self) -> None:
        """Write demo.json."""
        write_text(self.out / INDEX, json.dumps(self.index, indent=2) + "\n")

    def say_goodbye(self, seconds: float, *, path: Sequence[str]) -> None:
        """Print the probe table, where the report is, and what to try next."""
        results = self.out / self.index["runs"]["evaluate"] / RESULTS
        result = read_json(results)
        recipe = shown(RECIPES / "synthesize.yaml")
        words = ["dreamshard", "synthesize", "--config", recipe, *path]
        following = shlex.join([*words, "--root", self.options.root])
        write_text(self.out / "README.txt", f"Next:\n  {following}\n\n{README}")
        sys.stdout.write(
            f"\nLinear probes, % of the {result['images']['heldout']} held-out digits recognised "
            "(features s standardised, c centred)\n"
            f"{probe_table(result['few_label'])}\n\n"
            f"time    {format_duration(seconds)}\n"
            f"report  {(self.out / 'report.html').resolve()}\n"
            f"next    {following}\n"
        )
        sys.stdout.flush()


def probe_table(result: Mapping[str, Any]) -> str:
    """Lay the probe's results out as text that fits a terminal: accuracies, then paired gains."""
    subject, counts = result["subject"], list(result["rows"][result["subject"]])
    lines = [["labels per class", *counts]]
    for name, row in result["rows"].items():
        lines.append([name, *(mean_and_std(row[n]) for n in counts)])
    lines.append([f"{subject} better than"])
    for name, row in result["paired"].items():
        cells = [(row[n], row[n]["wins"] + row[n]["ties"] + row[n]["losses"]) for n in counts]
        gains = [f"{cell['mean']:+.1f} ({cell['wins']} of {draws})" for cell, draws in cells]
        lines.append([f"  {name}", *gains])
    columns = range(1, len(counts) + 1)
    widths = [max(len(line[c]) for line in lines if len(line) > c) for c in columns]
    head = max(len(line[0]) for line in lines)
    return "\n".join(
        f"{line[0]:<{head}}"
        + "".join(f"   {text:>{w}}" for text, w in zip(line[1:], widths, strict=False))
        for line in lines
    )


def find_dataset(argv: Sequence[str]) -> str:
    """Return where the dataset is that `dreamshard encode` with these arguments made or reused."""
    from dreamshard.config import load_config
    from pipeline.request.config import EncodeConfig
    from pipeline.request.lookup import look_up
    from pipeline.request.resolve import resolve

    config = load_config(EncodeConfig, argv, prog="dreamshard encode", description="")
    existing = look_up(resolve(config.settled().request()))
    assert existing is not None, "encode has just made it"
    url = existing.dataset.url
    return url if "://" in url else shown(Path(url))


def shown(path: Path) -> str:
    """Return a path as short as it can be typed from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _started(folder: Path) -> int | None:
    """Tell when a run was last started in a folder; None if never."""
    history = folder / "command.txt"
    return history.stat().st_mtime_ns if history.exists() else None
