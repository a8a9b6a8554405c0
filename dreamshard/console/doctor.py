"""`dreamshard doctor`: look at this machine and name the next thing to fix."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import socket
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dreamshard import rng
from dreamshard.owner.home import expanded, user_home
from dreamshard.progress import begin
from dreamshard.versions import BASE, EXTRAS, all_versions, package_versions

Status = Literal["ok", "note", "fail"]
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
OUT_OF_THE_WAY = ("hf", "latent", "tar", "remote")  # extras that most people do well without
GIB = 1 << 30
MAX_SKEW_S = 5.0
CONNECT_S = 2.0
LEAST_MEMORY_GIB = 4  # the quick start with Ray, a teacher and a student needs about 3
LEAST_DISK_GIB = 5


@dataclasses.dataclass(frozen=True)
class Check:
    """Hold one finding: what was looked at, what was found, and what to do about it."""

    name: str
    value: str
    status: Status = "ok"
    advice: str = ""


def check_python() -> Check:
    """Look at the interpreter."""
    return Check("python", f"{platform.python_version()} at {sys.executable}")


def check_packages() -> list[Check]:
    """Look at the installed dependencies: the base, then each extra."""
    checks = []
    for extra, names in {"base": BASE, **EXTRAS}.items():
        versions = package_versions(names)
        missing = [name for name in names if name not in versions]
        value = ", ".join(f"{name} {versions.get(name, 'missing')}" for name in names)
        status: Status = "fail" if missing and extra == "base" else "note" if missing else "ok"
        advice = ""
        if missing and extra not in OUT_OF_THE_WAY:
            target = "dreamshard" if extra == "base" else f"dreamshard[{extra}]"
            advice = f"Install it: pip install '{target}'."
        checks.append(Check(f"packages: {extra}", value, status, advice))
    return checks


def check_random() -> Check:
    """Compare the random streams with those that datasets are made from."""
    if rng.is_golden():
        return Check("random streams", f"{rng.RNG_VERSION}, as pinned")
    advice = "This numpy draws other numbers: datasets made here differ. Use a tested version."
    return Check("random streams", f"not {rng.RNG_VERSION}", "fail", advice)


def check_cpu() -> Check:
    """Look at cores and at the instructions that matter for float32 and bfloat16 speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = _read_lines("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    known = set(fields.get("flags", "").split())
    flags = " ".join(flag for flag in CPU_FLAGS if flag in known) or "no AVX2"
    model = fields.get("model name", platform.processor() or platform.machine())
    return Check("cpu", f"{cores} cores, {model}, {flags}")


def check_memory() -> Check:
    """Look at free memory and at the shared memory that Ray keeps objects in."""
    amounts = dict(line.split(":", 1) for line in _read_lines("/proc/meminfo") if ":" in line)
    if "MemAvailable" not in amounts:
        return Check("memory", "unknown on this system", "note")
    total, free = (int(amounts[key].split()[0]) / (1 << 20) for key in ("MemTotal", "MemAvailable"))
    shared = shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").exists() else 0.0
    value = f"{free:.1f} of {total:.1f} GiB free, /dev/shm {shared:.1f} GiB"
    if free < LEAST_MEMORY_GIB:
        advice = f"Free some memory: the quick start needs about {LEAST_MEMORY_GIB} GiB."
        return Check("memory", value, "note", advice)
    return Check("memory", value)


def check_gpus() -> Check:
    """Look at the GPUs that torch can use."""
    has_driver = Path("/dev/nvidiactl").exists()
    if not package_versions(["torch"]):
        return Check("gpus", "unknown without torch", "note")
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return Check("gpus", ", ".join(f"{p.name} ({p.total_memory / GIB:.0f} GiB)" for p in gpus))
    if has_driver:
        advice = "Install a torch built for this driver's CUDA, or check CUDA_VISIBLE_DEVICES."
        return Check("gpus", "a driver, but torch sees none", "fail", advice)
    return Check("gpus", "none; everything runs on the CPU", "note")


def check_ray() -> Check:
    """Look at Ray and at whether its authentication is set, not left to what lies around."""
    versions = package_versions(["ray"])
    if not versions:
        return Check("ray", "not installed", "note", "Install it: pip install dreamshard.")
    mode = os.environ.get("RAY_AUTH_MODE")
    home = user_home()
    token = home is not None and (home / ".ray" / "auth_token").exists()
    address = os.environ.get("RAY_ADDRESS")
    value = f"{versions['ray']}, RAY_AUTH_MODE {mode or 'not set'}"
    value += f", token file {'there' if token else 'none'}"
    value += f", RAY_ADDRESS {address}" if address else ""
    if mode is None and (token or address):
        advice = (
            "Before `ray start` or `ray job submit`, set it in every shell: "
            "`export RAY_AUTH_MODE=token`, or `disabled` on a trusted network."
        )
        return Check("ray", value, "note", advice)
    return Check("ray", value)


def check_cluster() -> list[Check]:
    """Look whether the cluster of $RAY_ADDRESS answers; nothing where there is none."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return []
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_S).close()
    except OSError as error:
        advice = "Start it (`ray start --head`), or `unset RAY_ADDRESS` to run without a cluster."
        return [Check("ray cluster", f"{address}: {error.strerror or error}", "fail", advice)]
    return [Check("ray cluster", f"{address} answers")]


def check_root(root: str) -> list[Check]:
    """Look at a root, a folder or a URL: free space, speed of writing and reading, clock."""
    from dreamshard.errors import DataError
    from storage.fs.speed import SPEED_BYTES, measure_root

    free = ""
    try:
        if "://" not in root:
            path = expanded(root)
            path.mkdir(parents=True, exist_ok=True)
            left = shutil.disk_usage(path).free
            free = f"{left / GIB:.0f} GiB free, "
            if left < 2 * SPEED_BYTES:
                advice = f"Free space under {root}, or choose another root."
                return [Check("storage", f"{root}: {left / GIB:.1f} GiB free", "fail", advice)]
        speed = measure_root(root)
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = f"Make {root} writable, or choose another root."
        return [Check("storage", f"{root}: {reason}", "fail", advice)]
    write, read = speed.write_bytes_per_s / 1e6, speed.read_bytes_per_s / 1e6
    value = f"{root}: {free}write {write:.0f} MB/s, read {read:.0f} MB/s"
    short = bool(free) and left < LEAST_DISK_GIB * GIB
    advice = f"Free some space under {root}." if short else ""
    checks = [Check("storage", value, "note" if short else "ok", advice), _clock(speed.skew_s)]
    return [*checks, *([_conditional_put(root)] if "://" in root else [])]


def _conditional_put(root: str) -> Check:
    """Put one key twice below a URL, and see whether that is refused."""
    from storage.fs.open import open_files
    from storage.fs.proof import MEANING

    proof = open_files(root).proof(again=True)
    value = f"{proof} ({MEANING[proof]})"
    if proof == "proved":
        return Check("conditional put", value)
    advice = "One run at a time may write there. Use a store or setting that honours If-None-Match."
    return Check("conditional put", value, "note", advice)


def _clock(skew_s: float) -> Check:
    value = f"{abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} the root's"
    if abs(skew_s) > MAX_SKEW_S:
        advice = "Set the clock (chronyd, ntpd): times in records are wrong. No lease goes by it."
        return Check("clock", value, "note", advice)
    return Check("clock", value)


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def examine(root: str | None) -> list[Check]:
    """Run every check; the storage's only if a root is given."""
    checks = [check_python(), *check_packages(), check_random(), check_cpu(), check_memory()]
    checks += [check_gpus(), check_ray(), *check_cluster()]
    return [*checks, *check_root(root)] if root is not None else checks


def format_table(checks: Sequence[Check]) -> str:
    """Format the findings for people, at the width of their terminal."""
    name_width = max(len(check.name) for check in checks)
    width = max(60, shutil.get_terminal_size().columns)
    indent = " " * (name_width + 8)
    rows = []
    for check in checks:
        head = f"{check.status:<4}  {check.name:<{name_width}}  "
        row = textwrap.wrap(head + check.value, width, subsequent_indent=indent)
        hint = f"{indent}-> {check.advice}"
        rows += row + (textwrap.wrap(hint, width, subsequent_indent=indent) if check.advice else [])
    return "\n".join(rows)


def next_step(checks: Sequence[Check]) -> str:
    """Return the advice of the gravest finding, or what to do when all is well."""
    for status in ("fail", "note"):
        for check in checks:
            if check.status == status and check.advice:
                return f"{check.name}: {check.advice}"
    return "nothing to fix; try `dreamshard demo`"


def main(argv: Sequence[str]) -> int:
    """Print what was found and the next thing to fix; return 1 if something must be fixed."""
    parser = argparse.ArgumentParser(prog="dreamshard doctor", description=__doc__)
    parser.add_argument("--root", help="folder or URL to write and read 128 MiB in")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_args(argv)
    begin("doctor: looking at this machine")
    checks = examine(options.root)
    if options.json:
        rows = [dataclasses.asdict(check) for check in checks]
        report = {
            "schema": 1,
            "checks": rows,
            "next": next_step(checks),
            "versions": all_versions(),
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(f"{format_table(checks)}\n\nNext: {next_step(checks)}\n")
    return 1 if any(check.status == "fail" for check in checks) else 0
