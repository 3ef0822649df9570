"""Results that tests of the report make up: rows, their Parquet files, and the clips they name."""

from __future__ import annotations

import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pyarrow as pa

from cluster.results.schema import SCHEMA, to_parquet
from jobs.report import write_report
from pipeline.records import Metrics, Timings
from pipeline.storage import Folder
from tests.drawn_videos import draw, grays

FRAMES, FPS, SIZE = 9, 8, 64
METRICS = [field.name for field in fields(Metrics) if field.name != "unmeasured"]
TIMINGS = [field.name for field in fields(Timings)]
NOON = datetime(2025, 11, 22, 12, 0, tzinfo=UTC)
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script> & "red"'


def make_row(video_id: str = "clip-1", edit_id: str | None = "red", **columns: Any) -> dict:
    """A row of an edit that was made; `metrics` in `columns` are set among the others."""
    metrics = dict.fromkeys(METRICS, 0.5) | columns.pop("metrics", {})
    return {
        "video_id": video_id,
        "edit_id": edit_id,
        "video": f"/videos/{video_id}.mp4",
        "prompt": f"a {edit_id} star",
        "source_prompt": "a blue star",
        "status": "ok",
        "error_code": None,
        "error": None,
        "output": f"edits/{video_id}/{edit_id}.mp4",
        "source": f"sources/{video_id}.mp4",
        "trajectory": "9f2c41aa",
        "attempts": 1,
        "forwards": {"inversion": 16.0, "plain": 30.0, "injected": 60.0},
        "gpu_seconds": 2.0,
        "timings": dict.fromkeys(TIMINGS, 0.5),
        "metrics": metrics,
        "guidance_scale": 6.0,
        "seed": 7,
        "frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
        "fps": float(FPS),
        "fingerprint": "a81c9e2f",
        "run": "run-1",
        "finished_at": NOON,
        **columns,
    }


def make_failed_row(code: str, error: str, **columns: Any) -> dict:
    nothing = dict.fromkeys(METRICS)
    return make_row(
        **{
            "status": "failed",
            "error_code": code,
            "error": error,
            "output": None,
            "metrics": nothing,
            "gpu_seconds": None,
        }
        | columns
    )


def write_rows(output: str, rows: Sequence[dict], name: str = "run-1-000000") -> None:
    """Store rows as one file of the results; columns beside the schema's are the manifest's."""
    other = [name for name in rows[0] if name not in SCHEMA.names]
    extra = pa.Table.from_pylist([{name: row[name] for name in other} for row in rows]).schema
    metrics = pa.struct([(name, pa.float64()) for name in rows[0]["metrics"]])
    own = [field.with_type(metrics) if field.name == "metrics" else field for field in SCHEMA]
    table = pa.Table.from_pylist(list(rows), schema=pa.schema([*own, *(extra if other else [])]))
    Folder(output).write(f"results/{name}.parquet", to_parquet(table))


def write_clips(output: str, rows: Sequence[dict]) -> None:
    """Store the clips that rows name: frames of a gray that tells their number."""
    clip = draw(grays(FRAMES, SIZE, SIZE), rate=FPS)
    paths = {path for row in rows for path in (row["output"], row["source"]) if path}
    for path in sorted(paths):
        Folder(posixpath.join(output, posixpath.dirname(path))).write(
            posixpath.basename(path), clip
        )


def make_rows(videos: int, edits: int) -> list[dict]:
    """A job's rows: edit k of all edits has the flicker k/10000, and each 25th edit failed.

    `clip-2` has a prompt with HTML in it, and the id of the third video needs encoding in a URL.
    """
    rows = []
    for number in range(videos * edits):
        video, edit = divmod(number, edits)
        same = {
            "video_id": "clip-3 50% #a&ü" if video == 2 else f"clip-{video + 1}",
            "edit_id": f"edit-{edit + 1}",
            "finished_at": NOON + timedelta(seconds=number),
        }
        if number % 25 == 24:
            codes = ("not_finite", "out_of_memory")
            rows.append(make_failed_row(codes[number % 2], f"edit {number} went wrong", **same))
            continue
        prompt = HOSTILE if (video, edit) == (1, 0) else f"a red star number {number}"
        metrics = {"flicker": number / 10_000, "motion_agreement": 1 - (number % 100) / 200}
        rows.append(make_row(**same, prompt=prompt, metrics=metrics))
    return rows


def read_summary(output: str) -> dict[str, Any]:
    page = Folder(output).read("report/index.html").decode()
    found = re.search(r'<script type="application/json" id="summary">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def read_data(output: str, name: str) -> Any:
    """The values of a file of data, as the page's `retake` function gets them."""
    script = Folder(output).read(f"report/data/{name}.js").decode()
    assert script.startswith(f'retake("{name}",')
    return json.loads(script.removeprefix(f'retake("{name}",').removesuffix(");\n"))


def read_cards(output: str) -> list[dict[str, Any]]:
    return [card for name in read_summary(output)["cards"] for card in read_data(output, name)]


def read_column(output: str, name: str) -> Any:
    return read_data(output, read_summary(output)["columns"][name])


def report_of(rows: Sequence[dict], output: Path, **options: Any) -> str:
    """The output folder of rows, with its report."""
    write_rows(str(output), rows)
    write_report(str(output), **options)
    return str(output)


@contextmanager
def public_bucket() -> Iterator[tuple[str, str]]:
    """A folder in a bucket that anyone may read: its URI, and its address over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    bucket = f"report-{uuid.uuid4().hex[:8]}"  # moto keeps buckets beyond the server's life
    allowed = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    policy = {"Statement": [allowed | {"Resource": f"arn:aws:s3:::{bucket}/*"}]}
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # another test's server may stand in one
    try:
        with patch.dict(os.environ, {"AWS_ENDPOINT_URL": address, **keys}):
            s3().mkdir(bucket)
            s3().call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))
            yield f"s3://{bucket}/job", f"{address}/{bucket}/job"
    finally:
        s3.clear_instance_cache()
        server.stop()
