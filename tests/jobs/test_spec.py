"""The job file: what is refused, and with which message."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from cluster.settings import ClusterSettings
from jobs.errors import JobError
from jobs.spec import JobSpec, load_job, parse_job
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    TrajectorySettings,
    VideoSettings,
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
    assert "inversion.steps: is 0; input should be greater than or equal to 1" in text
    assert "inversion.method: is 'exact'; input should be 'pec', 'ddim'" in text
    assert (
        "reconstruction.guidence_scale: there is no such key; did you mean 'guidance_scale'?"
        in text
    )
    assert "reconstruction.start: is 7; input should be 'noise' or 'inverted' or" in text
    assert "reconstruction.inject_steps.1: is 2;" in text
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


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; expected keys and values"),
        ("- a\n- b\n", "is a list; expected keys and values"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match="job.yaml") as caught:
        load_job(str(path))
    assert complaint in str(caught.value)


def test_a_job_file_that_is_missing_is_named() -> None:
    with pytest.raises(JobError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_job("nowhere.yaml")


def test_relative_locations_become_absolute_and_uris_stay() -> None:
    values = {"manifest": "m", "output": "runs/first", "checkpoint": "a/b/c"}
    job = parse_job(values, source="test")
    assert job.editing().output == str(Path("runs/first").absolute())
    assert job.editing().checkpoint == str(Path("a/b/c").absolute())
    remote = parse_job(
        {"manifest": "m", "output": "s3://b/o", "checkpoint": "zai-org/CogVideoX-5b"}, source="test"
    )
    assert remote.editing().output == "s3://b/o"
    assert remote.editing().checkpoint == "zai-org/CogVideoX-5b"


def test_a_folder_of_two_names_is_a_folder_and_not_a_repository_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zai-org/CogVideoX-5b").mkdir(parents=True)
    for name in ("zai-org/CogVideoX-5b", "./zai-org", "../CogVideoX-5b", "CogVideoX-5b"):
        job = parse_job({**MINIMAL, "checkpoint": name}, source="test")
        assert job.editing().checkpoint == str((tmp_path / name).absolute())


def test_every_setting_of_a_job_reaches_the_processes_that_do_the_work() -> None:
    given = {
        "precision": "bf16",
        "seed": 7,
        "video": {"height": 32},
        "inversion": {"steps": 9},
        "reconstruction": {"guidance_scale": 4},
        "trajectory": {"keep": "never"},
    }
    job = parse_job({**MINIMAL, **given}, source="test")
    settings = {field.name for field in fields(job.editing())}
    assert settings == {"checkpoint", "output", *given}
    defaults = {field.name: field.default for field in fields(JobSpec)}
    for name in given:
        assert getattr(job.editing(), name) == getattr(job, name)
        assert getattr(job, name) != defaults[name]


def test_every_setting_is_explained_where_it_is_defined() -> None:
    for section in (VideoSettings, Inversion, Reconstruction, TrajectorySettings, ClusterSettings):
        for field in fields(section):
            assert field.name in (section.__doc__ or ""), f"{section.__name__}.{field.name}"
    explained = f"{JobSpec.__doc__} {EditingSettings.__doc__}"
    assert [field.name for field in fields(JobSpec) if field.name not in explained] == []


def test_a_job_adds_nothing_to_what_the_processes_with_the_model_know_but_where_it_runs() -> None:
    shared = {field.name for field in fields(EditingSettings)}
    assert {field.name for field in fields(JobSpec)} - shared == {"manifest", "cluster"}


def test_the_settings_that_an_edits_fingerprint_is_of_keep_their_names() -> None:
    settings = asdict(parse_job(MINIMAL, source="test").editing())
    names = "checkpoint inversion output precision reconstruction seed trajectory video"
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
