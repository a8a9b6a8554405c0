"""What `benchmarks/digests.py` works with: the command line as a function, and digests of files.

Nothing of the packages is imported by name: commands run through `python -m dreamshard`, in this
process or in one of their own, and what they leave is read with numpy, pyarrow and safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DIGEST_BYTES = 12
COMMAND_S = 900.0
TIMES = ("created", "seconds", "time", "img_per_s", "wait_percent", "memory_gb")
VOLATILE = ("host", "run_id", "libraries", "versions", *TIMES)
"""Keys of JSON and columns of tables that say when, where and with what, wherever they stand."""
PACKAGES = ("dreamshard", "storage", "pipeline", "distill")
_NOISE = (
    re.compile(r"^\S.*: [\d,]+/[\d,]+ \S+ \([\d.]+ %\)"),  # progress: as often as it shows
    re.compile(r"^no actor is ready yet"),
    re.compile(r"Warning: |^  warnings\.warn\(|^\s+return forward_call\(|^\(\w+ pid=|^\[rank\d"),
    re.compile(rf"^\| ({'|'.join(TIMES)}) \|"),  # of a student's README
    re.compile(r"^\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d|INFO worker\.py"),  # logs of libraries
)
_FIGURES = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}"), "<run>"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "<time>"),
    (re.compile(r"[\d.,]+(e[+-]?\d+)? (img/s|s\b|GB free|MB/s)"), r"<n> \2"),
    (re.compile(r"\([\d.]+ MB\)"), "(<n> MB)"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?"), "<date>"),
    (re.compile(r"\bpid \d+|process \d+"), "<pid>"),
    (re.compile(r"0x[0-9a-f]{6,}|127\.0\.0\.1:\d+"), "<address>"),
    (re.compile(r"one of the \d+ settings"), "one of the <n> settings"),
)


@dataclass
class Said:
    """What a command said; `text` is normalised."""

    code: int
    out: str
    err: str

    def record(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {"code": self.code, "out": self.out, "err": self.err}


@dataclass
class Door:
    """Run commands of one tree in one folder.

    Args:
        tree: root of the checkout measured.
        folder: where commands run; everything they make lies below.
        options: those of `benchmarks/digests.py` that groups look at.
    """

    tree: Path
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *words: object) -> Said:
        """Run `python -m dreamshard WORDS` inside this process."""
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["dreamshard", *map(str, words)]
        try:
            with (
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = _run_here(err)
        finally:
            sys.argv = before
        return Said(code, self.normal(out.getvalue()), self.normal(err.getvalue()))

    def apart(self, *words: object, stdin: str | None = None) -> Said:
        """Run the same in a process of its own."""
        line = [sys.executable, "-m", "dreamshard", *map(str, words)]
        done = subprocess.run(
            line, cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=COMMAND_S
        )
        return Said(done.returncode, self.normal(done.stdout), self.normal(done.stderr))

    def must(self, *words: object) -> Said:
        """Run a command that has to work.

        Raises:
            RuntimeError: it did not; nothing after it would mean anything.
        """
        said = self(*words)
        if said.code:
            raise RuntimeError(f"dreamshard {' '.join(map(str, words))}: {said.code}\n{said.err}")
        return said

    def normal(self, text: str) -> str:
        """Return text without places, times, rates, progress lines and warnings of libraries."""
        places = {str(self.folder): "<tmp>", str(self.tree): "<tree>", sys.prefix: "<venv>"}
        places |= {str(path): f"<{name}>" for name, path in self.options.items() if path}
        for place in sorted(places, key=len, reverse=True):
            text = text.replace(place, places[place])
        for pattern, by in _FIGURES:
            text = pattern.sub(by, text)
        lines = [line.rstrip() for line in re.split(r"[\n\r]", text)]
        kept = [line for line in lines if not any(noise.search(line) for noise in _NOISE)]
        return "\n".join(kept).strip("\n")


def _run_here(err: io.StringIO) -> int:
    try:
        runpy.run_module("dreamshard", run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            err.write(f"{stop.code}\n")
            return 1
        return int(stop.code or 0)
    except Exception as error:  # a traceback on the command line: exit code 1
        err.write(f"raised {type(error).__name__}: {error}\n")
        return 1
    return 0


def check_tree(tree: Path) -> None:
    """Refuse to measure another tree than the one asked for.

    Raises:
        RuntimeError: a package comes from elsewhere.
    """
    for name in PACKAGES:
        module = __import__(name)
        if Path(str(module.__file__)).resolve().parents[1] != tree:
            raise RuntimeError(f"{name} is {module.__file__}, not of {tree}")


RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "AUTOSCALER_METRIC_PORT": "0",
    "DASHBOARD_METRIC_PORT": "0",
    "RAY_worker_niceness": "0",
}
"""What Ray reads, in its node and in those who join: authenticated, bound to loopback, quiet."""


def hold_ray(folder: Path) -> None:
    """Start a Ray node in this process, say where it is, and keep it until stdin ends."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=0,
        object_store_memory=512 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    part = folder / "address.partial"
    part.write_text(ray.get_runtime_context().gcs_address, encoding="utf-8")
    part.rename(folder / "address")
    sys.stdin.read()
    ray.shutdown()


@contextlib.contextmanager
def one_ray(tree: Path) -> Iterator[None]:
    """Join the run's Ray for all commands of this process; check the tree of its workers."""
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.get(ray.remote(_check_there).remote(str(tree), PACKAGES))
        yield
    finally:
        ray.shutdown()


def _check_there(tree: str, packages: Sequence[str]) -> None:
    for name in packages:
        file = str(__import__(name).__file__)
        if os.path.dirname(os.path.dirname(os.path.realpath(file))) != tree:
            raise RuntimeError(f"in a worker, {name} is {file}, not of {tree}")


def digest(*parts: bytes | memoryview) -> str:
    """Return a digest of byte strings, each with its length."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        view = memoryview(part)
        state.update(view.nbytes.to_bytes(8, "little"))
        state.update(view)
    return state.hexdigest()


def digest_json(value: object) -> str:
    """Return a digest of JSON values."""
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def steady(value: Any, normal: Any = str) -> Any:
    """Return JSON values without what says when and where; texts through `normal`."""
    if isinstance(value, dict):
        return {k: steady(v, normal) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [steady(item, normal) for item in value]
    return normal(value) if isinstance(value, str) else value


def array_record(values: np.ndarray) -> dict[str, object]:
    """Return an array's digest, and its norm to see how far another one is."""
    flat = np.ascontiguousarray(values)
    norm = float(np.linalg.norm(flat.astype(np.float64).ravel()))
    shape = "x".join(map(str, flat.shape))
    kept = f"{norm:.6g}" if math.isfinite(norm) else str(norm)
    return {"digest": digest(flat.tobytes()), "is": f"{flat.dtype} {shape}", "norm": kept}


def weights_record(path: Path) -> dict[str, object]:
    """Return one digest of a safetensors file's tensors by name, and their norm."""
    from safetensors import safe_open

    parts: list[bytes] = []
    squares, count = 0.0, 0
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            raw = tensor.contiguous().view(-1).view(dtype=_bytes()).numpy()
            parts += [name.encode(), f"{tensor.dtype} {tuple(tensor.shape)}".encode(), raw.data]
            squares += float(tensor.double().square().sum())
            count += 1
    return {"digest": digest(*parts), "tensors": count, "norm": f"{math.sqrt(squares):.6g}"}


def _bytes() -> Any:
    import torch

    return torch.uint8


def metrics_record(path: Path) -> list[dict[str, object]]:
    """Return the lines of a metrics.jsonl without times."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def dataset_record(folder: Path, door: Door) -> dict[str, object]:
    """Return what a dataset's folder holds: keys, description, arrays, commits, manifest."""
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    kept = steady(about, door.normal)
    return {
        "name": folder.name,
        "content_key": about["content_key"],
        "layout_key": about["layout_key"],
        "description": {key: digest_json(value) for key, value in kept.items()},
        "files": _files_record(folder),
        "commits": _commits_record(folder),
        "manifest": _manifest_record(folder),
    }


def datasets_record(root: Path, door: Door) -> dict[str, object]:
    """Return the records of all datasets under a root, by the first part of their names."""
    found = sorted(path.parent for path in root.glob("*/dataset.json"))
    return {folder.name.rsplit("-", 2)[0]: dataset_record(folder, door) for folder in found}


def _files_record(folder: Path) -> dict[str, str]:
    """Digest files by array or shard; of who asked for how much, without when."""
    groups: dict[str, list[bytes]] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if not path.is_file() or place.parts[0] in ("commits", "manifest", "staging", "leases"):
            continue
        if place.name == "dataset.json" or place.parts[0].startswith("."):
            continue
        data = path.read_bytes()
        if place.parts[0] == "requests":
            data = digest_json(steady(json.loads(data))).encode()
        name = "/".join(place.parts[:2])
        groups.setdefault(name, []).extend([str(place).encode(), data])
    return {name: digest(*parts) for name, parts in groups.items()}


def _commits_record(folder: Path) -> str:
    records = {
        str(path.relative_to(folder)): steady(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "commits").rglob("*.json"))
    }
    return f"{len(records)} {digest_json(records)}"


def _manifest_record(folder: Path) -> dict[str, str]:
    """Digest the rows of all parts: how many parts there are depends on the clock."""
    import pyarrow.parquet as pq

    found: dict[str, str] = {}
    for name, pattern in (("samples", "part-*.parquet"), ("units", "_units/*.parquet")):
        rows: list[dict[str, Any]] = []
        for path in sorted((folder / "manifest").glob(pattern)):
            rows += pq.read_table(path).to_pylist()
        rows = [{k: v for k, v in row.items() if k not in VOLATILE} for row in rows]
        rows.sort(key=lambda row: json.dumps(row, default=str, sort_keys=True))
        found[name] = f"{len(rows)} {digest_json(rows)}"
    return found
