"""A checkpoint folder that a test may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A 5b checkpoint."""
    return Path(shutil.copytree(checkpoints["5b"], tmp_path / "copy"))
