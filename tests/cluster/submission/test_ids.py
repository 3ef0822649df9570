"""The ids of submitted jobs, and what is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.submission.ids import is_job_id, new_job_id


@pytest.mark.parametrize(
    ("name", "middle"),
    [("horses", "horses"), ("", "job"), ("a b/c", "a-b-c"), ("é", "job"), ("x" * 90, "x" * 40)],
)
def test_an_id_has_the_jobs_name_and_eight_digits(name: str, middle: str) -> None:
    found = new_job_id(name)
    assert re.fullmatch(rf"retake-{middle}-[0-9a-f]{{8}}", found)
    assert is_job_id(found)
    assert new_job_id(name) != found


def test_an_id_is_told_from_an_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_job_id("raysubmit_4LamXRuQpYdSMg7J")
    assert is_job_id("retake-x-01234567")
    assert not is_job_id("out")
    assert not is_job_id("retake-out"), "a folder that is not there yet"
    assert not is_job_id("s3://bucket/retake-x")
    assert not is_job_id("./retake-x-01234567")
    (tmp_path / "retake-x-01234567").mkdir()
    assert not is_job_id("retake-x-01234567")
