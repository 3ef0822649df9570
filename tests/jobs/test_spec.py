"""The job file: what is refused, and with which message."""

from dataclasses import asdict, fields
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import ClusterSettings
from jobs.errors import JobError
from jobs.spec import JobSpec, parse_job
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Limits,
    Reconstruction,
    Speed,
    TrajectorySettings,
    VideoSettings,
    places,
)

NAMES = st.sampled_from(
    sorted({part for place in places(JobSpec) for part in (*place.split("."), place)})
)
MINIMAL = {"manifest": "m.parquet", "output": "out"}


def problems(values: dict, *changes: str) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(values, changes, source="job file job.yaml")
    return str(caught.value)


def test_manifest_and_output_alone_are_a_whole_job() -> None:
    job = parse_job(MINIMAL, source="test")
    assert job.inversion == Inversion()
    assert job.reconstruction == Reconstruction()
    assert job.editing().checkpoint == "embedded"


def test_every_problem_is_listed_at_once_with_its_place() -> None:
    text = problems(
        {
            "manifest": "m.parquet",
            "inversion": {"steps": 0, "method": "exact"},
            "reconstruction": {"guidence_scale": 4, "start": 7, "inject_steps": [0, 2]},
            "vido": {},
        }
    )
    assert "job file job.yaml: 7 problems" in text
    assert "output: is missing" in text
    assert "inversion.steps: is 0; expected a whole number from 1 to 1000" in text
    assert "inversion.method: is 'exact'; expected pec, ddim, fixed_point or script" in text
    assert (
        "reconstruction.guidence_scale: there is no such key; did you mean 'guidance_scale'?"
        in text
    )
    assert "reconstruction.start: is 7; expected noise or inverted, or a number above 0" in text
    assert "reconstruction.inject_steps: is [0, 2]; expected [first, last]: two numbers" in text
    assert "vido: there is no such key; did you mean 'video'?" in text


def test_an_unknown_key_with_a_dash_keeps_its_name() -> None:
    text = problems({**MINIMAL, "reconstruction": {"guidance-scale": 4}})
    assert (
        "reconstruction.guidance-scale: there is no such key; did you mean 'guidance_scale'" in text
    )


def test_an_unknown_key_far_from_all_names_lists_those_that_are_known() -> None:
    assert "known here: dtype, keep" in problems({**MINIMAL, "trajectory": {"zzz": 1}})


def test_a_nested_unknown_key_is_compared_with_the_names_of_its_own_section() -> None:
    text = problems({**MINIMAL, "cluster": {"inversion": {"ulises": 2}}})
    assert "cluster.inversion.ulises: there is no such key; did you mean 'ulysses'?" in text


def test_any_value_can_be_set_from_the_command_line() -> None:
    job = parse_job(
        MINIMAL,
        [
            "reconstruction.guidance_scale=4",
            "inversion.method=ddim",
            "reconstruction.start=inverted",
        ],
        source="test",
    )
    assert job.reconstruction.guidance_scale == 4.0
    assert job.inversion.method == "ddim"
    assert job.reconstruction.start == "inverted"


def test_a_change_does_not_touch_the_other_values_of_its_section() -> None:
    values = {**MINIMAL, "inversion": {"steps": 10}}
    job = parse_job(values, ["inversion.method=ddim"], source="test")
    assert (job.inversion.steps, job.inversion.method) == (10, "ddim")
    assert values["inversion"] == {"steps": 10}


@pytest.mark.parametrize("change", ["steps", "=3", "inversion..steps=3"])
def test_a_change_that_is_not_key_and_value_is_refused(change: str) -> None:
    assert "expected `key=value`" in problems(MINIMAL, change)


def test_every_setting_of_a_job_reaches_the_processes_that_do_the_work() -> None:
    given = {
        "precision": "bf16",
        "seed": 7,
        "video": {"height": 32},
        "inversion": {"steps": 9},
        "reconstruction": {"guidance_scale": 4},
        "trajectory": {"keep": "never"},
        "speed": {"step_cache": 0.1},
        "limits": {"frames": 100},
    }
    job = parse_job({**MINIMAL, **given}, source="test")
    settings = {field.name for field in fields(job.editing())}
    assert settings == {"checkpoint", "output", *given}
    defaults = {field.name: field.default for field in fields(JobSpec)}
    for name in given:
        assert getattr(job.editing(), name) == getattr(job, name)
        assert getattr(job, name) != defaults[name]


def test_every_setting_is_explained_where_it_is_defined() -> None:
    sections = (VideoSettings, Inversion, Reconstruction, TrajectorySettings, Speed, Limits)
    for section in (*sections, ClusterSettings):
        for field in fields(section):
            assert field.name in (section.__doc__ or ""), f"{section.__name__}.{field.name}"
    explained = f"{JobSpec.__doc__} {EditingSettings.__doc__}"
    assert [field.name for field in fields(JobSpec) if field.name not in explained] == []


def test_a_job_adds_its_name_and_where_it_runs_to_what_a_process_with_the_model_knows() -> None:
    shared = {field.name for field in fields(EditingSettings)}
    own = {field.name for field in fields(JobSpec)} - shared
    assert own == {"manifest", "name", "cluster", "score", "accept"}


def test_the_settings_that_an_edits_fingerprint_is_of_keep_their_names() -> None:
    settings = asdict(parse_job(MINIMAL, source="test").editing())
    names = "checkpoint inversion limits output precision reconstruction seed "
    names += "speed trajectory video"
    assert sorted(settings) == names.split()
    assert sorted(settings["trajectory"]) == ["dtype", "keep"]


@pytest.mark.parametrize(
    ("section", "values", "complaint"),
    [
        ("reconstruction", {"guidance_steps": [0.9, 0.1]}, "guidance_steps is [0.9, 0.1]"),
        ("reconstruction", {"inject_steps": [0.8, 0.2]}, "its first number is above its last"),
        ("reconstruction", {"inject_blocks": [9, 3]}, "inject_blocks is [9, 3]"),
        ("cluster", {"start_deadline_s": float("inf")}, "cluster.start_deadline_s: is inf"),
    ],
)
def test_values_that_would_quietly_do_nothing_are_refused(
    section: str, values: dict, complaint: str
) -> None:
    assert complaint in problems({**MINIMAL, section: values})


@pytest.mark.parametrize("name", ["inversion_deadline_s", "reconstruction_deadline_s"])
def test_the_deadlines_of_earlier_versions_are_refused_with_what_takes_their_place(
    name: str,
) -> None:
    complaint = problems({**MINIMAL, "cluster": {name: 3600}})
    assert f"cluster.{name}: there is no such key; `cluster.stall_deadline_s` takes" in complaint
    assert "did you mean" not in complaint


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("reconstruction.start", 1.5, "1.5; expected noise or inverted, or a number above 0 and"),
        ("reconstruction.start", 60, "at most 1; for 60% write 0.6"),
        ("reconstruction.inject_steps", [0.5], "[0.5]; expected [first, last]: two numbers from 0"),
        (
            "reconstruction.inject_steps",
            0.5,
            "0.5; expected [first, last]: two numbers from 0 to 1",
        ),
        ("reconstruction.guidance_steps", [0, 0.5, 1], "two numbers from 0 to 1; it has 3 parts"),
        ("reconstruction.inject_blocks", ["a", 1], "two whole numbers, 0 or more, or null"),
        ("reconstruction.negative_prompt", 5, "5; expected a text; put it in quotes: '5'"),
        (
            "reconstruction.reference",
            False,
            "false; expected empty, shared, source, script or none",
        ),
        ("reconstruction.residual", "yes", "'yes'; expected true or false; write true without"),
        ("reconstruction.residual", 1, "1; expected true or false"),
        ("reconstruction.edits_at_once", None, "null; expected a whole number from 1 to 64; leave"),
        ("inversion.steps", "50", "'50'; expected a whole number from 1 to 1000; write 50 without"),
        ("inversion.steps", "1e2", "'1e2'; expected a whole number from 1 to 1000; write 100 with"),
        ("inversion.steps", [50], "[50]; expected a whole number from 1 to 1000; write 50 without"),
        ("inversion.steps", True, "true; expected a whole number from 1 to 1000"),
        ("inversion.steps", 2.5, "2.5; expected a whole number from 1 to 1000"),
        ("inversion.method", "PEC", "expected pec, ddim, fixed_point or script; did you mean pec?"),
        ("inversion", "steps:5", "a space is missing: `steps: 5`"),
        (
            "inversion",
            [1],
            "[1]; expected a section; set one of its keys: steps, method, iterations",
        ),
        (
            "video",
            "clip.mp4",
            "expected a section; set one of its keys: height, width, frames, fps, fit",
        ),
        ("video", "clip.mp4", "; videos stand in the manifest"),
        ("cluster.prompts", "a fox", "; the prompts of edits stand in the manifest"),
        ("video.fps", float("inf"), "inf; expected a number above 0 and at most 240, or null"),
        ("video.height", float("nan"), "nan; expected a whole number, 16 or more, or null"),
        ("video.frames", {"a": 1}, "{'a': 1}; expected a whole number, 5 or more, or null"),
        ("output", {"a": "b"}, "{'a': 'b'}; expected a text that is not empty"),
        ("output", " ", "' '; expected a text that is not empty"),
        ("checkpoint", None, "null; expected a text that is not empty; leave it out for the defau"),
        ("cluster.inversion.cfg", True, "true; expected 1 or 2"),
        ("cluster.inversion.ulysses", "outo", "a whole number, 1 or more, or auto; did you mean"),
        ("seed", "x" * 5000, "x...x"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected_and_the_way_out(
    place: str, value: Any, message: str
) -> None:
    values: Any = value
    for key in reversed(place.split(".")):
        values = {key: values}
    text = problems({**MINIMAL, **values})
    assert "1 problem\n" in text
    assert f"  {place}: is " in text
    assert message in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("guidance_scale", "did you mean 'reconstruction.guidance_scale'?"),
        ("num_inference_steps", "did you mean 'inversion.steps'?"),
        ("negative_prompt", "did you mean 'reconstruction.negative_prompt'?"),
        ("num_frames", "did you mean 'video.frames'?"),
        ("max_num_frames", "did you mean 'video.frames'?"),
        ("height", "did you mean 'video.height'?"),
        ("fps", "did you mean 'video.fps'?"),
        ("strength", "did you mean 'reconstruction.start'?"),
        ("generator", "did you mean 'seed'?"),
        ("torch_dtype", "did you mean 'precision'?"),
        ("dtype", "did you mean 'precision'?"),
        ("model_path", "did you mean 'checkpoint'?"),
        ("output_path", "did you mean 'output'?"),
        ("use_dynamic_cfg", "did you mean 'reconstruction.dynamic_guidance'?"),
        ("recon", "did you mean 'reconstruction'?"),
        ("gpus", "did you mean 'cluster.inversion.gpus' or 'cluster.reconstruction.gpus' or"),
        ("prompt", "it belongs to the manifest, in the column 'edits'"),
        ("video_path", "it belongs to the manifest, in the column 'video'"),
        ("skip_frames_start", "it belongs to the manifest, in the column 'start_frame'"),
        ("num_videos_per_prompt", "each edit gives one video; for more, repeat the prompt"),
    ],
)
def test_a_name_of_diffusers_or_without_its_section_leads_to_the_key(name: str, meant: str) -> None:
    assert f"  {name}: there is no such key; {meant}" in problems({**MINIMAL, name: 4})
    assert f"  --set {name}: there is no such key; {meant}" in problems(MINIMAL, f"{name}=4")
    inside = problems({**MINIMAL, "trajectory": {"keep": "never"}, "inversion": {name: 4}})
    assert f"  inversion.{name}: there is no such key; " in inside


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(values=st.dictionaries(NAMES, ANYTHING, max_size=5))
def test_whatever_the_values_are_a_job_is_made_or_refused_in_a_few_lines(
    values: dict[str, Any],
) -> None:
    try:
        job = parse_job(values, source="test")
    except JobError as error:
        assert len(str(error)) < 20_000
    else:
        assert parse_job(job.plain(), source="test") == job


@pytest.mark.parametrize("key", [True, None, 3, 1.5])
def test_a_key_that_is_no_text_is_refused(key: Any) -> None:
    assert "there is no such key; known here: accept, checkpoint" in problems({**MINIMAL, key: 1})


@pytest.mark.parametrize("reference", [None, "null", "empty"])
def test_the_reference_of_the_empty_prompt_has_its_old_names_too(reference: str | None) -> None:
    job = parse_job({**MINIMAL, "reconstruction": {"reference": reference}}, source="test")
    assert job.reconstruction.reference == "empty"
    written = yaml.safe_dump({"reconstruction": {"reference": reference}})
    assert parse_job({**MINIMAL, **yaml.safe_load(written)}, source="test") == job
    changed = parse_job(MINIMAL, ["reconstruction.reference=null"], source="test")
    assert changed.reconstruction.reference == "empty"


def test_numbers_become_what_their_setting_is_declared_as() -> None:
    values = {"reconstruction": {"start": 1, "inject_steps": [0, 1]}, "inversion": {"steps": 7.0}}
    job = parse_job({**MINIMAL, **values}, source="test")
    found = (job.reconstruction.start, *job.reconstruction.inject_steps, job.inversion.steps)
    assert [(type(one), one) for one in found] == [(float, 1), (float, 0), (float, 1), (int, 7)]


def test_a_section_whose_keys_are_all_commented_out_has_the_defaults() -> None:
    job = parse_job({**MINIMAL, "inversion": None, "cluster": {"prompts": None}}, source="test")
    assert job == parse_job(MINIMAL, source="test")


def test_a_change_of_what_is_no_section_is_refused_and_nothing_is_lost() -> None:
    text = problems({**MINIMAL, "inversion": 5}, "inversion.steps=3")
    assert "--set 'inversion.steps=3': 'inversion' is 5 in the job, and no section" in text


def test_a_change_that_is_no_yaml_is_refused() -> None:
    assert "--set 'seed=[': is not valid YAML" in problems(MINIMAL, "seed=[")
    assert "the key 'fps' stands in line 1 already" in problems(MINIMAL, "video={fps: 1, fps: 2}")


def test_one_change_may_be_given_as_a_text() -> None:
    assert parse_job(MINIMAL, "inversion.steps=7", source="test").inversion.steps == 7


def test_a_job_as_plain_values_is_the_same_job() -> None:
    given = {"reconstruction": {"inject_blocks": [0, 3]}, "cluster": {"inversion": {"gpus": 2}}}
    job = parse_job({**MINIMAL, **given}, source="test")
    assert parse_job(yaml.safe_load(yaml.safe_dump(job.plain())), source="test") == job
