"""Add a raylet to a cluster of this machine, on loopback, until it is stopped; see local.sh.

python cluster_configs/ray/node.py 127.0.0.1:6379 CPUS

`ray start --address` refuses RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, without which Ray listens on the
machine's address; this starts what it would have started.
"""

from __future__ import annotations

import signal
import sys
import time

from ray._private.node import Node
from ray._private.parameter import RayParams

STORE_BYTES = 256 << 20


def main(address: str, cpus: str) -> None:
    """Start a raylet and stay until it ends or a signal comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Node ends its processes at exit
    parameters = RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        num_cpus=int(cpus),
        num_gpus=0,
        object_store_memory=STORE_BYTES,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=0,
        include_log_monitor=False,  # type: ignore[arg-type]  # as ray.cluster_utils does
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    while node.remaining_processes_alive():
        time.sleep(1)
    sys.exit("the raylet has ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
