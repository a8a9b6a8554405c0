"""What a killed driver leaves running ends soon; what is not of its cluster stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster.orphans import VARIABLE, marked, watched

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
DRIVER = """
import os, signal, subprocess, sys
from pipeline.cluster import orphans
apart = {"stdout": subprocess.DEVNULL, "start_new_session": True}
other = subprocess.Popen(["sleep", "60"], **apart)
with orphans.watched():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    agent = subprocess.Popen([sys.executable, "-c", deaf], **apart)
    server = subprocess.Popen(["sleep", "60"], **apart)
    print(os.environ[orphans.VARIABLE], other.pid, agent.pid, server.pid, flush=True)
    sys.stdin.readline()
"""


def start() -> tuple[subprocess.Popen[str], str, list[int]]:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    mark, *pids = driver.stdout.readline().split()
    return driver, mark, list(map(int, pids))


def test_a_killed_driver_leaves_nothing_of_its_cluster() -> None:
    driver, mark, (other, agent, server) = start()
    began = time.monotonic()
    while not {agent, server} <= set(marked(mark)):  # Popen returns before Linux shows what it has
        assert time.monotonic() - began < 20, "agents are not marked"
    assert other not in marked(mark)
    began = time.monotonic()
    driver.kill()
    driver.communicate(timeout=20)  # nothing holds its output
    while marked(mark):
        assert time.monotonic() - began < 20, "agents outlive their driver"
        time.sleep(0.05)
    os.kill(other, signal.SIGKILL)  # which was there all the time


def test_agents_left_by_an_end_cut_short_are_ended_too() -> None:
    driver, mark, (other, *_) = start()
    began = time.monotonic()
    driver.communicate("end\n", timeout=20)  # the context ends while they run
    while marked(mark):
        assert time.monotonic() - began < 20, "agents outlive their driver"
        time.sleep(0.05)
    os.kill(other, signal.SIGKILL)  # which was there all the time


TITLED = """
import os, shutil, subprocess, sys
from pathlib import Path
from pipeline.cluster import orphans

def agent(number):
    logs = Path(sys.argv[1], f"session_2026-11-27_16-40-09_181060_{number}", "logs")
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "agent.log").open("w") as log:  # an environment without the mark, as overwritten
        sleep = shutil.which("sleep")
        return subprocess.Popen(["ray::Agent", "60"], executable=sleep, env={}, stdout=log)

with orphans.watched():
    mine, other = agent(os.getpid()), agent(os.getpid() + 1)
    print(os.environ[orphans.VARIABLE], mine.pid, other.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_an_agent_that_wrote_its_title_over_the_mark_is_ended(tmp_path: Path, killed: bool) -> None:
    command = [sys.executable, "-c", TITLED, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        mark, mine, other = driver.stdout.readline().split()
        began = time.monotonic()
        while marked(mark) != [int(mine)]:
            assert time.monotonic() - began < 20, "the agent is not found"
        if killed:
            driver.kill()
        driver.communicate("end\n" if not killed else None, timeout=20)
    began = time.monotonic()
    while marked(mark):
        assert time.monotonic() - began < 20, "the agent outlives its driver"
        time.sleep(0.05)
    os.kill(int(other), signal.SIGKILL)  # of another driver, which was there all the time


def test_the_mark_is_of_the_context_alone() -> None:
    before = dict(os.environ)
    with watched():
        assert os.environ[VARIABLE].startswith(f"{os.getpid()}-")
    assert dict(os.environ) == before
