"""The command `retake` as a person runs it, with the manifest, videos and output on S3."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pytest
import yaml

from cluster.results.parts import read_parts
from pipeline.model.checkpoint import open_checkpoint
from pipeline.storage import Folder
from tests.jobs.test_run import SMALL, a_video, frames_of
from tests.s3_server import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.s3]


def retake(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        timeout=240,
        check=False,
    )


def test_a_job_runs_with_everything_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "requests"
    monkeypatch.setenv("RETAKE_CACHE", str(tmp_path / "cache"))
    with s3_server(log) as access:
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        fs.put(f"{open_checkpoint('embedded').path}/", "bucket/model/", recursive=True)
        for name in ("a.mp4", "b c.mp4"):
            a_video(tmp_path / name)
            fs.put_file(str(tmp_path / name), f"bucket/clips/{name}")
        made = retake(
            "manifest", "s3://bucket/clips", "s3://bucket/m.parquet", "--prompt", "blue", **access
        )
        assert made.returncode == 0, made.stderr
        assert "2 videos, 2 edits" in made.stdout
        job = tmp_path / "job.yaml"
        job.write_text(
            yaml.safe_dump(
                {
                    **SMALL,
                    "manifest": "s3://bucket/m.parquet",
                    "output": "s3://bucket/out",
                    "checkpoint": "s3://bucket/model",
                }
            )
        )
        ran = retake("run", str(job), "--set", "reconstruction.guidance_scale=2", **access)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        gets = [line.split() for line in log.read_text().splitlines() if line.startswith("GET")]
        model = Counter(line[1] for line in gets if "/model/" in line[1] and len(line) == 2)
        assert len([name for name in model if name.endswith(".safetensors")]) == 3
        assert set(model.values()) == {1}, "the driver and all ranks fetch a file once"
        output = Folder("s3://bucket/out")
        rows = [row for _, table in read_parts(output) for row in table.to_pylist()]
        assert [row["status"] for row in rows] == ["ok", "ok"]
        assert {row["guidance_scale"] for row in rows} == {2.0}
        for row in rows:
            assert frames_of(output.read(row["output"])) == (5, 32, 32, 8.0)
            assert output.fs.info(output.path(row["output"]))["ContentType"] == "video/mp4"
            assert output.exists(f"trajectories/{row['trajectory']}/index.json")
        shown = retake("logs", "s3://bucket/out", "--json", **access)
        events = [json.loads(line) for line in shown.stdout.splitlines()]
        assert events[0]["event"] == "run began"
        assert events[-1]["event"] == "run ended"
        # Ray may end the owner within the 5 s for which its last events wait for a request.
        assert Counter(e["event"] for e in events if "edit_id" in e) <= Counter({"edit stored": 2})
        assert "group starting" in {e["event"] for e in events}
        again = retake("run", str(job), "--set", "reconstruction.guidance_scale=2", **access)
        assert again.returncode == 0
        assert "nothing is pending" in again.stdout
