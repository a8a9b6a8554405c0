"""Three raylets on this machine, in a process of their own: `python -m tests.chaos.raylets`.

Prints the address; then each line read from standard input is done and answered with `done`:
`kill` takes the last node away as a power cut would, `add` brings one.
"""

from __future__ import annotations

import os
import secrets
import sys

os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_USAGE_STATS_ENABLED="0",
    # A dead node is noticed after a second, not after half a minute.
    RAY_health_check_period_ms="300",
    RAY_health_check_timeout_ms="300",
    RAY_health_check_failure_threshold="3",
    RAY_worker_niceness="0",
)
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 << 20,
    "dashboard_agent_listen_port": 0,
    "include_dashboard": False,
}


def main() -> None:
    """Start the cluster and do what is asked for, until standard input ends."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    sys.stdout.write(f"{cluster.address} {os.environ['RAY_AUTH_TOKEN']}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        elif line.strip() == "add":
            nodes.append(cluster.add_node(**NODE))
        sys.stdout.write("done\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
