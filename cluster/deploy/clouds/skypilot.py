"""Files for SkyPilot: a managed job that looks for machines, and again when they are taken away."""

from __future__ import annotations

import textwrap

from cluster.deploy.clouds.machines import check_kind, check_options
from cluster.deploy.clouds.setup import (
    CONSTRAINTS,
    ENVIRONMENT,
    VARIABLES,
    install,
    set_here,
    wheel,
)
from cluster.deploy.gpus import GPUS
from cluster.deploy.needs import FILES, Needs

TASK = "sky.yaml"
LAUNCH = "launch.sh"
VERSION = "0.14.1"
RESTARTS = 2
DISK_GB = 256
AGENT_PORT = 52366
"""SkyPilot has a Ray of its own on every node, whose agent listens on Ray's default, 52365."""
NODES_TIMEOUT_S = 1800
HERE = ("RAY_AUTH_TOKEN", *FILES)
"""Variables that do not travel: the first is passed anyway, the others are paths here."""
NAMES = {kind: kind for kind in GPUS} | {"A100-40GB": "A100"}
"""As SkyPilot names the kinds."""


def skypilot(needs: Needs) -> dict[str, str]:
    """The task, and the command that launches it.

    Raises:
        CannotRun: the kind of the GPUs is not named.
    """
    return {
        TASK: _task(needs),
        LAUNCH: _launch(needs),
        CONSTRAINTS: needs.versions.constraints,
    }


def skypilot_next(_needs: Needs) -> list[str]:
    return [f"./{LAUNCH}", "sky jobs queue", "sky jobs logs JOB_ID", "sky jobs cancel JOB_ID"]


def _task(needs: Needs) -> str:
    size = needs.size
    check_options(needs, "skypilot")
    if size.gpus:
        check_kind(needs, "skypilot", tuple(NAMES))
        machines = f"accelerators: {{{NAMES[needs.gpu.kind]}: {size.gpus}}}"
    else:
        machines = f"cpus: {size.cpus}+"
    infra = f"infra: {needs.zone}\n  " if needs.zone else ""
    return f"""\
# A managed job of SkyPilot {VERSION}: ./{LAUNCH} launches it. For {needs.name}.
name: {needs.name}

resources:
  # On any cloud that `sky check` finds; `infra: aws/us-east-1` names one. Take that of the job's
  # storage: the nodes open it with the cloud's role there, and data costs nothing on its way.
  {infra}{machines}
  memory: {size.memory_gb}+
  disk_size: {DISK_GB}
  use_spot: {"true" if needs.spot else "false"}
  job_recovery:
    # Machines that are taken away are looked for in other regions first. The job goes on with what
    # is pending: results are in its output folder.
    strategy: EAGER_NEXT_REGION
    # A run that failed is tried again so often; edits that failed are pending again.
    max_restarts_on_errors: {RESTARTS}

num_nodes: {size.nodes}

# This folder: the job, Retake's wheel and {CONSTRAINTS}.
workdir: .

envs:
  RAY_AUTH_MODE: token
# By name; ./{LAUNCH} takes their values from your environment, and others that are set there.
secrets:
  RAY_AUTH_TOKEN: null

setup: |
{textwrap.indent(setup(needs), "  ")}
run: |
{textwrap.indent(run(needs), "  ")}"""


def setup(needs: Needs) -> str:
    """What is run once on each node."""
    return "\n".join(["set -euo pipefail", *install(needs, "."), ""])


def run(needs: Needs) -> str:
    """What is run on each node at the same time: Ray on all of them, the job on the first."""
    port = needs.ports["gcs"]
    return f"""\
set -euo pipefail
export PATH="$HOME/{ENVIRONMENT}/bin:$PATH"
head="$(head -n 1 <<<"$SKYPILOT_NODE_IPS")"
address="$head:{port}"
# SkyPilot's own Ray is on ports 6380, 8266 and 52365. `ray stop` would end that one too, and so
# would `ray symmetric-run`: end ours by its process.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nothing to wait for: it ends after the job
options=(--dashboard-agent-listen-port={AGENT_PORT} --disable-usage-stats --block)

answers() {{ timeout 5 bash -c ": </dev/tcp/$head/{port}" 2>/dev/null; }}
gone() {{ for _ in 1 2 3; do if answers; then return 1; fi; sleep 2; done; }}
wait_for_head() {{
  for _ in $(seq 300); do
    if answers; then return; fi
    sleep 1
  done
  echo "Ray's head at $address does not answer" >&2
  exit 1
}}
# However this ends, Ray ends with it. It has a session of its own, since its agents would look for
# a lost head for a minute more.
ray=
stop_ray() {{
  [ -n "$ray" ] || return 0
  kill "$ray" 2>/dev/null || true
  wait "$ray" || true
  pkill -KILL -s "$ray" || true
  ray=
}}
trap stop_ray EXIT

{_node(needs)}"""


def _node(needs: Needs) -> str:
    """What the first node does, and what the others do."""
    port = needs.ports["gcs"]
    gpus = f" --gpus {needs.size.gpus}" if needs.size.gpus else ""
    return f"""\
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  setsid ray start --head --node-ip-address="$head" --port={port} \\
    --dashboard-port={needs.ports["dashboard"]} "${{options[@]}}" >ray.log 2>&1 &
  ray=$!
  wait_for_head
  export RAY_ADDRESS="$address"
  python -m cluster.deploy.clouds.nodes --nodes "$SKYPILOT_NUM_NODES"{gpus} \\
    --timeout-s {NODES_TIMEOUT_S}
  {" ".join(needs.command)} &
  job=$!
  # SIGTERM ends the job in order, and Ray after it. `wait` returns at a signal: the job goes on.
  asked=
  trap 'asked=1; kill -TERM "$job" 2>/dev/null || true' TERM
  status=0
  wait "$job" || status=$?
  if kill -0 "$job" 2>/dev/null; then
    status=0
    wait "$job" || status=$?
  fi
  # 143 without a signal to this script: `retake stop` ended the job, and no error did.
  if [ "$status" = 143 ] && [ -z "$asked" ]; then
    echo "the run was stopped; launch it again to go on"
    exit 0
  fi
  exit "$status"
else
  wait_for_head
  # A node whose Ray ended comes back, until the head is gone: its exit status is that of the job.
  until gone; do
    setsid ray start --address="$address" "${{options[@]}}" >>ray.log 2>&1 &
    ray=$!
    while kill -0 "$ray" 2>/dev/null && ! gone; do sleep 2; done
    stop_ray
  done
fi
"""


def _launch(needs: Needs) -> str:
    return f"""\
#!/usr/bin/env bash
# Launches the job {needs.name} with SkyPilot {VERSION}. Once before, in an environment of its own:
# `pip install "skypilot[aws,gcp]=={VERSION}"`, and `sky check`.
#
#   sky jobs queue             the jobs, and their ids
#   sky jobs logs JOB_ID       follows a job
#   sky jobs cancel JOB_ID     ends it, and gives its machines back
set -euo pipefail
cd "$(dirname "$0")"

{wheel(needs)}

# A token of this job's own, which its nodes share: clients without it are refused by Ray.
export RAY_AUTH_TOKEN="${{RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n')}}"

# Variables of the job that are set here travel with it as secrets; no file has their values.
{set_here("--secret", tuple(name for name in needs.env if name not in HERE))}
sky jobs launch --yes --detach-run --name {needs.name} --secret RAY_AUTH_TOKEN \\
  {VARIABLES} {TASK}
"""
