"""What of a job travels, and what is refused since the cluster would not see it."""

from __future__ import annotations

import inspect
import io
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.job import CannotRun
from cluster.submission.submit import Submission, _in_a_variable, _job, entry_command
from jobs.cli import app
from jobs.commands.submission import submit
from jobs.commands.work import run
from jobs.errors import JobError
from jobs.manifest.writing import write_manifest
from jobs.spec import load_job
from jobs.submission.travel import RunOptions, travelling

FAR = "s3://bucket/horse.mp4"


def spec(folder: Path, videos: tuple[str, ...] = (FAR,), **values: Any) -> Any:
    rows = [{"video": video, "edits": [{"prompt": "a zebra"}]} for video in videos]
    write_manifest(rows, f"{folder}/m.parquet")
    job = {"manifest": "m.parquet", "output": "s3://bucket/out", "name": "horses", **values}
    (folder / "horses.yaml").write_text(yaml.safe_dump(job))
    return load_job(str(folder / "horses.yaml"), ["inversion.steps=7"])


def sent(job: Any, options: RunOptions | None = None, *, sees_files: bool = False) -> Submission:
    return travelling(job, options or RunOptions(), sees_files=sees_files)


def refusal(job: Any) -> str:
    with pytest.raises(JobError) as refused:
        sent(job)
    return str(refused.value)


def test_a_local_manifest_travels_and_the_job_names_it_beside_itself(tmp_path: Path) -> None:
    found = sent(spec(tmp_path))
    assert found.files == {"manifest/m.parquet": (tmp_path / "m.parquet").read_bytes()}
    job = yaml.safe_load(found.job)
    assert (job["manifest"], job["output"]) == ("manifest/m.parquet", "s3://bucket/out")
    assert job["inversion"]["steps"] == 7
    assert (found.name, found.output, found.embedded) == ("horses", "s3://bucket/out", True)


def test_the_job_that_travels_is_the_same_job(tmp_path: Path) -> None:
    there = tmp_path / "there"
    own = spec(tmp_path, output="s3://bucket/out", manifest="s3://bucket/m.parquet")
    found = sent(own)
    there.mkdir()
    (there / "job.yaml").write_text(found.job)
    assert load_job(str(there / "job.yaml")) == own


def test_a_folder_of_parquet_files_travels_with_its_hive_folders(tmp_path: Path) -> None:
    job = spec(tmp_path, manifest="many")
    for seed in (1, 2):
        (tmp_path / f"many/batch={seed}").mkdir(parents=True)
        rows = [{"video": FAR, "video_id": f"v{seed}", "edits": [{"prompt": "x"}]}]
        write_manifest(rows, f"{tmp_path}/many/batch={seed}/a.parquet")
    found = sent(job)
    assert set(found.files) == {"manifest/batch=1/a.parquet", "manifest/batch=2/a.parquet"}
    assert yaml.safe_load(found.job)["manifest"] == "manifest"


def test_on_this_machine_nothing_travels_and_every_location_stays(tmp_path: Path) -> None:
    found = sent(spec(tmp_path, ("horse.mp4",), output="out"), sees_files=True)
    job = yaml.safe_load(found.job)
    assert found.files == {}
    assert job["manifest"] == f"{tmp_path}/m.parquet"
    assert job["output"] == f"{tmp_path}/out"


def test_all_that_the_cluster_would_not_see_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "5b").mkdir()
    videos = ("horse.mp4", FAR, f"{tmp_path}/dog.mp4")
    text = refusal(spec(tmp_path, videos, output="out", checkpoint="5b"))
    assert f"output {tmp_path}/out: is a folder of this machine" in text
    assert f"checkpoint {tmp_path}/5b: is on this machine" in text
    assert f"2 rows with a video of this machine ('horse.mp4', '{tmp_path}/dog.mp4')" in text
    assert text.endswith("as on a shared file system, give --shared")


def test_a_pattern_of_local_manifests_is_refused(tmp_path: Path) -> None:
    assert "/m*.parquet: is on this machine" in refusal(spec(tmp_path, manifest="m*.parquet"))


def test_a_checkpoint_of_the_hub_or_of_storage_stays(tmp_path: Path) -> None:
    for checkpoint in ("zai-org/CogVideoX-5b", "s3://bucket/5b"):
        found = sent(spec(tmp_path, checkpoint=checkpoint))
        assert (yaml.safe_load(found.job)["checkpoint"], found.embedded) == (checkpoint, False)


def test_options_travel_and_so_do_the_lists_that_they_name(tmp_path: Path) -> None:
    (tmp_path / "picks.csv").write_text("video_id\na\n")
    options = RunOptions(
        3, ("b*", f"@{tmp_path}/picks.csv", "s3://bucket/more.csv"), True, True, ("oom",)
    )
    found = sent(spec(tmp_path), options)
    assert found.options == [
        "--only=b*",
        "--only=@only/1-picks.csv",
        "--only=s3://bucket/more.csv",
        "--limit=3",
        "--retry-failed",
        "--code=oom",
        "--retry-quarantined",
    ]
    assert found.files["only/1-picks.csv"] == b"video_id\na\n"
    assert entry_command(found) == (
        "exec $(command -v python || echo python3) -m cluster.submission.entry run --wait "
        "'--only=b*' --only=@only/1-picks.csv --only=s3://bucket/more.csv --limit=3 "
        "--retry-failed --code=oom --retry-quarantined job.yaml"
    )


def test_every_option_of_a_run_that_chooses_its_part_is_one_of_submit_too() -> None:
    """What an option of `retake run` chooses, a job that is sent must be able to choose."""
    here = {"job", "set_", "dry_run", "wait"}
    of = {
        name: set(inspect.signature(one).parameters) for name, one in (("run", run), ("s", submit))
    }
    assert of["run"] - here <= of["s"]
    chosen = {"only", "limit", "retry_failed", "codes", "retry_quarantined"}
    assert {one.name for one in fields(RunOptions)} == chosen
    assert {"codes" if name == "code" else name for name in of["run"] - here} == chosen


def test_a_code_that_does_not_exist_is_refused_before_the_cluster_is_asked(tmp_path: Path) -> None:
    spec(tmp_path)
    for options, part in (
        (["--retry-failed", "--code", "no_such"], "there is no such error code"),
        (["--code", "video_unreadable"], "expected --retry-failed beside it"),
    ):
        job = ["submit", f"{tmp_path}/horses.yaml", "--address", "http://127.0.0.1:1"]
        done = CliRunner().invoke(app, [*job, *options])
        assert done.exit_code == 2
        assert part in done.output


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    job = spec(tmp_path)
    with pytest.raises(JobError, match=r"--only \S+none.csv: there is no such file"):
        sent(job, RunOptions(only=(f"@{tmp_path}/none.csv",)))


def test_an_image_gets_the_job_in_a_variable_and_no_file_and_no_secret(tmp_path: Path) -> None:
    import base64
    from dataclasses import replace

    far = spec(tmp_path, manifest="s3://bucket/m.parquet")
    found = replace(sent(far), image="registry/retake:1")
    assert base64.b64decode(_in_a_variable(found)).decode() == found.job
    assert entry_command(found).endswith(' run --wait "$folder/job.yaml"')
    with pytest.raises(CannotRun, match=r"--image: manifest/m.parquet is a file of this machine"):
        _in_a_variable(replace(sent(spec(tmp_path)), image="registry/retake:1"))
    secret = "https://host/m.parquet?X-Amz-Signature=0123456789abcdef0123456789abcdef"
    with pytest.raises(CannotRun, match="a location of the job holds a secret"):
        _in_a_variable(sent(spec(tmp_path, manifest=secret)))


def test_what_is_too_large_for_ray_is_refused_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.submission.submit.MOST_BYTES", 10_000_000)
    with pytest.raises(CannotRun, match="has 11 MB; Ray takes 10 at most"):
        _job(Submission("n", "job", {"manifest/m.parquet": bytes(11_000_000)}))


def test_what_may_hold_secrets_can_be_read_by_its_owner_alone() -> None:
    made = _job(Submission("n", "job", values={"HF_TOKEN": "hf_value"}))
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        modes = {one.filename: one.external_attr >> 16 for one in archive.infolist()}
    assert modes == {"job.yaml": 0o100600, ".retake-environment.json": 0o100600}
