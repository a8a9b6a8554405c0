"""How many actors fit, and what Ray is told: without starting it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError
from pipeline.cluster import join as cluster
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import EMBEDDED, Cluster
from pipeline.cluster.worker import ActorSize, worker_env


@pytest.mark.parametrize(
    ("cpus", "gpus", "num_cpus", "num_gpus", "room"),
    [
        (8, 0, 2, 0, 4),
        (1, 0, 2, 0, 1),
        (64, 2, 1, 1.0, 2),
        (64, 2, 1, 0.5, 4),
        (64, 2, 1, 0.4, 4),
        (64, 4, 1, 2.0, 2),
        (2, 4, 1, 0.25, 2),
    ],
)
def test_room(cpus: int, gpus: int, num_cpus: int, num_gpus: float, room: int) -> None:
    there = Cluster("x", ({"CPU": cpus, "GPU": gpus},))
    assert there.room(ActorSize(num_cpus, num_gpus)) == room and there.num_gpus == gpus


def test_room_on_unlike_nodes() -> None:
    head, big, small = (
        {"CPU": 8.0},
        {"CPU": 16.0, "GPU": 2.0, "fast": 1.0},
        {"CPU": 3.0, "GPU": 1.0},
    )
    there = Cluster("x", (head, big, small))
    assert there.room(ActorSize(1, 0)) == 27
    assert there.room(ActorSize(2, 0)) == 13  # not split over two nodes
    assert there.room(ActorSize(1, 0.5)) == 6
    assert there.room(ActorSize(1, 0.5, {"fast": 0.25})) == 4
    assert there.room(ActorSize(1, 0, {"fast": 0.001})) == 16


def test_as_many_actors_as_asked_for_or_as_fit() -> None:
    ours = Cluster(EMBEDDED, ({"CPU": 4.0, "GPU": 1.0},))
    assert ours.actors(ActorSize(2)) == 2 and ours.actors(ActorSize(2), asked=7) == 7
    assert ours.actors(ActorSize(1, 1.0)) == 1
    with pytest.raises(ConfigError, match="gpus_per_actor: got 2.0, allowed 1 at most on this"):
        ours.actors(ActorSize(1, 2.0), asked=1)
    joined = Cluster("10.0.0.1:6379", ({"CPU": 4.0},))
    assert joined.actors(ActorSize(1, 2.0)) == 1, "it may be waiting for a node with some"


def test_an_actor_is_started_with_what_it_takes() -> None:
    options = ActorSize(3, 0.5, {"fast": 0.25}).options()
    environment = options.pop("runtime_env")["env_vars"]
    assert options == {"num_cpus": 3, "num_gpus": 0.5, "resources": {"fast": 0.25}}
    assert environment["OMP_NUM_THREADS"] == "3"
    assert ActorSize(3).count(5) == 5 and ActorSize(10**6).count(0) == 1


def test_actors_get_their_threads_and_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    variables = worker_env(3)
    root, rest = variables["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "pipeline" / "cluster").exists() and rest == "/somewhere"
    assert {variables[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}


def environment(
    monkeypatch: pytest.MonkeyPatch,
    config: RayConfig,
    *,
    joining: bool,
    embedded: bool = False,
    **before: str,
) -> dict[str, str]:
    fake = dict(before)
    monkeypatch.setattr(cluster.os, "environ", fake)
    monkeypatch.setattr(cluster.sys, "modules", {})
    cluster._set_environment(config, joining=joining, embedded=embedded)
    return fake


def test_an_embedded_cluster_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(monkeypatch, RayConfig(), joining=False)
    assert told["RAY_AUTH_MODE"] == "token" and len(told["RAY_AUTH_TOKEN"]) == 32
    assert told["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # binds to loopback only


def test_settings_of_the_user_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(monkeypatch, RayConfig(), joining=False, RAY_AUTH_MODE="disabled")
    assert told["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in told
    told = environment(monkeypatch, RayConfig(auth_mode="disabled"), joining=False)
    assert told["RAY_AUTH_MODE"] == "disabled"


def test_joining_decides_nothing_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(monkeypatch, RayConfig(), joining=True)
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *cluster.EMBEDDED_ONLY} & set(told)
    told = environment(monkeypatch, RayConfig(auth_mode="token"), joining=True)
    assert told["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in told


def test_another_process_joins_an_embedded_cluster_where_it_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = environment(monkeypatch, RayConfig(), joining=True, embedded=True)
    assert told["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # 127.0.0.1 stays 127.0.0.1
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(told)
