"""Measure what other work on the machine costs training, by how threads wait for each other.

    python benchmarks/busy.py [--threads 2] [--busy 2] [--steps 8]

Each line is a process of its own that trains the digits teacher's network, alone and beside busy
ones, in turn. What counts is images per second of CPU: beside others it should stay as it is alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dreamshard.errors import POLICY

BATCH = 64
SPIN = "while True: pass"
WAITS = {"asleep": {POLICY: "passive"}, "as OpenMP itself": {}}


def train(threads: int, steps: int) -> dict[str, float]:
    """Train for some steps; return images per second, of time and of CPU."""
    import torch

    from pipeline.learning.device import on_device
    from pipeline.learning.pretraining.config import UNetConfig
    from pipeline.learning.pretraining.network import build_network

    torch.set_num_threads(threads)
    network = build_network(UNetConfig(), sample_size=16, classes=0, seed=0)
    network = on_device(network, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters())
    x = torch.randn(BATCH, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    t = torch.full((BATCH,), 100)
    for step in range(steps + 2):
        if step == 2:  # what is compiled and allocated at first is not counted
            wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        network(x, t, return_dict=False)[0].square().mean().backward()
        optimizer.step()
    images = steps * BATCH
    return {
        "img_per_s": images / (time.perf_counter() - wall),
        "img_per_cpu_s": images / (time.process_time() - cpu),
    }


def measure(policy: Mapping[str, str], threads: int, busy: int, steps: int) -> dict[str, float]:
    """Train in a process of its own beside so many busy ones."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    try:
        environment = {key: value for key, value in os.environ.items() if key != POLICY}
        environment |= {**policy, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--one", "--threads", str(threads)]
        done = subprocess.run(
            [*command, "--steps", str(steps)], env=environment, check=True, stdout=subprocess.PIPE
        )
        return json.loads(done.stdout)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Measure every combination twice, in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--one", action="store_true", help="train here and print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(train(given.threads, given.steps)))
        return
    for _ in range(2):
        for name, policy in WAITS.items():
            for busy in (0, given.busy):
                found = measure(policy, given.threads, busy, given.steps)
                figures = {key: round(value, 1) for key, value in found.items()}
                print(json.dumps({"waiting": name, "busy": busy, **figures}), flush=True)


if __name__ == "__main__":
    main()
