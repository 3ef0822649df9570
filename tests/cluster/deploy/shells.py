"""Shell scripts, read by shellcheck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def shellcheck(*scripts: Path) -> None:
    """Refuse a script in which shellcheck finds anything."""
    tool = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([tool, *scripts], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
