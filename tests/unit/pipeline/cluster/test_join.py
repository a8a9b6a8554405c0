"""How many actors fit, and what Ray is told: without starting it."""

from __future__ import annotations

import os
import signal
import types
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
    tenths = Cluster("x", ({"CPU": 8.0, "fast": 0.3},))
    assert tenths.room(ActorSize(1, 0, {"fast": 0.1})) == 3, "0.3 / 0.1 is less than 3 in floats"


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
    assert variables["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


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


class FakeRay(types.ModuleType):
    """As much of Ray as joining takes; `refuses` is what `init` raises."""

    def __init__(self, *, running: bool = False, refuses: Exception | None = None) -> None:
        super().__init__("ray")
        self.running, self.refuses, self.ended = running, refuses, 0
        self.told: list[dict[str, object]] = []
        self.exceptions = types.ModuleType("ray.exceptions")
        self.exceptions.RayError = ConnectionRefusedError  # type: ignore[attr-defined]

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: object) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.told.append(options)

    def shutdown(self) -> None:
        self.ended += 1

    def nodes(self) -> list[dict[str, object]]:
        alive = {"Alive": True, "Resources": {"CPU": 4.0}}
        return [alive, {"Alive": False, "Resources": {"CPU": 8.0}}]


@pytest.mark.parametrize("embedded", [True, False])
def test_a_ray_loaded_before_finds_an_embedded_cluster_on_loopback(
    monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    constants = types.SimpleNamespace(ENABLE_RAY_CLUSTER=True)
    config = types.SimpleNamespace(initialize=lambda _: None)
    loaded = {
        "ray": FakeRay(),
        "ray._raylet": types.SimpleNamespace(Config=config),
        "ray._private.ray_constants": constants,
    }
    for name, module in loaded.items():
        monkeypatch.setitem(cluster.sys.modules, name, module)
    monkeypatch.setattr(cluster.os, "environ", {})
    cluster._set_environment(RayConfig(), joining=True, embedded=embedded)
    assert constants.ENABLE_RAY_CLUSTER is not embedded


def enter(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay, address: str | None = None, **given: float
) -> Cluster:
    monkeypatch.setitem(cluster.sys.modules, "ray", ray)
    monkeypatch.setitem(cluster.sys.modules, "ray.exceptions", ray.exceptions)
    monkeypatch.setattr(cluster, "_set_environment", lambda *_, **__: None)
    monkeypatch.setattr(cluster, "check_answers", lambda address, *, key: None)
    sizes: dict = {"num_cpus": 1, "num_gpus": 0, **given}
    with cluster.cluster(RayConfig(address=address), **sizes) as joined:
        inside = ray.ended
    assert ray.ended == inside + (not ray.running), "ended where we began it, and not before"
    return joined


@pytest.mark.parametrize("address", [None, "local"])
def test_without_an_address_a_cluster_is_started_and_ended(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray, here = FakeRay(), len(os.sched_getaffinity(0))
    joined = enter(monkeypatch, ray, address, num_cpus=here + 3)
    assert joined == Cluster(EMBEDDED, ({"CPU": 4.0},)) and ray.ended == 1
    (told,) = ray.told
    assert told["address"] == "local" and told["_node_ip_address"] == "127.0.0.1"
    assert (told["num_cpus"], told["num_gpus"]) == (here + 3, 0)
    again = FakeRay()
    enter(monkeypatch, again, address, num_gpus=1)
    assert (again.told[0]["num_cpus"], again.told[0]["num_gpus"]) == (here, None)


def test_a_cluster_that_is_there_is_joined_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = FakeRay()
    assert enter(monkeypatch, ray).where == "10.0.0.1:6379"
    assert enter(monkeypatch, ray, "10.0.0.2:6379").where == "10.0.0.2:6379"
    assert [told["address"] for told in ray.told] == ["10.0.0.1:6379", "10.0.0.2:6379"]
    assert ray.ended == 2


def test_a_session_of_the_users_own_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(running=True)
    assert enter(monkeypatch, ray).where == "the session's own"
    assert ray.ended == 0 and not ray.told


def test_nobody_at_the_address_is_a_matter_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error in (ConnectionError("refused"), RuntimeError("token"), ConnectionRefusedError("x")):
        with pytest.raises(
            ConfigError, match=r"ray\.address: got 10\.0\.0\.1:6379 .*Start one with"
        ):
            enter(monkeypatch, FakeRay(refuses=error), "10.0.0.1:6379")


class StoppedRay(FakeRay):
    """Get signals while it ends, or while it starts."""

    def __init__(self, *, starting: int = 0, ending: int = 0, times: int = 1) -> None:
        super().__init__()
        self.starting, self.ending, self.times = starting, ending, times

    def init(self, **options: object) -> None:
        for _ in range(self.times if self.starting else 0):
            os.kill(os.getpid(), self.starting)
        super().init(**options)

    def shutdown(self) -> None:
        if self.ending:
            os.kill(os.getpid(), self.ending)
        super().shutdown()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_ray_ends_is_heeded_once_it_has(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before, ray = signal.getsignal(number), StoppedRay(ending=number)
    with pytest.raises(KeyboardInterrupt):
        enter(monkeypatch, ray)
    assert ray.ended == 1 and signal.getsignal(number) is before


@pytest.mark.parametrize("times", [1, 2])
def test_a_stop_while_ray_starts_is_heeded_once_it_has_and_the_second_at_once(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = StoppedRay(starting=signal.SIGINT, times=times)
    with pytest.raises(KeyboardInterrupt):
        enter(monkeypatch, ray)
    assert len(ray.told) == (times == 1) and ray.ended == 1


class SlowRay(FakeRay):
    """Time out at its first starts, as Ray does on a loaded machine."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def init(self, **options: object) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise Exception("The current node timed out during startup.")
        super().init(**options)


def test_a_start_that_times_out_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    slow = SlowRay(1)
    assert enter(monkeypatch, slow).where == EMBEDDED
    assert len(slow.told) == 1 and "tried once more" in caplog.text
    with pytest.raises(ConfigError, match=r"ray: got .*timed out during startup.*2 times.*load is"):
        enter(monkeypatch, SlowRay(2))


@pytest.mark.parametrize(
    "error",
    [
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        Exception("The current node timed out during startup"),
        ValueError("Invalid address format: x"),
        TimeoutError("deadline"),
    ],
)
def test_whatever_ray_raises_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in (None, "10.0.0.1:6379"):
        with pytest.raises(ConfigError, match=type(error).__name__):
            enter(monkeypatch, FakeRay(refuses=error), address)


def test_a_token_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(monkeypatch, RayConfig(), joining=False, RAY_AUTH_TOKEN="mine")
    assert told["RAY_AUTH_TOKEN"] == "mine" and told["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("before", [{}, {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "7"}])
def test_the_environment_is_as_it_was_once_a_run_is_over(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str]
) -> None:
    constants = types.SimpleNamespace(ENABLE_RAY_CLUSTER=True)
    read: list[str | None] = []
    core = types.SimpleNamespace(initialize=lambda _: read.append(os.environ.get("RAY_AUTH_TOKEN")))
    ray = FakeRay()
    loaded = {
        "ray": ray,
        "ray.exceptions": ray.exceptions,
        "ray._raylet": types.SimpleNamespace(Config=core),
        "ray._private.ray_constants": constants,
    }
    for name, module in loaded.items():
        monkeypatch.setitem(cluster.sys.modules, name, module)
    monkeypatch.setattr(cluster.os, "environ", dict(before))
    config = RayConfig(auth_mode="token")
    with pytest.raises(KeyError), cluster.cluster(config, num_cpus=1, num_gpus=0):
        assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ["RAY_AUTH_TOKEN"]
        assert not constants.ENABLE_RAY_CLUSTER
        raise KeyError
    assert os.environ == before
    assert constants.ENABLE_RAY_CLUSTER and len(read) == 2 and read[1] is None
