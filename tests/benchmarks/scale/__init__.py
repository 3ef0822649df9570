"""What 10^6 videos take."""

import subprocess
import sys


def measured_apart(module: str, *case: str) -> str:
    """What a module prints for a case, in a process of its own, whose memory is of it alone."""
    return subprocess.check_output([sys.executable, "-m", module, "--case", *case], text=True)
