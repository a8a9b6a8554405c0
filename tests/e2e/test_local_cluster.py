"""cluster_configs/ray/local.sh and the README's line: every port of Ray's is on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster_configs" / "ray" / "local.sh"
NODES = 2
START_S = 240
LOOPBACK = re.compile(r"(127\.0\.0\.1|\[::ffff:127\.0\.0\.1\]|\[::1\]):\d+")

needs_ss = pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) is not installed")


def free_port() -> int:
    """Return a port with which the dashboard's and the client's, which follow from it, are free."""
    for port in range(17000, 28000, 37):
        try:
            for offset in (0, 1886, 3622):
                with socket.create_server(("127.0.0.1", port + offset)):
                    pass
        except OSError:
            continue
        return port
    pytest.skip("no free ports")


def family(root: int) -> set[int]:
    """Return a process and all below it."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listeners(processes: set[int]) -> list[tuple[str, str]]:
    """Return address and program of every TCP and UDP port that some processes listen on."""
    output = subprocess.run(["ss", "-lntupH"], capture_output=True, text=True, check=True).stdout
    return [
        (line.split()[4], program)
        for line in output.splitlines()
        for program, number in re.findall(r'\("([^"]+)",pid=(\d+)', line)
        if int(number) in processes
    ]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The script's cluster: its process number and its port."""
    folder, port = Path(f"/tmp/dsl{os.getpid()}"), free_port()
    folder.mkdir()
    log = tmp_path_factory.mktemp("local") / "log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), str(NODES), "1", str(port)],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while f"{NODES} nodes of" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@needs_ss
def test_every_port_is_on_loopback(cluster: tuple[int, int]) -> None:
    root, port = cluster
    deadline = time.monotonic() + START_S
    while True:  # the nodes come one by one, and their agents a little later
        found = listeners(family(root))
        programs = [program for _, program in found]
        agents = sum(program.startswith("ray::DashboardA") for program in programs)
        if programs.count("raylet") >= 2 * NODES and agents >= 2 * NODES:
            break
        assert time.monotonic() < deadline, found
        time.sleep(2)
    assert (f"[::ffff:127.0.0.1]:{port}", "gcs_server") in found
    assert not [pair for pair in found if not LOOPBACK.fullmatch(pair[0])]
