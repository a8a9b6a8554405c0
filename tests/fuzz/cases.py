"""One case: something small and sound, one thing about it changed, and what a user does with it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import bases, jail, mutations

SHARES = {"dataset": 10, "teacher": 4, "student": 3, "config": 4, "run": 2, "shards": 2}
"""How often each kind is drawn."""
TAGS = [
    "!!python/object/apply:os.system ['touch MARK']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'MARK']]",
    "!!timestamp x", "!!bool x", "!!int ''", "!!float x", "!!binary x", "!!set {a, b}",
    "&a [*a]", "[" * 3000 + "]" * 3000, "9" * 5000, "1e400", ".nan", "2026-99-99", "0xZZ", "*x",
    "${oc.env:HOME}", "'os:system'", "'torch.hub:load'", '"\\ud800"', '"a\\0b"', "\x00", "\t\tx",
    "{a: &x {b: 1}, <<: [*x, *x]}", "? [a, b]\n: 1", "../../../outside/x", "'[/x]\x1b[2J'",
    "-5", "null", "[]", "{}", "x" * 100_000, "99999999999999999999", "'MARK'",
]  # fmt: skip
"""Words of YAML where others belong; MARK stands for the file that code would make."""


@dataclass
class Case:
    """What was done to what, and what went wrong.

    Args:
        seed: it was drawn from.
        kind: of `SHARES`.
        base: name of what was mutated.
        change: what was done to it.
        problems: that were found.
        codes: exit codes by what was done with it.
    """

    seed: int
    kind: str
    base: str
    change: str = ""
    problems: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.kind} {self.base}: {self.change}: {self.problems}"


def kind_of(seed: int) -> str:
    """Draw the kind of a seed's case."""
    return random.Random(f"kind/{seed}").choices(list(SHARES), list(SHARES.values()))[0]


def play(seed: int, base: Path, work: Path, *, kind: str) -> Case:
    """Play one case.

    Args:
        seed: decides the rest.
        base: where `bases.make_all` has made what is mutated.
        work: a folder for this case alone; removed at the end.
        kind: of `SHARES`.
    """
    rng = random.Random(seed)
    name = rng.choice(sorted(path.name for path in (base / kind).iterdir() if path.is_dir()))
    case = Case(seed, kind, name)
    shutil.rmtree(work, ignore_errors=True)
    inside, outside = work / "inside", work / "outside"
    for folder in (outside / "here", outside / "home"):
        folder.mkdir(parents=True)
    (outside / "photo").write_text("a user's")
    shutil.copytree(base / kind / name, inside / "x", symlinks=True)
    marker = base / "EXECUTED"
    case.change = change(rng, kind, inside / "x", outside, marker)
    things = THINGS[kind](inside / "x", base, rng)
    before, known = jail.tree(outside), os.environ.copy()
    here = os.getcwd()
    os.environ |= {"HOME": f"{outside}/home", "XDG_CACHE_HOME": f"{inside}/cache"}
    os.chdir(outside / "here")
    try:
        case.problems, case.codes = jail.problems_of(things)
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(known)
    after = jail.tree(outside)
    if after != before:
        odd = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        case.problems.append(f"writes outside: {odd[:3]}")
    if marker.exists():
        marker.unlink()
        case.problems.append("RUNS CODE")
    shutil.rmtree(work, ignore_errors=True)
    return case


def change(rng: random.Random, kind: str, folder: Path, outside: Path, marker: Path) -> str:
    """Change one thing, or a few, in a folder; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix not in (".py", ".md", ".png", ".html")] or files
    path = rng.choice(files)
    told = f"{path.relative_to(folder)}"
    drawn = rng.random()
    if (kind == "config" and drawn < 0.85) or (path.suffix == ".yaml" and drawn > 0.4):
        return f"{told}: {change_yaml(rng, path, marker)}"
    if drawn < 0.12:
        return f"{told}: {mutations.change_kind(rng, path, outside)}"
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    if drawn < 0.16 and folders:
        chosen = rng.choice(folders)
        return f"{chosen.relative_to(folder)}: {mutations.change_folder(rng, chosen, outside)}"
    if drawn < 0.24:
        return add_file(rng, kind, folder, files)
    if drawn < 0.30:
        other = rng.choice(files)
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two), other.write_bytes(one)
        return f"{told}: swapped with {other.relative_to(folder)}"
    done = [mutations.change_file(rng, path) for _ in range(rng.choice([1, 1, 1, 3]))]
    return f"{told}: {', '.join(done)}"


def change_yaml(rng: random.Random, path: Path, marker: Path) -> str:
    """Change words of YAML as text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    word = rng.choice(TAGS).replace("MARK", str(marker))
    kind = rng.choice(["value", "value", "value", "line", "again", "bomb", "bytes"])
    if kind == "value" and ":" in lines[at]:
        lines[at] = f"{lines[at].partition(':')[0]}: {word}"
    elif kind == "again":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == "bomb":
        names = "abcdefghijklm"
        bomb = ["a: &a [x,x,x,x,x,x,x,x,x]"]
        bomb += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
        lines += bomb if rng.random() < 0.5 else ["student: {settings: &s {a: *s}}"]
    elif kind == "bytes":
        path.write_bytes(mutations.change_bytes(rng, path.read_bytes()))
        return "bytes"
    else:
        lines.insert(at, word)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return f"{kind} {word[:40]!r}"


NAMES = {
    "dataset": [
        *("requests/{d}.json", "commits/000000/{d}.0.json", "commits/{d}/000000000.0.json"),
        *("commits/revised/000000001.{d}.json", "commits/withdrawn/{d}.{d}.json"),
        *("manifest/_units/units-{d}.parquet", "manifest/part-{d}.parquet", "drops/{d}.json"),
        *("pins/x.json", "manifest/_quarantine/{d}.json", "staging/{d}.lease", "staging/put/x.1"),
        *("codecs/w.npy", "data.zarr/evil/zarr.json", "shards/{d}.tar", "labels/{d}.json"),
        *("commits/withdrawn/000000001.0.json", "data.zarr/image/c/{d}/0/0/0", "claims/x"),
    ],
    "teacher": [
        *("diffusion_pytorch_model.bin", "model_index.json", "diffusion_pytorch_model.fp16.bin"),
        *("diffusion_pytorch_model.safetensors.index.json", "scheduler/x.json", "config.yaml"),
        *("vae/config.json", "text_encoder/config.json", "teacher_card.json"),
    ],
    "student": [
        *("student/config.json", "student/pytorch_model.bin", "student/pyramid.safetensors"),
        *("student/head/head.json", "config.json", "student/student.json"),
    ],
    "config": ["config.yml", "x/config.yaml"],
    "shards": ["images/{d}.tar", "{d}.tar", "a/b/{d}.tar", "splits.json"],
    "run": [
        *("checkpoint-{d}/state.json", "checkpoint-000009/model.safetensors", "results.json"),
        *("owner.json", ".student.partial", "demo.json", "checkpoint-000004/average.safetensors"),
    ],
}
NUMBERS = [
    *("000000003", "000000000000100", "99999999999999", "99999999999999999999999", "\u0661\u0662"),
    *("9" * 20, "-00000001", "4294967296", "000000", "999999", "2147483648", "x"),
]
BODIES = [
    *(b"", b"{}", b"[]", b"null", b"[" * 5000, b"\xff\xfe"),
    b'{"samples": {"1": "x"}, "reason": 5}',
    *(b'{"weight_map": {"a": "../../../../etc/passwd"}}', b'{"weight_map": {"a": 5}}', b"9" * 400),
    b'{"error": "\x1b[31m[/x]"}', b'{"_class_name": "os.system"}', b'{"time": 1e999}',
]  # fmt: skip


def add_file(rng: random.Random, kind: str, folder: Path, files: list[Path]) -> str:
    """Put a file where none was, with a name or a body that a reader may stumble over."""
    name = rng.choice(NAMES[kind])
    while "{d}" in name:
        name = name.replace("{d}", rng.choice(NUMBERS), 1)
    body = rng.choice(files).read_bytes() if rng.random() < 0.3 else rng.choice(BODIES)
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    except OSError as error:
        return f"{name} not added ({error.strerror})"
    return f"{name}: added, {body[:30]!r}"


Things = Mapping[str, jail.Doing]


def _dataset_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from storage.verbs import commands

    url = str(folder / "data")
    return {
        "ls": lambda: commands.ls([str(folder)]),
        "inspect": lambda: commands.inspect([url]),
        "verify": lambda: commands.verify([url]),
        "open": lambda: read_rows_of(url),
    }


def read_rows_of(url: str) -> None:
    """Read every row of a dataset in every way there is."""
    from storage.batches.reader import BatchReader
    from storage.rows.pick import read_rows

    snapshot = bases.open_url(url).snapshot()
    _ = (snapshot.valid, snapshot.labels, snapshot.keys, snapshot.errors, snapshot.holes)
    rows = np.flatnonzero(snapshot.valid)
    for name in snapshot.array_names:
        read_rows(snapshot, name, rows)
        read_rows(snapshot, name, rows, access="pread")
    levels = [level.name for level in snapshot.levels]
    with BatchReader(
        snapshot, levels=levels, batch_size=4, images=False, threads=1, allow_holes=True
    ) as reader:
        reader.next()


def _teacher_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from pipeline.teachers.inspecting import command

    path = folder / "model.pt"
    words = [f"--{name}={value}" for name, value in bases.SIDE.items()]
    words = [part for word in words for part in word.split("=")]
    argv = [str(path), *words] if path.exists() or path.is_symlink() else [str(folder)]
    costs = ["--no_costs"] if rng.random() < 0.6 else []
    return {"inspect teacher": lambda: command.main([*argv, *costs])}


def _student_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from distill.publish import PublishConfig, publish
    from distill.students.export import load_student

    out = str(folder.parent / "published")
    things: dict[str, Any] = {"load": lambda: load_student(folder) and None}
    if rng.random() < 0.3:
        config = PublishConfig(student=str(folder), out=out)
        things["publish"] = lambda: publish(config) and None
    return things


COMMANDS = ("train", "encode", "synthesize", "pretrain", "evaluate", "serve", "interpret")


def _config_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from dreamshard.config import load_config

    words = ["--config", str(folder / "config.yaml")]
    if rng.random() < 0.3:
        key = rng.choice(["steps", "student.settings", "data.levels+", "__class__.x", "", "seed"])
        words.append(f"--{key}={rng.choice(TAGS).replace('MARK', str(base / 'EXECUTED'))}")
    classes = config_classes()
    verb = rng.choice(COMMANDS)

    def read() -> None:
        load_config(classes[verb], words, prog=f"dreamshard {verb}", description="x")

    return {f"config of {verb}": read}


def config_classes() -> dict[str, type]:
    """Return the configurations by command."""
    from distill.configs.evaluate import EvaluateConfig
    from distill.configs.train import TrainConfig
    from pipeline.learning.interpreting.config import InterpretConfig
    from pipeline.learning.pretraining.config import PretrainConfig
    from pipeline.request.config import EncodeConfig, SynthesizeConfig
    from pipeline.serve import ServeConfig

    found = (TrainConfig, EncodeConfig, SynthesizeConfig, PretrainConfig, EvaluateConfig)
    return dict(zip(COMMANDS, (*found, ServeConfig, InterpretConfig), strict=True))


def _run_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from distill.students.export import load_student
    from distill.train import train
    from dreamshard.console import report

    dataset = next((base / "small").glob("*/dataset.json")).parent
    if rng.random() < 0.5:
        page = str(folder.parent / "page.html")
        return {
            "report": lambda: report.main([str(folder), "--out", page]),
            "load": lambda: load_student(folder) and None,
        }
    # As if it had been killed before its student was kept.
    student = folder / "student"
    if not student.is_symlink():
        shutil.rmtree(student, ignore_errors=True)
    return {"train": lambda: train(bases.train_config(folder, str(dataset))) and None}


def _shards_things(folder: Path, base: Path, rng: random.Random) -> Things:
    from dreamshard.console.importing import command as importing

    words = [str(folder), "--root", str(folder.parent / "data")]
    if not (folder / "images").exists() or rng.random() < 0.3:
        words += ["--no_images", "--image_size", "28"]
    return {"import": lambda: importing.main(words)}


THINGS: dict[str, Callable[[Path, Path, random.Random], Things]] = {
    "dataset": _dataset_things,
    "teacher": _teacher_things,
    "student": _student_things,
    "config": _config_things,
    "run": _run_things,
    "shards": _shards_things,
}
