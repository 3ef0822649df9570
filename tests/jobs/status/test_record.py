"""What stands in `status.json` is read again, by this version and a later one."""

import json

import pytest

from cluster.progress import Failure
from jobs.status.record import Stage, Status
from jobs.status.state import SUBMITTED, submission_id
from tests.jobs.status.records import a_status


def test_a_record_is_read_as_it_was_written() -> None:
    late = Failure("v9", "red", "deadline", "no progress for 600 s")
    status = a_status(
        stages=(Stage("editing", 1, 2, "denoising step 3 of 31"),),
        failures=(late,),
        last_errors=(late,),
        failed_by_code={"deadline": 1},
        notes=("2 GPUs stay idle",),
        left_s=None,
    )
    assert Status.parse(status.as_json()) == status


def test_a_field_of_a_later_version_is_left_out() -> None:
    values = json.loads(a_status().as_json())
    values |= {"mood": "good", "stages": [{"name": "editing", "ready": 1, "total": 1, "x": 2}]}
    status = Status.parse(json.dumps(values).encode())
    assert status is not None
    assert status.stages == (Stage("editing", 1, 1),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        a_status().as_json().replace(b'"version": 1', b'"version": 2'),
        a_status(updated_at="today").as_json(),
        a_status(updated_at="2026-11-28T10:00:00").as_json(),
        a_status(state="dreaming").as_json(),
    ],
)
def test_what_is_damaged_or_of_another_format_is_none(data: bytes) -> None:
    assert Status.parse(data) is None


def test_a_record_holds_no_secret() -> None:
    location = "https://ann:hunter22@host/clip.mp4"
    late = Failure("v9", "red", "storage", f"{location} is away")
    status = a_status(
        phase=f"reading {location}", last_errors=(late,), notes=(location,), error=location
    )
    assert b"hunter22" not in status.as_json()


def test_rays_submission_id_is_found_where_its_job_api_puts_it() -> None:
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_8x"}}
    assert submission_id({SUBMITTED: json.dumps(config)}) == "raysubmit_8x"
    for other in ("", "{", "null", "{}", '{"metadata": null}', '{"metadata": {}}'):
        assert submission_id({SUBMITTED: other}) is None
    assert submission_id({}) is None
