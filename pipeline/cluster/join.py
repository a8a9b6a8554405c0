"""Join the Ray cluster there is, or start one inside this process for as long as the run takes."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign import trusted
from pipeline.cluster.config import RayConfig
from pipeline.cluster.orphans import watched
from pipeline.cluster.outcomes import one_line
from pipeline.cluster.reach import check_answers, check_folder
from pipeline.cluster.worker import PROJECT_ROOT, ActorSize
from pipeline.learning.signals import StopSignal, as_found

EMBEDDED = "embedded"
OBJECT_STORE_BYTES = 256 << 20
"""Of an embedded cluster: only the list of the source goes through it, never a feature."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
EMBEDDED_ONLY = {
    # Ray lowers the priority of its workers (nice 15); here they are the program the user started.
    "RAY_worker_niceness": "0",
    # A Python per CPU at once, none of which has our actors' environment: they start anew.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's switch for desktop systems: with it, every server binds to 127.0.0.1 and nothing else.
    LOOPBACK: "0",
    # Fixed ports by default, on which two clusters of one host would clash.
    "AUTOSCALER_METRIC_PORT": "0",
    "DASHBOARD_METRIC_PORT": "0",
}

OURS = (*QUIET, *EMBEDDED_ONLY, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""Variables that are as they were once a run is over."""
STARTS = 2
"""Times an embedded cluster is started before that is an error."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """What there is to run on."""

    where: str
    """`embedded`, or the address joined."""
    nodes: tuple[Mapping[str, float], ...]
    """Resources of each node that is alive, by Ray's names."""

    @property
    def num_gpus(self) -> float:
        """Count the GPUs of all nodes."""
        return sum(node.get("GPU", 0.0) for node in self.nodes)

    def room(self, size: ActorSize) -> int:
        """Count how many actors fit, at least 1; none is split over two nodes."""
        return max(1, sum(_fit(node, size) for node in self.nodes))

    def actors(self, size: ActorSize, *, asked: int = 0) -> int:
        """Decide how many actors to keep: as many as asked for, 0 for as many as fit.

        Raises:
            ConfigError: a cluster of our own does not have the GPUs for one.
        """
        if self.where == EMBEDDED and size.num_gpus > self.num_gpus:
            hint = "Join a cluster with --ray.address, or run on the CPU with --gpus_per_actor 0."
            got, allowed = str(size.num_gpus), f"{self.num_gpus:g} at most on this machine"
            raise ConfigError(Problem("gpus_per_actor", got, allowed, hint))
        return asked or self.room(size)


def _fit(node: Mapping[str, float], size: ActorSize) -> int:
    """Count the actors that fit on one node."""
    needs = {"CPU": size.threads, **size.resources}
    fits = [node.get(name, 0.0) / need for name, need in needs.items() if need]
    if size.num_gpus:
        # Several on one GPU or several GPUs each, but none split over two GPUs.
        share = int(1 / size.num_gpus) if size.num_gpus < 1 else 1 / size.num_gpus
        fits.append(share * node.get("GPU", 0.0))
    return int(min(fits, default=1) + 1e-9)


@contextmanager
def cluster(
    config: RayConfig,
    *,
    num_cpus: float,
    num_gpus: float,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    embedded: bool = False,
) -> Iterator[Cluster]:
    """Yield a cluster; leave it as it was found.

    Args:
        config: which one.
        num_cpus: CPUs that an embedded one must offer at least (count).
        num_gpus: GPUs asked for; 0 keeps an embedded one from looking for any.
        object_store_bytes: of an embedded one.
        embedded: the address is that of another process's embedded one, on this host.

    Raises:
        ConfigError: nobody answers at the address, authentication fails, or none can start here.
    """
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    address = None if address == "local" else address
    with _environment(config, joining=address is not None, embedded=embedded):
        import ray

        if ray.is_initialized():  # ours from an outer `with`, or the user's own: not ours to stop
            yield describe("the session's own")
            return
        with as_found() as interrupt, watched() if address is None else nullcontext():
            try:
                if address is not None:
                    _join(address, key="ray.address" if config.address else "$RAY_ADDRESS")
                else:
                    check_folder()
                    with _whole("starting Ray"):
                        _start_embedded(
                            num_cpus=num_cpus, num_gpus=num_gpus, store=object_store_bytes
                        )
                interrupt()
                yield describe(address or EMBEDDED)
            finally:
                with _whole("ending Ray"):
                    ray.shutdown()


@contextmanager
def _whole(doing: str) -> Iterator[None]:
    """Let Ray begin or end, also where a stop comes meanwhile: that one is heeded afterwards.

    Raises:
        KeyboardInterrupt: a stop came; at once where another came after it.
    """
    with StopSignal(doing) as stopping:
        yield
    if stopping():
        raise KeyboardInterrupt


_LOGGING: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}


def _join(address: str, *, key: str) -> None:
    """Join a cluster that answers.

    Raises:
        ConfigError: none answers, or it does not let us in.
    """
    import ray

    try:
        place = address if address != "auto" else _find(address)
        if "://" not in place or place.startswith("ray://"):
            check_answers(place, key=key)
        with _at_home():
            ray.init(address=address, **_LOGGING)
    except ConfigError:
        raise
    except Exception as error:  # Ray raises of every kind, RpcError and plain Exception, too
        hint = (
            "Start one with `ray start --head`, or leave it empty to run without a cluster. "
            f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'unset')} here: it must be what "
            "the cluster was started with."
        )
        got = f"{address} ({one_line(error)})"
        raise ConfigError(Problem(key, got, "a running Ray cluster", hint)) from error


@contextmanager
def _at_home() -> Iterator[None]:
    """Stand where our packages lie while Ray notes the working folder, and come back.

    Ray puts the folder it is started in before all else on its workers' path: a user's storage.py
    there would be taken for ours. `worker_env` puts it last instead.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # removed meanwhile: there is nothing in it
        here = str(PROJECT_ROOT)
    os.chdir(PROJECT_ROOT)
    try:
        yield
    finally:
        os.chdir(here)


def _find(address: str) -> str:
    """Return the address that Ray takes `auto` for."""
    services = trusted.module("ray._private.services")
    return services.canonicalize_bootstrap_address_or_die(address)


def _start_embedded(*, num_cpus: float, num_gpus: float, store: int) -> None:
    """Start a cluster in this process; on a loaded machine Ray may need a second try.

    Raises:
        ConfigError: both failed.
    """
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            with _at_home():
                ray.init(
                    address="local",  # without it, Ray joins whatever cluster it finds on this host
                    num_cpus=max(int(num_cpus), len(os.sched_getaffinity(0))),
                    num_gpus=None if num_gpus else 0,
                    object_store_memory=store,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    **_LOGGING,
                )
        except Exception as error:  # Ray raises of every kind, plain Exception, too
            ray.shutdown()
            what = one_line(error)
            if attempt < STARTS:
                log.warning("Ray did not start here (%s); it is tried once more", what)
                continue
            load = os.getloadavg()[0]
            hint = (
                f"The machine's load is {load:.0f} on {os.cpu_count()} CPUs: try again when it is "
                "less busy, or start a cluster with `ray start --head` and give --ray.address. "
                "`dreamshard doctor` looks for other reasons."
            )
            problem = Problem("ray", f"{what}, {STARTS} times", "a Ray that starts here", hint)
            raise ConfigError(problem) from error
        return


@contextmanager
def _environment(config: RayConfig, *, joining: bool, embedded: bool) -> Iterator[None]:
    """Set what Ray reads from the environment, and leave that of the calling program as it was."""
    before = dict(os.environ)
    _set_environment(config, joining=joining, embedded=embedded)
    try:
        yield
    finally:
        changed = before != os.environ
        for name in OURS:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        if changed:
            _read_again()


def _set_environment(config: RayConfig, *, joining: bool, embedded: bool = False) -> None:
    """Decide what Ray reads from the environment, and read it again if Ray is imported already."""
    before = dict(os.environ)
    for name, value in (QUIET | EMBEDDED_ONLY if embedded or not joining else QUIET).items():
        os.environ.setdefault(name, value)
    if config.auth_mode is not None:
        os.environ["RAY_AUTH_MODE"] = config.auth_mode
    elif not joining:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not joining and os.environ.get("RAY_AUTH_MODE") == "token":
        # In the environment, or Ray writes ~/.ray/auth_token, and every later `ray start` of this
        # user demands a token.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    if before != os.environ:
        _read_again()


def _read_again() -> None:
    """Have a Ray that is loaded and not in use read the environment anew."""
    if "ray" not in sys.modules or sys.modules["ray"].is_initialized():
        return
    core = trusted.module("ray._raylet")
    core.Config.initialize("")  # as Ray does when it changes the mode itself
    if hasattr(core, "AuthenticationTokenLoader"):
        core.AuthenticationTokenLoader.instance().reset_cache()
    # Where it is off, Ray leaves 127.0.0.1 as it is; else it takes it for the host's other address.
    constants: Any = trusted.module("ray._private.ray_constants")
    usual = "0" if sys.platform in ("darwin", "win32") else "1"
    constants.ENABLE_RAY_CLUSTER = os.environ.get(LOOPBACK, usual) in ("1", "true")


def describe(where: str) -> Cluster:
    """Look at the cluster this process has joined, as it is now."""
    import ray

    nodes = (node.get("Resources", {}) for node in ray.nodes() if node.get("Alive"))
    return Cluster(where, tuple(nodes))
