"""The GPU acceptance kit: every test marked gpu, then throughput; one JSON object as its last line.

    python benchmarks/gpu.py --out results                    # a GPU: under 8 minutes
    python benchmarks/gpu.py --device cpu --tiny --out /tmp/kit  # a rehearsal on two cores

While the tests run, the throughput parts load and compile; their clocks start when the tests are
done and every part is ready, one part after another. Figures are in `--out` as soon as there are
any.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"adm": "gpu_encode", "sd": "gpu_encode", "train": "gpu_train"}
"""Throughput parts and the scripts beside this one that measure them, in their order."""


def environment(device: str) -> dict[str, str]:
    """Return the environment of the parts: this checkout first, rehearsals told so."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = {"DREAMSHARD_GPU_TESTS": "cpu"} if device == "cpu" else {}
    return {**os.environ, "PYTHONPATH": path, **told}


def start(part: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a throughput part; it waits for its go file."""
    out = options.out
    command = [sys.executable, str(ROOT / "benchmarks" / f"{PARTS[part]}.py")]
    command += ["--cases", part] if part != "train" else []
    command += ["--device", options.device, "--go", str(out / f"{part}.go")]
    command += ["--out", str(out / f"{part}.json")]
    command += ["--tiny", "--rounds", "1"] * options.tiny
    with open(out / f"{part}.log", "wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(options.device), stdout=log, stderr=log
        )


def run_tests(options: argparse.Namespace) -> dict[str, Any]:
    """Run every test marked gpu; return counts, seconds and what failed."""
    report = options.out / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/gpu",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"--junitxml={report}", "--durations=5", *options.pytest.split()]
    started = time.perf_counter()
    with open(options.out / "tests.log", "wb") as log:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment(options.device), stdout=log,
                stderr=subprocess.STDOUT, timeout=options.test_seconds,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
            print(f"tests: stopped, not done within {options.test_seconds:.0f} s", flush=True)
    result: dict[str, Any] = {"exit": code, "seconds": time.perf_counter() - started}
    if not report.exists():
        return result
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    names = ("tests", "failures", "errors", "skipped")
    result |= {name: int(suite.get(name, 0)) for name in names}
    left_out = [str(each.get("message")) for each in suite.iter("skipped")]
    result["skipped_because"] = {reason: left_out.count(reason) for reason in left_out}
    broken = [c for c in suite.iter("testcase") if c.find("failure") is not None]
    result["failed"] = {
        f"{case.get('classname')}::{case.get('name')}": str(
            getattr(case.find("failure"), "attrib", {}).get("message", "")
        )[:400]
        for case in broken
    }
    return result


def wait_ready(running: dict[str, subprocess.Popen[bytes]], options: argparse.Namespace) -> None:
    """Wait until no part loads or compiles any more: it would disturb the others' clocks."""
    end = time.monotonic() + options.part_seconds
    while time.monotonic() < end and any(
        process.poll() is None and not (options.out / f"{part}.ready").exists()
        for part, process in running.items()
    ):
        time.sleep(0.2)


def finish(part: str, process: subprocess.Popen[bytes], options: argparse.Namespace) -> Any:
    """Start a part's clock and wait for it; return its figures, or the end of its log."""
    (options.out / f"{part}.go").touch()
    try:
        code = process.wait(options.part_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        code = -1
        print(f"{part}: stopped, not done within {options.part_seconds:.0f} s", flush=True)
    file = options.out / f"{part}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if code:
        end = (options.out / f"{part}.log").read_text(errors="replace")[-3000:]
        found |= {"exit": code, "log": end}
    return found


def machine(device: str) -> dict[str, Any]:
    """Describe what this ran on."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count(),
    }  # fmt: skip
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "memory_gb": card.total_memory / 1e9}
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="sizes of seconds on a CPU")
    parser.add_argument("--parts", nargs="*", default=["tests", *PARTS])
    parser.add_argument("--pytest", default="", help="further arguments of pytest, such as -n 4")
    parser.add_argument("--test_seconds", type=float, default=900)
    parser.add_argument("--part_seconds", type=float, default=900)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        for word in ("go", "ready"):
            (options.out / f"{part}.{word}").unlink(missing_ok=True)
    began = time.perf_counter()
    result: dict[str, Any] = {
        "what": "GPU acceptance kit", "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "tiny": options.tiny, "machine": machine(options.device),
    }  # fmt: skip
    running = {part: start(part, options) for part in PARTS if part in options.parts}
    try:
        if "tests" in options.parts:
            result["tests"] = run_tests(options)
            print(f"tests: {result['tests']}", flush=True)
        wait_ready(running, options)
        for part, process in running.items():
            result[part] = finish(part, process, options)
            result["seconds"] = time.perf_counter() - began
            (options.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
    failed = result.get("tests", {}).get("exit", 0) or any("exit" in result[p] for p in running)
    print(json.dumps(result))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
