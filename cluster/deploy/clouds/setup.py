"""What is installed on each machine: an environment of its own, with exactly the versions here."""

from __future__ import annotations

import shlex

from cluster.deploy.needs import Needs
from cluster.deploy.versions import UV

ENVIRONMENT = "retake-env"
"""The folder of the environment, in the home folder of each machine."""
CONSTRAINTS = "constraints.txt"
TOKEN = "$HOME/.ray/auth_token"


def install(needs: Needs, folder: str) -> list[str]:
    """Shell commands that make the environment; a second time they change nothing.

    Args:
        folder: where the wheel and the constraints are on the machine, as a shell reads it.
    """
    uv = '"$HOME/.local/bin/uv"'
    return [
        f"{uv} --version 2>/dev/null | grep -qF {UV} || curl -LsSf https://astral.sh/uv/{UV}/"
        'install.sh | env UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh',
        f"{uv} venv --quiet --allow-existing --python {needs.versions.short_python} "
        f'"$HOME/{ENVIRONMENT}"',
        f'{uv} pip install --quiet --python "$HOME/{ENVIRONMENT}/bin/python" '
        f'--constraints {folder}/{CONSTRAINTS} {folder}/"{needs.package}"',
    ]


def wheel(needs: Needs) -> str:
    """Shell lines that bring Retake's wheel beside the files, where it is not there yet."""
    name = needs.versions.wheel
    source = needs.versions.source
    make = f"python3 -m pip wheel --quiet --no-deps --wheel-dir . {shlex.quote(source)}"
    missing = (
        f"{make}\n[ -f {name} ] ||"
        f' {{ echo "{source} makes another version than {needs.versions.retake}" >&2; exit 1; }}'
        if source
        else f'echo "put {name} into this folder" >&2; exit 1'
    )
    lines = "\n".join(f"  {line}" for line in missing.splitlines())
    return f"if [ ! -f {name} ]; then\n{lines}\nfi"


def set_here(flag: str, names: tuple[str, ...]) -> str:
    """Shell lines that put a flag into the array `variables` for each variable that is set."""
    lines = [f'if [ -n "${{{name}-}}" ]; then variables+=({flag} {name}); fi' for name in names]
    return "\n".join(["variables=()", *lines])


VARIABLES = '${variables[@]+"${variables[@]}"}'
"""The array as arguments; bash before 4.4, as macOS has it, takes an empty one for an error."""
