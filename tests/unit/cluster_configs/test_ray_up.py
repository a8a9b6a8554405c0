"""The `ray up` files against the schema that ships with Ray, and what it does not check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ray = pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[3]
FILES = [ROOT / "cluster_configs" / "ray" / name for name in ("aws.yaml", "gcp.yaml")]
SCHEMA = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


def test_ray_takes_it(config: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert not [error.message for error in Draft7Validator(schema).iter_errors(config)]


def test_authentication_is_on_and_the_dashboard_on_loopback(config: dict[str, Any]) -> None:
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token" in line
    assert "--dashboard-host 127.0.0.1" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


def test_ray_and_its_jobs_find_the_environments_python(config: dict[str, Any]) -> None:
    """A job's `python` is looked up on the PATH that `ray start` had."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (line,) = [line for line in config[key] if "ray start" in line]
        assert "PATH=$HOME/venv/bin:$PATH " in line.partition("ray start")[0]


def test_workers_are_spot_and_come_by_demand(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(types) == {"head", "teacher"}
    assert types["head"]["resources"]["CPU"] == 0
    teacher = types["teacher"]
    assert teacher["min_workers"] == 0 < teacher["max_workers"] <= config["max_workers"]
    text = json.dumps(teacher["node_config"])
    assert '"MarketType": "spot"' in text or '"preemptible": true' in text
