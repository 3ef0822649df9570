"""What makes a finished edit stale: the fingerprint that the row check gives it."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml

from cluster.job import Job
from jobs.spec import parse_job
from pipeline.records import EditSpec, VideoSpec
from pipeline.settings import Reconstruction, Variation
from tests.cluster.test_stages import checked
from tests.small_jobs import a_job

EDIT = {
    "edit_id": "red",
    "prompt": "a red cube",
    "negative_prompt": "blur",
    "guidance_scale": 4.0,
    "seed": 2,
}
ROW = {
    "video": "a.mp4",
    "video_id": "a",
    "source_prompt": "a cube",
    "start_frame": 5,
    "num_frames": 9,
    "fps": 8.0,
    "seed": 1,
}
OF_A_ROW: list[dict[str, Any]] = [
    {"video": "b.mp4"},
    {"start_frame": 6},
    {"num_frames": 13},
    {"start_frame": 9, "num_frames": 5},
    {"fps": 4.0},
    {"seed": 3},
    {"seed": None},
    {"mask": "m.mp4"},
    {"mask": "auto"},
]
OF_AN_EDIT: list[dict[str, Any]] = [
    {"edit_id": "other"},
    {"prompt": "a blue cube"},
    {"negative_prompt": "noise"},
    {"prompt": "blur", "negative_prompt": "a red cube"},
    {"guidance_scale": 3.0},
    {"guidance_scale": None},
    {"seed": 3},
    {"seed": None},
    {"mask": "m.mp4"},
    {"mask": "auto"},
]
OTHER: dict[str, Any] = {
    "speed.weights": "fp8",
    "speed.step_cache": 0.1,
    "precision": "fp16",
    "seed": 1,
    "video.height": 48,
    "video.width": 48,
    "video.frames": 9,
    "video.fps": 4.0,
    "video.fit": "pad",
    "inversion.steps": 7,
    "inversion.method": "ddim",
    "inversion.iterations": 5,
    "inversion.posterior": "sample",
    "reconstruction.start": 0.5,
    "reconstruction.noise": 0.5,
    "reconstruction.candidates": (Variation(noise=0.5),),
    "reconstruction.guidance_scale": 3.0,
    "reconstruction.negative_prompt": "blur",
    "reconstruction.reference": "shared",
    "reconstruction.inject_steps": (0.0, 0.5),
    "reconstruction.inject_blocks": (0, 1),
    "reconstruction.guidance_steps": (0.0, 0.4),
    "reconstruction.dynamic_guidance": True,
    "reconstruction.residual": True,
    "reconstruction.mask": "auto",
    "trajectory.dtype": "fp32",
}
"""Another value of every setting that changes an edit."""
MASKED: dict[str, Any] = {
    "reconstruction.mask_grow": 3,
    "reconstruction.mask_feather": 4,
    "reconstruction.composite": True,
}
"""Another value of every setting that changes an edit with a mask."""
SAME: dict[str, Any] = {
    "speed.attention": "cudnn",
    "speed.compile": True,
    "speed.step_cache_steps": (0.0, 0.5),
    "checkpoint": "elsewhere",
    "output": "elsewhere",
    "inversion.vae_psnr": False,
    "inversion.round_trip": True,
    "reconstruction.edits_at_once": 1,
    "reconstruction.keep_candidates": True,
    "reconstruction.until_accepted": 3,
    "trajectory.keep": "never",
    "limits.file_gb": 1.0,
    "limits.pixels": 1000,
    "limits.frames": 1000,
    "limits.memory_gb": 1.0,
    "limits.decode_stall_s": 1.0,
}
"""Another value of every setting that changes none."""


def guided_to_the_end() -> Job:
    """A job in which each setting can be changed alone."""
    job = with_setting(a_job(), "reconstruction.guidance_steps", (0.0, 1.0))
    return with_setting(job, "reconstruction.candidates", (Variation(noise=0.1),))


def with_setting(job: Job, name: str, value: Any) -> Job:
    section, dot, field = name.rpartition(".")
    if not dot:
        return replace(job, editing=replace(job.editing, **{field: value}))
    changed = replace(getattr(job.editing, section), **{field: value})
    return replace(job, editing=replace(job.editing, **{section: changed}))


def fingerprint(job: Job, row: dict[str, Any] | None = None, **edit: Any) -> str:
    given = {**ROW, **(row or {}), "edits": [{**EDIT, **edit}]}
    (made,) = checked([given], job).to_pylist()[0]["edits"]
    assert made["error_code"] is None
    return str(made["fingerprint"])


@pytest.mark.parametrize("row", OF_A_ROW, ids=str)
def test_an_edit_is_stale_when_its_row_changes(row: dict[str, Any]) -> None:
    assert fingerprint(a_job(), row) != fingerprint(a_job())


@pytest.mark.parametrize("edit", OF_AN_EDIT, ids=str)
def test_an_edit_is_stale_when_what_it_asks_for_changes(edit: dict[str, Any]) -> None:
    assert fingerprint(a_job(), **edit) != fingerprint(a_job())


def test_an_instruction_and_a_mask_that_the_job_gives_anyway_change_no_edit() -> None:
    assert fingerprint(a_job(), instruction="make it red") == fingerprint(a_job())
    assert fingerprint(a_job(), mask="none") == fingerprint(a_job())
    auto = with_setting(a_job(), "reconstruction.mask", "auto")
    assert fingerprint(auto, mask="auto") == fingerprint(auto)
    assert fingerprint(auto, mask="none") != fingerprint(auto)


def test_the_mask_of_a_row_is_that_of_each_edit_without_one() -> None:
    assert fingerprint(a_job(), {"mask": "m.mp4"}) == fingerprint(a_job(), mask="m.mp4")
    assert fingerprint(a_job(), {"mask": "m.mp4"}, mask="none") == fingerprint(a_job())


EARLIER = {
    "{}": ("321eb554f09efda5b9fc1bb3", "de4611024952c79ef57440ca"),
    "{reconstruction: {reference: 'null'}}": (
        "321eb554f09efda5b9fc1bb3",
        "de4611024952c79ef57440ca",
    ),
    "{reconstruction: {start: 1, guidance_scale: 4, inject_steps: [0, 1], inject_blocks: [0, 3]},"
    " video: {fps: 24, height: 480}, inversion: {steps: 50}}": (
        "7fccb5241bd86e82d44cd17a",
        "48dade5182244d6526916022",
    ),
    "{reconstruction: {reference: shared}}": (
        "7adcaf733b00c8296de8a30c",
        "54ea26cb8056a50d5742c844",
    ),
}
"""Settings, and the fingerprints of the job and of an edit that an earlier version gave them."""


@pytest.mark.parametrize("settings", EARLIER)
def test_what_an_earlier_version_made_is_not_stale(settings: str) -> None:
    values = yaml.safe_load(settings)
    spec = parse_job({"manifest": "m", "output": "out", **values}, source="test")
    job = Job("m", (), "", spec.editing(), spec.cluster, "weights", "r")
    whole = job.fingerprint()
    edit = job.edit_fingerprint(whole, VideoSpec("a.mp4", "a"), EditSpec("x"))
    assert (whole, edit) == EARLIER[settings]


def test_the_seed_of_a_row_and_that_of_its_edit_do_not_stand_for_each_other() -> None:
    assert fingerprint(a_job(), {"seed": 2}, seed=1) != fingerprint(a_job())


@pytest.mark.parametrize("reference", ["empty", "shared", "source", "script", "none"])
def test_another_source_prompt_makes_an_edit_stale_only_where_the_reference_has_it(
    reference: Any,
) -> None:
    job = a_job()
    job = replace(
        job, editing=replace(job.editing, reconstruction=Reconstruction(reference=reference))
    )
    changed = fingerprint(job, {"source_prompt": "a ball"}) != fingerprint(job)
    assert changed == (reference == "source")


@pytest.mark.parametrize("name", OTHER)
def test_an_edit_is_stale_when_a_setting_changes(name: str) -> None:
    job = guided_to_the_end()
    assert fingerprint(with_setting(job, name, OTHER[name])) != fingerprint(job)


@pytest.mark.parametrize("name", SAME)
def test_an_edit_stays_when_a_setting_changes_that_is_nothing_to_it(name: str) -> None:
    job = guided_to_the_end()
    assert fingerprint(with_setting(job, name, SAME[name])) == fingerprint(job)


@pytest.mark.parametrize("name", MASKED)
def test_how_masks_are_used_changes_the_edits_that_have_one(name: str) -> None:
    job = a_job()
    changed, masked = with_setting(job, name, MASKED[name]), {"mask": "m.mp4"}
    assert fingerprint(changed) == fingerprint(job)
    assert fingerprint(changed, mask="none") == fingerprint(job)
    assert fingerprint(changed, **masked) != fingerprint(job, **masked)
    auto = with_setting(job, "reconstruction.mask", "auto")
    assert fingerprint(with_setting(auto, name, MASKED[name])) != fingerprint(auto)


def test_every_setting_is_known_to_change_an_edit_or_not_to() -> None:
    names = set()
    for name, value in asdict(a_job().editing).items():
        names |= {f"{name}.{field}" for field in value} if isinstance(value, dict) else {name}
    assert names == {*OTHER, *MASKED, *SAME}


def test_an_edit_is_stale_when_the_checkpoint_or_the_algorithm_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprint(a_job())
    assert fingerprint(replace(a_job(), checkpoint_fingerprint="other weights")) != before
    monkeypatch.setattr("cluster.job.ALGORITHM", 99)
    assert fingerprint(a_job()) != before


def test_where_a_job_runs_is_nothing_to_its_edits() -> None:
    elsewhere = replace(a_job(retries=9), manifest="other", files=("f",), run="later")
    assert fingerprint(elsewhere) == fingerprint(a_job())
    assert len(fingerprint(a_job())) == 24
