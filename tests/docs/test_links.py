"""What a page points to is there, and the site with the reference of the API builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name_of

REPOSITORY = ("pipeline/", "cluster/", "jobs/", "tests/", "docs/")
OUR_PAGES = [*PAGES, ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", OUR_PAGES, ids=name_of)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    files = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [file for file in files if not (page.parent / file).exists()] == []


@pytest.mark.parametrize("page", OUR_PAGES, ids=name_of)
def test_every_path_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(r"`([\w./-]+)`", page.read_text()))
    paths = {name for name in named if name.startswith(REPOSITORY)}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", OUR_PAGES, ids=name_of)
def test_every_program_that_a_page_names_is_there(page: Path) -> None:
    programs = set(re.findall(r"python -m ([\w.]+)", page.read_text()))
    paths = [ROOT / program.replace(".", "/") for program in programs]
    missing = [p for p in paths if not p.with_suffix(".py").exists() and not p.is_dir()]
    assert missing == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "from_pretrained" in (tmp_path / "reference/editor/index.html").read_text()
