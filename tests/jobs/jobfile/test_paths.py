"""Where the paths of a job lead, wherever the command runs."""

import os
from pathlib import Path

import fsspec
import pytest
import yaml

from jobs.jobfile.paths import absolute, folder_of, model, name_of
from jobs.spec import load_job, parse_job

HUB = "zai-org/CogVideoX-5b"


def write(path: Path, **values: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"manifest": "m.parquet", "output": "out", **values}))
    return str(path)


def test_paths_in_a_job_file_are_relative_to_it_and_those_on_the_command_line_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "jobs/job.yaml", checkpoint="../model")
    for folder in ("jobs", "elsewhere"):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        job = load_job("../jobs/job.yaml")
        assert os.path.realpath(job.manifest) == str(tmp_path / "jobs/m.parquet")
        assert os.path.realpath(job.editing().output) == str(tmp_path / "jobs/out")
        assert os.path.realpath(job.checkpoint) == str(tmp_path / "model")
        changed = load_job("../jobs/job.yaml", ["manifest=other.parquet", "checkpoint=./mine"])
        assert changed.manifest == str(tmp_path / folder / "other.parquet")
        assert changed.checkpoint == str(tmp_path / folder / "mine")
        assert changed.output == job.output


def test_without_a_file_paths_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"manifest": "m", "output": "runs/first", "checkpoint": "a/b/c"}
    editing = parse_job(values, source="test").editing()
    assert editing.output == str(tmp_path / "runs/first")
    assert editing.checkpoint == str(tmp_path / "a/b/c")


def test_uris_absolute_paths_the_embedded_checkpoint_and_names_of_the_hub_stay(
    tmp_path: Path,
) -> None:
    for checkpoint in ("embedded", HUB, "s3://b/model", "/models/5b"):
        path = write(
            tmp_path / "job.yaml", manifest="s3://b/m", output="/out", checkpoint=checkpoint
        )
        job = load_job(path)
        assert (job.manifest, job.output, job.checkpoint) == ("s3://b/m", "/out", checkpoint)


def test_a_folder_beside_the_job_file_wins_over_a_name_of_the_hub_and_one_elsewhere_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "jobs/job.yaml", checkpoint=HUB)
    (tmp_path / "here" / HUB).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert load_job(path).editing().checkpoint == HUB
    assert model(HUB) == str(tmp_path / "here" / HUB)
    (tmp_path / "jobs" / HUB).mkdir(parents=True)
    assert load_job(path).editing().checkpoint == str(tmp_path / "jobs" / HUB)
    for name in ("./zai-org", "../CogVideoX-5b", "CogVideoX-5b"):
        assert load_job(write(tmp_path / "job.yaml", checkpoint=name)).checkpoint == str(
            tmp_path / name
        )


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "a/job.yaml", output="~/out", checkpoint="~/models/5b")
    job = load_job("~/a/job.yaml", ["manifest=~/m.parquet"])
    assert job == load_job(path, ["manifest=~/m.parquet"])
    found = (job.output, job.checkpoint, job.manifest)
    assert found == tuple(str(tmp_path / name) for name in ("out", "models/5b", "m.parquet"))


def test_a_job_file_in_object_storage_has_its_paths_there() -> None:
    job = {"manifest": "../m.parquet", "output": "out", "checkpoint": HUB}
    with fsspec.open("memory://jobs-paths/a/job.yaml", "wb") as file:
        file.write(yaml.safe_dump(job).encode())
    found = load_job("memory://jobs-paths/a/job.yaml")
    assert found.manifest == "memory://jobs-paths/m.parquet"
    assert (found.output, found.checkpoint) == ("memory://jobs-paths/a/out", HUB)


@pytest.mark.parametrize(
    ("file", "location", "leads_to"),
    [
        ("s3://b/jobs/job.yaml", "m.parquet", "s3://b/jobs/m.parquet"),
        ("s3://b/job.yaml", "./a/../m.parquet", "s3://b/m.parquet"),
        ("s3://b/run-12:30/job.yaml", "m", "s3://b/run-12:30/m"),
        ("simplecache::s3://b/j/job.yaml", "m", "simplecache::s3://b/j/m"),
        ("zip://j/job.yaml::s3://b/a.zip", "m", "zip://j/m::s3://b/a.zip"),
        ("https://h/j/job.yaml?key=a/b", "m", "https://h/j/m"),
        ("file:///j/job.yaml", "m", "file:///j/m"),
        ("s3://b/job.yaml", "/local/m", "/local/m"),
        ("s3://b/job.yaml", "gs://c/m", "gs://c/m"),
        ("/nowhere/job.yaml", "/local//m/", "/local/m"),
    ],
)
def test_a_location_is_joined_to_the_folder_of_its_job_file(
    file: str, location: str, leads_to: str
) -> None:
    assert absolute(location, folder_of(file)) == leads_to


def test_a_job_from_a_pipe_has_paths_of_the_working_directory() -> None:
    assert folder_of("/dev/stdin") == folder_of("/dev/null") == ""
    assert name_of("/dev/null") == ""


def test_what_a_run_wrote_of_itself_is_a_job_again(tmp_path: Path) -> None:
    job = load_job(write(tmp_path / "job.yaml", inversion={"steps": 7}))
    written = {**job.plain(), "about": {"run": "x", "versions": {"retake": "1"}}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/job.yaml").write_text(yaml.safe_dump(written))
    assert load_job(str(tmp_path / "out/job.yaml")) == job


def test_a_job_is_the_same_by_every_way_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The videos' paths are in the fingerprints of edits: another path makes all of them again."""
    write(tmp_path / "jobs/job.yaml", checkpoint="../model")
    (tmp_path / "link").symlink_to(tmp_path / "jobs")
    monkeypatch.chdir(tmp_path / "jobs")
    there = load_job("job.yaml")
    assert there.manifest == str(tmp_path.resolve() / "jobs/m.parquet")
    for way in ("../jobs/job.yaml", "./job.yaml", "../link/job.yaml", f"{tmp_path}/link/job.yaml"):
        assert load_job(way) == there


@pytest.mark.parametrize(
    ("file", "given", "name"),
    [
        ("horses.yaml", {}, "horses"),
        ("job.yaml", {}, ""),  # the report then takes the name of the output folder
        ("horses.yaml", {"name": "my horses"}, "my horses"),
    ],
)
def test_a_job_has_the_name_of_its_file(
    tmp_path: Path, file: str, given: dict[str, str], name: str
) -> None:
    (tmp_path / file).write_text(yaml.safe_dump({"manifest": "m.parquet", "output": "out"} | given))
    assert load_job(str(tmp_path / file)).name == name
