"""Shell scripts, read by bash and by shellcheck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def check_shell(*scripts: Path) -> None:
    """Refuse a script that bash cannot read, or in which shellcheck finds anything."""
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    tool = Path(sys.executable).with_name("shellcheck")
    # SC2016: `$PATH` in single quotes is for a later shell.
    found = subprocess.run(
        [tool, "--exclude", "SC2016", *scripts], capture_output=True, text=True, check=False
    )
    assert not found.stdout
