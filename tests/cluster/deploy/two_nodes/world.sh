#!/bin/bash
# Two "nodes" on one machine: network, processes, host name and Ray's temporary folder of their own.
# Run it as `unshare [--map-root-user] --net --mount --pid --fork --kill-child --mount-proc`.
#
#   world.sh SPOOL SCRIPT       SPOOL has srun and scontrol; SCRIPT is what sbatch would run
set -euo pipefail
spool=$1 script=$2
here=$(cd "$(dirname "$0")" && pwd)

ip link set lo up
printf '127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n' >"$spool/hosts"

for number in 1 2; do
  unshare --net --mount --uts --pid --fork --kill-child --mount-proc \
    bash "$here/node.sh" "$spool" "$number" "$script" &
  nodes[number]=$!
  until [ "$(readlink "/proc/${nodes[number]}/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
    sleep 0.02
  done
done

ip link add veth1 type veth peer name veth2
for number in 1 2; do
  ip link set "veth$number" netns "${nodes[number]}"
  nsenter --target "${nodes[number]}" --net \
    sh -c "ip link set lo up; ip addr add 10.77.0.$number/24 dev veth$number; ip link set veth$number up"
done
touch "$spool/wired"

wait "${nodes[1]}" # the first node has the batch script
