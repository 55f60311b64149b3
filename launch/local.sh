#!/usr/bin/env bash
# Starts N processes of one program on this machine, as a cluster of CPU hosts would run it:
#
#   launch/local.sh 2 unialign train --config photos --workdir runs/two
#   DEVICES=4 launch/local.sh 2 python my_script.py     # four CPU devices in each process
#
# Each process finds its coordinates in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
# JAX_PROCESS_ID; unialign_jax.parallel.processes.join() reads them. This is for trying multi-process
# code, not for speed: the processes share the machine's cores and talk through gloo.
set -euo pipefail

if [ $# -lt 2 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
count="$1"
shift

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port="$(python3 -c "$free_port")"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$count"
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo JAX_NUM_CPU_DEVICES="${DEVICES:-1}"

pids=()
for ((i = 0; i < count; i++)); do
  # The output of every process, with its number in front of each line.
  JAX_PROCESS_ID="$i" "$@" > >(sed -u "s/^/[$i] /") 2>&1 &
  pids+=($!)
done
# Ctrl-C and a stop request go to all of them, so that each can save and leave.
trap 'kill -INT "${pids[@]}" 2> /dev/null || true' INT
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM

code=0
deadline=""
running=("${pids[@]}")
while [ ${#running[@]} -gt 0 ]; do
  alive=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      alive+=("$pid")
    else
      wait "$pid" && status=0 || status=$?
      if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
        code="$status"
        # The others wait for the one that left: give them a moment to save, then end them.
        deadline=$((SECONDS + ${GRACE:-20}))
      fi
    fi
  done
  running=(${alive[@]+"${alive[@]}"})
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ] && [ ${#running[@]} -gt 0 ]; then
    kill -TERM "${running[@]}" 2> /dev/null || true
    deadline=$((SECONDS + 5))
  fi
  sleep 0.2
done
exit "$code"
