"""Packages beside the environment: `make` puts them into folders of their own below `.venv`."""

import sys
from pathlib import Path

SKYPILOT = Path(sys.prefix) / "skypilot"
"""It wants another click than typer (tests/skypilot.txt)."""
TORCHAO = Path(sys.prefix) / "torchao"
"""In the environment diffusers would import it in each process that starts."""
