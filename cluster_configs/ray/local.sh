#!/usr/bin/env bash
# A Ray cluster of several raylets on this machine, on loopback, with a token, until it is stopped.
# Every port listens on 127.0.0.1 alone: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, Ray's switch for desktop
# systems, keeps Ray from putting the machine's address in the place of 127.0.0.1.
#
#   cluster_configs/ray/local.sh [NODES] [CPUS_PER_NODE] [PORT]
#
# Stops its own processes and no other Ray on this machine (`ray stop` would). GPUs, if any, belong
# to the first node.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
nodes=${1:-3}
cpus=${2:-1}
port=${3:-6379}
dashboard=$((port + 1886)) # 8265 for 6379, as everybody expects
folder=${TMPDIR:-/tmp}/dreamshard-ray-${USER:-$(id -un)}

mkdir -p "$folder"
chmod 700 "$folder"
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32))' >"$folder/auth_token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/auth_token
export RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export AUTOSCALER_METRIC_PORT=0 DASHBOARD_METRIC_PORT=0 # fixed ones would clash

pids=()
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

ray start --head --block --node-ip-address 127.0.0.1 --port "$port" --num-cpus "$cpus" \
  --object-store-memory 268435456 --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
  --ray-client-server-port $((port + 3622)) --temp-dir "$folder/ray" --dashboard-agent-listen-port 0 \
  --metrics-export-port 0 --min-worker-port 0 --max-worker-port 0 >"$folder/head.log" 2>&1 &
pids+=($!)
# The head first, or the others give up.
until ray status --address "127.0.0.1:$port" >/dev/null 2>&1; do
  if ! kill -0 "${pids[0]}" 2>/dev/null; then
    cat "$folder/head.log" >&2
    exit 1
  fi
  sleep 1
done
for ((n = 2; n <= nodes; n++)); do
  python3 "$here/node.py" "127.0.0.1:$port" "$cpus" >"$folder/node-$n.log" 2>&1 &
  pids+=($!)
done

cat >"$folder/env.sh" <<END
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/auth_token
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_ADDRESS=127.0.0.1:$port RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
END
echo "$nodes nodes of $cpus CPU at 127.0.0.1:$port; in other shells: . $folder/env.sh"
wait -n "${pids[@]}" || true
echo "a node has ended, and with it the cluster:" >&2
tail -n 5 "$folder"/*.log >&2
exit 1
