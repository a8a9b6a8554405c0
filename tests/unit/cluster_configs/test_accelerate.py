"""The Accelerate configs, read by Accelerate itself."""

from __future__ import annotations

from pathlib import Path

import pytest

config_args = pytest.importorskip("accelerate.commands.config.config_args")
FOLDER = Path(__file__).resolve().parents[3] / "cluster_configs" / "accelerate"
WANTED = {
    "cpu.yaml": ("NO", 1, 1, True),
    "one_gpu.yaml": ("NO", 1, 1, False),
    "many_gpus.yaml": ("MULTI_GPU", 1, 8, False),
    "multi_node.yaml": ("MULTI_GPU", 2, 16, False),
}


def test_every_file_is_checked() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_accelerate_reads_it(name: str) -> None:
    config = config_args.load_config_from_file(str(FOLDER / name))
    kind, machines, processes, cpu = WANTED[name]
    assert str(config.distributed_type.value) == kind
    assert (config.num_machines, config.num_processes, config.use_cpu) == (machines, processes, cpu)
    assert config.mixed_precision == "no", "the run's own setting decides, another is refused"
    assert config.num_processes % config.num_machines == 0
