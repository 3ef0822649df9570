#!/bin/bash
# One node: runs its task of each step (as slurmstepd does); the first one the batch script too.
#
#   node.sh SPOOL NUMBER SCRIPT
set -euo pipefail
spool=$1 number=$2 script=$3

hostname "node$number"
mount --bind "$spool/hosts" /etc/hosts
mkdir -p "$RAY_TEMP"
mount -t tmpfs none "$RAY_TEMP" # the node's own disk
until [ -e "$spool/wired" ]; do sleep 0.02; done

task() { # wait for srun's step, do the task, and say how it ended
  until [ -e "$spool/step" ]; do sleep 0.05; done
  # shellcheck disable=SC1091 # the environment of srun
  . "$spool/environment"
  export SLURM_PROCID=$((number - 1))
  setsid bash "$spool/command" >"$spool/task$number.log" 2>&1 </dev/null &
  command=$! status=0
  while kill -0 "$command" 2>/dev/null; do
    [ ! -e "$spool/term" ] || kill -TERM -- "-$command" 2>/dev/null || true # as srun passes it on
    sleep 0.1
  done
  wait "$command" || status=$?
  echo "$status" >"$spool/task$number.status"
}

task &
tasks=$!
if [ "$number" = 1 ]; then
  status=0
  PATH="$spool:$PATH" bash "$script" >"$spool/job.log" 2>&1 </dev/null || status=$?
  echo "$status" >"$spool/job.status"
else
  wait "$tasks"
  sleep infinity # a node stays until the allocation ends
fi
