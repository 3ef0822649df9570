"""What AWS and Google Cloud share: Ray's cluster launcher, `ray up`.

There is no `docker` section: a container would have to be built, pushed and pulled on each machine,
and what a machine image with NVIDIA's driver lacks is one environment, which `setup_commands` make.
"""

from __future__ import annotations

import textwrap

from cluster.deploy.clouds.machines import Machine
from cluster.deploy.clouds.setup import (
    CONSTRAINTS,
    ENVIRONMENT,
    VARIABLES,
    install,
    set_here,
    wheel,
)
from cluster.deploy.needs import FILES, JOB, Needs
from pipeline.locations import links, protocol

CLUSTER = "cluster.yaml"
RUN = "run.sh"
IAM = "iam.sh"
USER = "ubuntu"
HOME = f"/home/{USER}"
FOLDER = f"{HOME}/retake-job"
PATH = f'export PATH="{HOME}/{ENVIRONMENT}/bin:$PATH"'
IDLE_MINUTES = 10
DISK_GB = 256
HEAD_DISK_GB = 100
PORT = 18265
"""Of the tunnel on this machine: not Ray's own, where a Ray of this machine may answer."""


def cluster_yaml(needs: Needs, *, provider: str, types: str, also: str) -> str:
    """The launcher's file.

    Args:
        provider: its section `provider`.
        types: the two entries of `available_node_types`, `head` and `worker`.
        also: a package that the autoscaler on the head needs.
    """
    size = needs.size
    each = f"{size.gpus} {needs.gpu.kind}" if size.gpus else f"{size.cpus} cores"
    return f"""\
# Ray's cluster launcher: `ray up {CLUSTER}`. For {needs.name}: {size.nodes} x {each}, and a head.
# Written for Ray {needs.versions.ray}; ./{RUN} says which commands to type.
cluster_name: {needs.name}

{provider.rstrip()}

auth:
  ssh_user: {USER}

# All nodes of the job, and no more: min_workers below is the same, so that a machine that was taken
# away is replaced. They cost money until `ray down {CLUSTER}`.
max_workers: {size.nodes}
# Ends nodes beyond min_workers. Lower min_workers to 0 to let the whole cluster go when it is idle;
# the next job then needs `ray up` again.
idle_timeout_minutes: {IDLE_MINUTES}

head_node_type: head
available_node_types:
{textwrap.indent(types.rstrip(), "  ")}

# This folder, and the token that Ray asks every client and node for. The launcher carries no token
# by itself. The file stays readable for its owner only.
file_mounts:
  {FOLDER}: "."
  {HOME}/.ray/auth_token: "~/.ray/auth_token"
rsync_exclude: ["*.log"]

{_commands(needs, also)}"""


def _commands(needs: Needs, also: str) -> str:
    """What is typed on each machine: its set-up, and the start of Ray."""
    python = f'"$HOME/{ENVIRONMENT}/bin/python"'
    uv = f'"$HOME/.local/bin/uv" pip install --quiet --python {python}'
    head = (
        f"ray start --head --port={needs.ports['gcs']} --dashboard-host=127.0.0.1 "
        f"--dashboard-port={needs.ports['dashboard']} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
    )
    worker = f'ray start --address="$RAY_HEAD_IP:{needs.ports["gcs"]}" --disable-usage-stats'
    token = "export RAY_AUTH_MODE=token; ulimit -n 65536"
    return f"""\
# On each machine, and again when this file changes: Python {needs.versions.short_python} and \
exactly the versions of
# {CONSTRAINTS} (retake {needs.versions.retake}, ray {needs.versions.ray}, \
torch {needs.versions.torch}).
setup_commands:
{_items(install(needs, FOLDER))}
  - grep -qF {ENVIRONMENT}/bin ~/.bashrc || echo '{PATH}' >> ~/.bashrc
# The autoscaler there asks the cloud for the workers.
head_setup_commands:
  - {_quoted(f'{uv} --constraints {FOLDER}/{CONSTRAINTS} "{also}"')}
worker_setup_commands: []

head_start_ray_commands:
  - {_quoted(f"{PATH}; ray stop")}
  - {_quoted(f"{PATH}; {token}; {head}")}
worker_start_ray_commands:
  - {_quoted(f"{PATH}; ray stop")}
  - {_quoted(f"{PATH}; {token}; {worker}")}
"""


def run_sh(needs: Needs, *, client: str, before: str) -> str:
    """The script with the commands in their order.

    Args:
        client: the package that `ray up` needs on this machine.
        before: what must be done once before, a line of a comment.
    """
    return f"""\
#!/usr/bin/env bash
# The job {needs.name} on machines that Ray's cluster launcher rents.
#
#   ./{RUN} up       rents the machines and installs what they need
#   ./{RUN} submit   waits for the nodes, submits the job and follows its log
#   ./{RUN} down     gives the machines back; until then they cost money
#
# Here it needs: ray {needs.versions.ray}, retake {needs.versions.retake}, {client}, ssh and rsync.
# {before}
set -euo pipefail
cd "$(dirname "$0")"

# The token that every client and node of the cluster must have. It is in ~/.ray/auth_token, which
# the launcher copies to the nodes; one from the environment would not reach them.
unset RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
export RAY_AUTH_MODE=token

tunnel=
close_tunnel() {{ # with the ssh that `ray dashboard` starts
  [ -z "$tunnel" ] || kill -- "-$tunnel" 2>/dev/null || true
}}
trap close_tunnel EXIT

up() {{
{textwrap.indent(wheel(needs), "  ")}
  [ -s ~/.ray/auth_token ] || ray get-auth-token --generate >/dev/null
  ray up --yes {CLUSTER}
}}

{_submit(needs)}

down() {{
  ray down --yes {CLUSTER}
}}

case "${{1-}}" in
  up | submit | down) "$1" ;;
  *)
    sed -n '2,10p' "$0"
    exit 2
    ;;
esac
"""


def _submit(needs: Needs) -> str:
    """The step `submit` of the script."""
    size = needs.size
    gpus = f" --gpus {size.gpus}" if size.gpus else ""
    python = f"{HOME}/{ENVIRONMENT}/bin/python"
    wait = f"RAY_AUTH_MODE=token {python} -m cluster.deploy.clouds.nodes"
    return f"""\
submit() {{
  local port="${{RETAKE_PORT:-{PORT}}}"
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port is in use here; name another one: RETAKE_PORT=... $0 submit" >&2
    exit 1
  fi
  ray exec {CLUSTER} \\
    '{wait} --nodes {size.nodes}{gpus}'
  set -m # a group of its own, which Ctrl-C does not reach and which is ended whole
  ray dashboard --port "$port" --remote-port {needs.ports["dashboard"]} {CLUSTER} \\
    </dev/null >/dev/null &
  tunnel=$!
  set +m
  until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    kill -0 "$tunnel" 2>/dev/null || {{ echo "no tunnel to the head" >&2; exit 1; }}
    sleep 1
  done
  # Variables of the job that are set here travel with it; no file has their values.
{textwrap.indent(set_here("--env", _travel(needs)), "  ")}
  retake submit {JOB} --address "http://127.0.0.1:$port" {VARIABLES}
}}"""


def next_of(_needs: Needs) -> list[str]:
    """The commands to type, for both clouds."""
    return [f"./{IAM}", f"./{RUN} up", f"./{RUN} submit", f"./{RUN} down"]


def resources(machine: Machine, gpus: int) -> str:
    """The resources of a worker, as the autoscaler counts them."""
    return f"{{CPU: {machine.cpus}, GPU: {gpus}}}" if gpus else f"{{CPU: {machine.cpus}}}"


def buckets(needs: Needs, extra: str, protocols: tuple[str, ...]) -> tuple[str, ...]:
    """The buckets that the job's locations are in.

    Args:
        extra: of Retake, that opens them.
        protocols: as locations name that storage.
    """
    if extra not in needs.extras:
        return ()
    places = [links(place)[-1] for place in needs.locations.values()]
    found = [
        place.partition("://")[2].partition("/")[0]
        for place in places
        if protocol(place) in protocols
    ]
    return tuple(dict.fromkeys(found))


def _travel(needs: Needs) -> tuple[str, ...]:
    """The variables that travel with the job: keys of the cloud stay here, roles stand for them."""
    own = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
    return tuple(name for name in needs.env if name not in (*own, *FILES))


def _items(lines: list[str]) -> str:
    return "\n".join(f"  - {_quoted(line)}" for line in lines)


def _quoted(text: str) -> str:
    """A text in YAML's single quotes."""
    return "'" + text.replace("'", "''") + "'"
