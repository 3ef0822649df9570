"""A job on Slurm: one batch script, which starts Ray on its nodes with `ray symmetric-run`."""

from __future__ import annotations

import shlex
import sys

from cluster.deploy.commented import comment
from cluster.deploy.needs import JOB, Needs, warning_of

HOURS = 24
BEFORE_THE_END_S = 60
"""Beside the seconds that a run takes to end: Slurm sends its signal up to a minute late."""


def slurm(needs: Needs) -> dict[str, str]:
    """`job.sbatch`, the script; it runs `job.yaml` beside it."""
    values = {
        "OPTIONS": "\n".join(f"#SBATCH {line}" for line in _options(needs)),
        "NEEDS": "\n".join(comment(_head(needs))),
        "ENVIRONMENT": shlex.quote(sys.prefix),
        "VERSIONS": f"retake {needs.versions.retake} and ray {needs.versions.ray}",
        "NODES": str(needs.size.nodes),
        "JOB": JOB,
        "GPUS": str(needs.size.gpus),
    }
    script = SCRIPT
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return {"job.sbatch": script}


def slurm_next(needs: Needs) -> list[str]:
    return ["sbatch job.sbatch", f"tail -F {needs.name}-*.log"]


def _head(needs: Needs) -> str:
    warning = warning_of(needs)
    env = ", ".join(needs.env)
    return (
        f"Runs the job {needs.name} on {needs.size.nodes} node(s). This folder, the output and "
        "Retake's environment must be on a file system that all nodes share."
        + (f"\nWARNING: {warning}." if warning else "")
        + (f"\nSlurm passes your environment on; the job may need {env}." if env else "")
    )


def _options(needs: Needs) -> list[str]:
    size = needs.size
    kind = needs.gpu.kind.partition("-")[0].lower()
    gpus = []
    if size.gpus:
        # The names of kinds are a site's own: `scontrol show node` has them (Gres=gpu:NAME:...).
        gpus = [f"--gpus-per-node={kind}:{size.gpus}" if kind else f"--gpus-per-node={size.gpus}"]
    return [
        f"--job-name={needs.name}",
        *([f"--partition={needs.queue}"] if needs.queue else []),
        f"--nodes={size.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={size.cpus}",
        *gpus,
        "--exclusive",
        "--mem=0",
        f"--time={HOURS}:00:00",
        f"--signal=B:USR1@{needs.stop_s + BEFORE_THE_END_S}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
    ]


SCRIPT = """\
#!/bin/bash
@NEEDS@
#
#   sbatch job.sbatch                            start it
#   scancel --batch --signal=INT JOBID           end it in order: what is finished is stored
#   scancel JOBID                                end it: what has not ended in KillWait is killed
#
# Why so: one task a node, which starts Ray there. --exclusive and --mem=0: Ray takes a node for its
# own, and stops every Ray of yours on it. --signal: before the time limit this script gets it, ends
# the run in order and puts the job into the queue again; it goes on where its results end. It is
# USR1, since TERM comes from scancel, and a job that was cancelled must not come back.
# --requeue does the same for a node that fails. --open-mode: all tries write one log. The name of
# a kind in --gpus-per-node is your site's: `scontrol show node` shows it (Gres=gpu:NAME:NUMBER).
@OPTIONS@
set -euo pipefail

# The Python environment with Retake, the same for all nodes; RETAKE_ENV names another.
[ -n "${RETAKE_ENV-}" ] || RETAKE_ENV=@ENVIRONMENT@
export PATH="$RETAKE_ENV/bin:$PATH"
echo "these files were written with @VERSIONS@; this is"
retake --version

# What the tasks share: the token, and how the run went. Only you can read it.
shared="$HOME/.retake/slurm-$SLURM_JOB_ID"
rm -rf "$shared"
trap 'rm -rf "$shared"' EXIT
(
  umask 077
  mkdir -p "$shared"
  # Ray takes work only from who has this token.
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' >"$shared/token"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$shared/token"
unset RAY_AUTH_TOKEN

# Ray's head is on this node, the first one. Not by its name: that may lead to 127.0.1.1 here, and
# then no node would take itself for the head.
mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(getent ahostsv4 "${names[0]}" | awk '$1 !~ /^127[.]/ && !found++ {print $1}')
[ -n "$address" ] || address=$(hostname -I | awk '{print $1}')

# Ports from the job's number: another job on a node of a shared partition has others. They are
# below 32768, where the system takes ports for outgoing connections.
number=$((SLURM_JOB_ID % 4000))
port=$((20000 + number))
dashboard=$((24000 + number))
client=$((28000 + number))

# Ray's files: on each node's own disk, with a short path, since sockets lie there.
export RAY_TMPDIR="/tmp/retake-$SLURM_JOB_ID"
# Nodes may take minutes to import Ray from a shared file system; 30 s is the default.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
export RETAKE_SHARED="$shared" RETAKE_ADDRESS="$address:$port"

# The run itself, on the head. This script sends its process the signal to end. Its status is kept
# in a file: srun's would be that of whichever task ended worst.
# shellcheck disable=SC2016 # expanded on the head, not here
run='
export RAY_ADDRESS="$RETAKE_ADDRESS"
retake run --wait "$1" &
echo $! >"$RETAKE_SHARED/pid"
wait $!
echo $? >"$RETAKE_SHARED/status"
'

ended="" step=""
# shellcheck disable=SC2329 # the traps call it
end_in_order() { # a signal has come: end the run, or the start if there is no run yet
  ended=$1
  if [ -s "$shared/pid" ]; then
    kill -TERM "$(cat "$shared/pid")" || true
  elif [ -n "$step" ]; then
    kill -TERM "$step" || true
  fi
}
trap 'end_in_order again' USR1
trap 'end_in_order stop' INT TERM

# One task a node. That of the first node, the head, says when Ray has stopped there.
# shellcheck disable=SC2016 # expanded on each node, not here
task='
ray symmetric-run "$@"
[ "$SLURM_PROCID" -ne 0 ] || touch "$RETAKE_SHARED/ended"
'
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$task" task \\
  --address "$address:$port" --min-nodes @NODES@ \\
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=@GPUS@ \\
  --dashboard-port="$dashboard" --ray-client-server-port="$client" \\
  -- bash -c "$run" run "$PWD/@JOB@" &
step=$!

# The other nodes would notice only after a minute that the head is gone. (srun's --wait would also
# end the job when any node but the head is lost, which a run survives.)
(
  until [ -e "$shared/ended" ]; do sleep 1; done
  kill -TERM "$step"
) &
watcher=$!

step_status=0
wait "$step" || step_status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait, not the step
  step_status=0
  wait "$step" || step_status=$?
done

kill "$watcher" 2>/dev/null || true

status=$(cat "$shared/status" 2>/dev/null) || status=$((step_status ? step_status : 1))
if [ "$ended" = again ] && [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then
  echo "the time is nearly over: the job goes into the queue again"
  rm -rf "$shared"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
