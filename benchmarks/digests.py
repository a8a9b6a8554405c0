"""Digest what the commands make and say, to show that a restructuring changed none of it.

    python benchmarks/digests.py [--only GROUP ...] [--cifar PARQUET] [--parity FOLDER]
        [--tree CHECKOUT] [--compare FILE [--allow PATTERN ...]] [--out FILE] [--list]

Makes small things with the commands of one checkout (this one, or `--tree`), in a temporary folder,
one process per group, and digests them: array files and tar shards byte by byte, both keys,
descriptions, commit records, manifest rows, teachers, students, metrics, results of evaluations;
texts and exit codes of commands that fail; every recipe's printed configuration. Only doors that
outlive a move are used: `python -m dreamshard`, `dreamshard.open_dataset`, `load_teacher`.
`--compare` exits 1 and names each entry that differs; `--allow` takes patterns (`fnmatch` over the
dotted names) of differences that are meant. The last line of stdout is one JSON object.

Left out, because it differs between two runs of the same code: times, rates, host names, run ids,
process numbers, versions of libraries, progress lines, temporary folders, warnings of libraries,
how many parts a manifest was rolled up into, optimizer.pt (a pickle) and pictures of curves. Texts
of `--help` are left out, too: settings may go; what a setting means is in `--print_config`, of
which every key's value is compared. Figures of floating point depend on processor and libraries:
compare runs of one machine (`made_with` says which), one thread each. Students train with
`channels_last: false`: PyTorch 2.15's CPU backward of a 1x1 convolution of stride 2 with few
channels in that order overwrites memory. All groups share one Ray, started here, because starting
one takes longer than using it; that a command starts its own is left to the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and __spec__ is None:  # by path; its workers run it with -m
    sys.path[0] = str(ROOT)

import argparse
import difflib
import fnmatch
import json
import os
import platform
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module, metadata
from typing import Any

GROUPS: dict[str, tuple[str, str]] = {
    "config": ("benchmarks.digests_told:config", "--print_config of every verb and recipe"),
    "errors": ("benchmarks.digests_told:errors", "configurations and teachers that are refused"),
    "storage": ("benchmarks.digests_made:storage", "formats x codecs, sources, growth, export"),
    "verbs": ("benchmarks.digests_told:verbs", "what is said of datasets, whole and damaged"),
    "teachers": ("benchmarks.digests_made:teachers", "pretrain, diffusion features, samples"),
    "labels": ("benchmarks.digests_trained:labels", "interpreters, soft labels, joined datasets"),
    "students": ("benchmarks.digests_trained:students", "methods, students, resumed runs"),
    "evaluate": ("benchmarks.digests_trained:evaluate", "probes, fine-tuning, publishing"),
    "stream": ("benchmarks.digests_trained:stream", "kinds live and stream, serve, keep"),
    "cifar": ("benchmarks.digests_made:cifar", "the CIFAR-10 teacher; needs --cifar"),
    "parity": ("benchmarks.digests_made:parity", "BigGAN and ADM checkpoints; needs --parity"),
}
"""Name -> (`module:function`, what it covers)."""
RAY_GROUPS = ("storage", "verbs", "teachers", "labels", "students", "stream", "cifar", "parity")
GROUP_S = 3600
RAY_STARTS = 10
LIBRARIES = ("numpy", "torch", "zarr", "pyarrow", "diffusers", "timm", "ray", "pydantic")


def main() -> int:
    options = read_options()
    if options.list:
        print("\n".join(f"{name:<9} {text}" for name, (_, text) in GROUPS.items()))
        return 0
    if options.hold_ray:
        import_module("benchmarks.digests_tools").hold_ray(options.folder)
        return 0
    if options.worker:
        return work(options)
    result = measure(options)
    code = 1 if result["failed"] else 0
    if options.compare:
        before = json.loads(options.compare.read_text(encoding="utf-8"))
        code = max(code, report(before, result, options.allow))
    print(json.dumps(result, sort_keys=True))
    return code


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to measure (this one)")
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10's training images")
    parser.add_argument("--parity", type=Path, help="folder of official checkpoints' fixtures")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier run's JSON")
    parser.add_argument("--allow", nargs="+", default=[], metavar="PATTERN")
    parser.add_argument("--out", type=Path, help="file to write the JSON to")
    parser.add_argument("--jobs", type=int, default=1, help="groups at a time (1)")
    parser.add_argument("--list", action="store_true", help="list the groups")
    parser.add_argument("--worker", choices=list(GROUPS), help=argparse.SUPPRESS)
    parser.add_argument("--hold-ray", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("tree", "cifar", "parity"):
        path = getattr(options, name)
        if path is not None:
            if not path.exists():
                parser.error(f"--{name}: {path} does not exist")
            setattr(options, name, path.resolve())
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the groups, each in a process and a folder of its own; `--out` grows with each."""
    skipped = {
        name: f"not given: --{name}"
        for name in ("cifar", "parity")
        if name in options.only and getattr(options, name) is None
    }
    names = [name for name in options.only if name not in skipped]
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}", file=sys.stderr)
    result: dict[str, Any] = {"made_with": made_with(), "skipped": skipped}
    result |= {"groups": {}, "seconds": {}, "failed": {}}
    joining = any(name in RAY_GROUPS for name in names)
    with (
        tempfile.TemporaryDirectory(prefix="digests-") as temporary,
        ray_node(Path(temporary), options) if joining else nullcontext({}) as ray,
    ):

        def one(name: str) -> None:
            folder = Path(temporary).resolve() / name
            folder.mkdir()
            print(f"{name}: begun", file=sys.stderr, flush=True)
            began = time.monotonic()
            try:
                result["groups"][name] = run_group(name, folder, options, ray)
            except (RuntimeError, subprocess.TimeoutExpired, OSError, ValueError) as error:
                result["failed"][name] = shortened(str(error))
            result["seconds"][name] = round(time.monotonic() - began, 1)
            state = f"FAILED {result['failed'][name]}" if name in result["failed"] else "done"
            print(f"{name}: {state} in {result['seconds'][name]} s", file=sys.stderr, flush=True)
            keep(result, options.out)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, names))
    return result


def keep(result: Mapping[str, Any], path: Path | None) -> None:
    """Write what there is so far."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def ray_node(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Keep one Ray node of the tree for all groups; yield the environment that joins it.

    Raises:
        RuntimeError: it does not start: Ray gives a node 30 seconds, too few on a busy machine.
    """
    from benchmarks.digests_tools import RAY

    secret = {**RAY, "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    line = [sys.executable, "-m", "benchmarks.digests", "--hold-ray", "--folder", str(folder)]
    place, address = folder / "ray", folder / "address"
    place.mkdir()
    for start in range(RAY_STARTS):
        process = subprocess.Popen(  # what a failed start leaves behind dies with its process
            line,
            cwd=place,
            env=environment(options) | secret,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            stderr=subprocess.DEVNULL,
        )
        while not address.exists() and process.poll() is None:
            time.sleep(0.2)
        if address.exists():
            break
        print(f"ray: start {start + 1} failed", file=sys.stderr, flush=True)
    else:
        raise RuntimeError(f"Ray did not start in {RAY_STARTS} tries")
    try:
        yield secret | {"RAY_ADDRESS": address.read_text(encoding="utf-8")}
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the processes measured: the tree's packages, one thread."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAY_", "DREAMSHARD_", "PYTEST", "RANK", "WORLD_SIZE"))
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(options.tree), str(ROOT)])),
        "PYTHONWARNINGS": "ignore",
        # Compiled once: a checkout's `make` installs without bytecode, and some shells write none.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "digests-bytecode"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def run_group(name: str, folder: Path, options: argparse.Namespace, ray: Mapping[str, str]) -> Any:
    """Run one group in a process whose packages are those of the tree."""
    line = [sys.executable, "-m", "benchmarks.digests", "--worker", name, "--folder", str(folder)]
    for option in ("tree", "cifar", "parity"):
        if (path := getattr(options, option)) is not None:
            line += [f"--{option}", str(path)]
    place = folder / "w"
    place.mkdir()
    variables = environment(options) | (dict(ray) if name in RAY_GROUPS else {})
    done = subprocess.run(
        line, cwd=place, env=variables, capture_output=True, text=True, timeout=GROUP_S
    )
    result = folder / "result.json"
    if done.returncode or not result.exists():
        raise RuntimeError(f"code {done.returncode}: {shortened(done.stderr)}")
    return json.loads(result.read_text(encoding="utf-8"))


def shortened(text: str) -> str:
    """Return the ends of a long text."""
    return text if len(text) < 5000 else f"{text[:2000]}\n...\n{text[-2500:]}"


def work(options: argparse.Namespace) -> int:
    """Run one group in this process; its result goes to a file, for libraries print, too."""
    from benchmarks.digests_tools import Door, check_tree

    check_tree(options.tree)
    module, _, function = GROUPS[options.worker][0].partition(":")
    place = options.folder / "w"
    sys.argv = ["dreamshard"]  # Ray puts the folder of sys.argv[0] on its workers' path
    door = Door(options.tree, place, {"cifar": options.cifar, "parity": options.parity})
    value = getattr(import_module(module), function)(door)
    text = json.dumps(value, default=str, sort_keys=True)
    (options.folder / "result.json").write_text(text, encoding="utf-8")
    return 0


def made_with() -> dict[str, str]:
    """Say on what: figures of floating point depend on it."""
    model = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "?")
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"processor": model, "python": platform.python_version(), **versions}


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON by dotted names."""
    if isinstance(value, dict) and value:
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        pairs = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in pairs:
        found |= flatten(item, f"{name}.{key}" if name else key)
    return found


def report(before: Mapping[str, Any], after: Mapping[str, Any], allowed: Sequence[str]) -> int:
    """Print what differs between two runs; return 1 if something does that is not allowed."""
    if before["made_with"] != after["made_with"]:
        print(f"made with other things: {before['made_with']}, now {after['made_with']}")
    shared = [name for name in after["groups"] if name in before["groups"]]
    for name in sorted({*before["groups"], *after["groups"]} - {*shared}):
        print(f"{name}: not in both, not compared")
    differing = meant = count = 0
    for group in shared:
        old, new = flatten(before["groups"][group], group), flatten(after["groups"][group], group)
        for name in sorted(old.keys() | new.keys()):
            count += 1
            if name in old and name in new and old[name] == new[name]:
                continue
            if any(fnmatch.fnmatch(name, pattern) for pattern in allowed):
                meant += 1
                continue
            differing += 1
            print(f"DIFFERS {name}\n{_difference(old, new, name)}")
    print(f"{count:,} entries compared, {differing:,} differ, {meant:,} differ as allowed")
    return 1 if differing or not shared else 0


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    if name not in old or name not in new:
        return (
            f"  only {'after' if name in new else 'before'}: {new.get(name, old.get(name))!r:.300}"
        )
    was, now = str(old[name]), str(new[name])
    if not any("\n" in text or len(text) > 80 for text in (was, now)):
        return f"  before {was}\n  after  {now}"
    lines = difflib.unified_diff(was.split("\n"), now.split("\n"), "before", "after", n=0)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
