"""The main job, whole: Ray Data, rank processes, stored trajectories, results.

The embedded checkpoint runs with few steps on small clips here: what counts is what is done, what
is refused and what is written, not how the edits look.
"""

import io
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml

import jobs.demo
from cluster.manifest import carried, convert
from cluster.ranks.messages import EncodePrompts
from cluster.results.compaction import current_rows
from cluster.results.parts import read_parts
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, app
from jobs.manifest.writing import write_manifest
from pipeline.media.encoding import write_clip
from pipeline.records import Metrics, Timings
from pipeline.storage import Folder
from tests.drawn_videos import draw_sound
from tests.in_process import Group, run_in_process

SMALL: dict[str, Any] = {
    "video": {"height": 32, "width": 32, "frames": 5},
    "inversion": {"steps": 3, "vae_psnr": False},
    "reconstruction": {"start": "inverted"},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for all jobs of the module."""
    from cluster import quiet  # noqa: F401
    import ray  # isort: skip

    ray.init(address="local", num_cpus=7, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def where_jobs_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the cluster if a test is marked with `ray`, else in this process."""
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("cluster")
    else:
        run_in_process(monkeypatch)


def a_video(path: Path, frames: int = 6, height: int = 40, width: int = 56, shade: int = 0) -> str:
    picture = torch.full((frames, height, width, 3), 40 + shade, dtype=torch.uint8)
    for i in range(frames):
        picture[i, 10:20, 4 + 3 * i : 14 + 3 * i] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_clip(file, picture, fps=8)
    return path.name


def a_row(video: str, *prompts: str, **values: Any) -> dict[str, Any]:
    return {"video": video, "edits": [{"prompt": p, "edit_id": p[:8]} for p in prompts], **values}


def a_mask(path: Path, columns: int) -> str:
    """A mask of the videos here, whose first columns are white."""
    pixels = torch.zeros(6, 40, 56, 3, dtype=torch.uint8)
    pixels[:, :, :columns] = 255
    with path.open("wb") as file:
        write_clip(file, pixels, fps=8)
    return path.name


def run(
    folder: Path,
    rows: list[dict[str, Any]],
    name: str = "manifest.parquet",
    options: tuple[str, ...] = (),
    **sections: Any,
) -> int:
    write_manifest(rows, f"{folder}/{name}")
    values = {**SMALL, "manifest": f"{folder}/{name}", "output": f"{folder}/out"}
    for key, section in sections.items():
        values[key] = {**values.get(key, {}), **section} if isinstance(section, dict) else section
    return retake_run(folder, values, *options)


def retake_run(folder: Path, values: dict[str, Any], *options: str) -> int:
    """`retake run` in this process; returns its exit status."""
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(values))
    return app(["run", str(job), *options], standalone_mode=False)


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = [r for _, t in read_parts(Folder(f"{folder}/out")) for r in t.to_pylist()]
    keyed = {(row["video_id"], row["edit_id"]): row for row in rows}
    assert len(keyed) == len(rows), "an edit has more than one result"
    return keyed


def frames_of(data: bytes) -> tuple[int, int, int, float]:
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        rate = file.streams.video[0].average_rate
        assert rate is not None
        return len(frames), *frames[0].shape[:2], float(rate)


@pytest.mark.ray
def test_a_job_is_done_once_and_then_only_what_is_pending(tmp_path: Path) -> None:
    rows = [
        a_row(a_video(tmp_path / "a.mp4"), "red", "blue", video_id="a", split="train"),
        a_row(a_video(tmp_path / "b.mp4", shade=60), "red", video_id="b", split="test"),
    ]
    assert run(tmp_path, rows) == EXIT_DONE
    first = results(tmp_path)
    assert set(first) == {("a", "red"), ("a", "blue"), ("b", "red")}
    for row in first.values():
        assert (row["status"], row["error_code"], row["attempts"]) == ("ok", None, 1)
        assert (row["frames"], row["height"], row["width"], row["fps"]) == (5, 32, 32, 8.0)
        data = (tmp_path / "out" / row["output"]).read_bytes()
        assert frames_of(data) == (5, 32, 32, 8.0)
        assert frames_of((tmp_path / "out" / row["source"]).read_bytes()) == (5, 32, 32, 8.0)
        assert row["metrics"]["flicker"] is not None
    assert first["a", "red"]["split"] == "train"
    # PEC: one more evaluation than levels, shared by the two edits of the video.
    assert first["a", "red"]["forwards"]["inversion"] == 2.0
    assert first["b", "red"]["forwards"]["inversion"] == 4.0

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/edits").rglob("*.mp4")}
    assert run(tmp_path, rows) == EXIT_DONE
    assert results(tmp_path) == first

    rows[0]["edits"].append({"prompt": "green", "edit_id": "green"})
    assert run(tmp_path, rows) == EXIT_DONE
    second = results(tmp_path)
    assert second["a", "green"]["status"] == "ok"
    assert second["a", "green"]["forwards"]["inversion"] == 0, "the video was inverted again"
    assert second["a", "green"]["trajectory"] == first["a", "red"]["trajectory"]
    assert {key: second[key] for key in first} == first
    assert written == {path: path.stat().st_mtime_ns for path in written}

    assert run(tmp_path, rows, reconstruction={"guidance_scale": 4}) == EXIT_DONE
    third = results(tmp_path)
    assert set(third) == set(second)
    assert all(third[key]["fingerprint"] != second[key]["fingerprint"] for key in second)
    assert all(row["forwards"]["inversion"] == 0 for row in third.values())


def test_runs_of_a_part_do_the_part_and_leave_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [a_row("a.mp4", "red", "blue", video_id=v, split=v * 2) for v in ("a", "b", "c")]
    a_video(tmp_path / "a.mp4")
    until_done = {"trajectory": {"keep": "until_done"}}
    assert run(tmp_path, rows, options=("--only", "b/red"), **until_done) == EXIT_DONE
    assert set(results(tmp_path)) == {("b", "red")}
    assert "this run takes 1 video with 1 pending edit; done before: 0" in (capsys.readouterr().out)
    assert run(tmp_path, rows, options=("--limit", "2"), **until_done) == EXIT_DONE
    done = results(tmp_path)
    assert set(done) == {("a", "red"), ("a", "blue"), ("b", "red"), ("b", "blue")}
    assert done["b", "blue"]["split"] == "bb"
    assert done["b", "blue"]["forwards"]["inversion"] == 0, "its trajectory was deleted"
    printed = " ".join(capsys.readouterr().out.split())
    assert "this run takes 2 videos with 3 pending edits; done before: 1" in printed
    assert "edits done 3 edits failed 0 done before 1" in printed
    assert run(tmp_path, rows, options=("--only", "a"), **until_done) == EXIT_DONE
    assert "nothing that this run takes is pending" in capsys.readouterr().out
    assert list((tmp_path / "out/trajectories").iterdir())


def test_a_result_row_has_the_whole_certificate_and_what_each_part_took(tmp_path: Path) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows, inversion={"vae_psnr": True, "round_trip": True}) == EXIT_DONE
    (row,) = results(tmp_path).values()
    absent = [field.name for field in fields(Metrics) if row["metrics"][field.name] is None]
    assert absent == ["unmeasured"]
    assert [field.name for field in fields(Timings) if not row["timings"][field.name] > 0] == []
    assert row["metrics"]["noise_level"] == 1.0
    assert row["gpu_seconds"] == 0.0


@pytest.mark.ray
def test_twelve_bad_rows_of_forty_cost_only_themselves(tmp_path: Path) -> None:
    good = [
        a_row(a_video(tmp_path / f"{i}.mp4", shade=i), "red", video_id=f"v{i}") for i in range(28)
    ]
    whole = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "sound.mp4").write_bytes(draw_sound())
    a_video(tmp_path / "short.mp4", frames=3)
    bad: list[tuple[dict[str, Any], str]] = [
        (a_row("nowhere.mp4", "red", video_id="missing"), "video_not_found"),
        (a_row("cut.mp4", "red", video_id="cut"), "video_truncated"),
        (a_row("empty.mp4", "red", video_id="empty"), "video_empty"),
        (a_row("text.mp4", "red", video_id="text"), "video_unreadable"),
        (a_row("sound.mp4", "red", video_id="sound"), "no_video_stream"),
        (a_row("short.mp4", "red", video_id="short"), "video_too_short"),
        (a_row("nothing://x/y.mp4", "red", video_id="uri"), "bad_uri"),
        (a_row("1.mp4", "red", video_id="v1"), "duplicate_video_id"),
        ({**a_row("1.mp4", video_id="blank"), "edits": [{"prompt": "  "}]}, "empty_prompt"),
        (a_row("1.mp4", "red", video_id="../../evil"), "bad_video_id"),
        (a_row("1.mp4", "red", video_id="x" * 500), "bad_video_id"),
        ({"video": "1.mp4", "video_id": "bell", "edits": [{"prompt": "red", "edit_id": "a\x07/b"}]},
         "bad_edit_id"),
    ]  # fmt: skip
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert run(tmp_path, good + [row for row, _ in bad]) == EXIT_SOME_FAILED
    rows = [r for _, t in read_parts(Folder(f"{tmp_path}/out")) for r in t.to_pylist()]
    ok = [row for row in rows if row["status"] == "ok"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert (len(ok), len(failed), len(rows)) == (28, 12, 40)
    assert {row["video_id"] for row in ok} == {f"v{i}" for i in range(28)}
    assert sorted(row["error_code"] for row in failed) == sorted(code for _, code in bad)
    assert all(row["error"] for row in failed)
    outside = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert outside - before == {tmp_path / "manifest.parquet", tmp_path / "job.yaml"}
    assert not (tmp_path.parent / "evil").exists()


def test_a_run_says_what_it_does_what_failed_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        a_row(a_video(tmp_path / "a.mp4"), "red", "blue", video_id="a"),
        a_row("nowhere.mp4", "red", video_id="b"),
    ]
    assert run(tmp_path, rows) == EXIT_SOME_FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"job      {tmp_path}/job.yaml"
    assert any(" ".join(line.split()) == "manifest 2 videos, 3 edits" for line in lines)
    phases = [line.split(":")[0].split(",")[0] for line in lines[1:]]
    known = ("checking", "comparing", "starting Ray", "loading", "editing", "storing", "closing")
    known = (*known, "tidying")
    assert [p for p in phases if p.startswith(known)] == [
        "checking the job",
        "comparing the manifest with the results",
        "starting Ray",
        "checking whether every node can work",
        "checking rows of the manifest",
        "loading",
        "editing",
        "storing the last results",
        "closing Ray",
        "tidying up",
    ]
    (failed,) = [line for line in lines if line.startswith("  b/red  video_not_found  ")]
    assert "nowhere.mp4" in failed
    assert lines[-1] == f"gallery  retake report {tmp_path}/out"

    a_video(tmp_path / "nowhere.mp4")
    assert run(tmp_path, rows) == EXIT_DONE
    text = capsys.readouterr().out
    assert "starting Ray, 1 edit to make" in text
    assert "done before      2" in text
    assert "failed:" not in text


@pytest.mark.ray
def test_a_video_that_hangs_is_quarantined_and_the_next_one_is_edited(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and no more
        hangs = f"http://127.0.0.1:{silent.getsockname()[1]}/hangs.mp4"
        rows = [
            a_row(hangs, "red", "blue", video_id="hangs"),
            a_row(a_video(tmp_path / "fine.mp4"), "red", video_id="fine"),
        ]
        limits = {"stall_deadline_s": 15, "retries": 0}  # before the read itself is given up
        assert run(tmp_path, rows, cluster=limits) == EXIT_SOME_FAILED
    made = results(tmp_path)
    assert set(made) == {("hangs", "red"), ("hangs", "blue"), ("fine", "red")}
    assert made["fine", "red"]["status"] == "ok"
    for edit in ("red", "blue"):
        row = made["hangs", edit]
        assert (row["status"], row["error_code"]) == ("quarantined", "deadline")
        assert "no progress for 15 s" in row["error"]


class Death(BaseException):
    """The driver's and the group's at once."""


@pytest.mark.parametrize(
    ("options", "outcome"), [((), "quarantined"), (("--retry-quarantined",), "ok")]
)
def test_a_video_that_ended_a_run_and_all_with_it_is_known_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], outcome: str
) -> None:
    real = Group.request

    def dies(self: Group, message: Any, *, begin: Callable[[], None], **_: Any) -> Any:
        if isinstance(message, EncodePrompts):
            return real(self, message, begin=begin)
        begin()
        raise Death

    row = a_row(a_video(tmp_path / "a.mp4"), "a red square")
    with monkeypatch.context() as killed:
        killed.setattr(Group, "request", dies)
        with pytest.raises(Death):
            run(tmp_path, [row], cluster={"retries": 0})
    run(tmp_path, [row], options=options, cluster={"retries": 0})
    assert [row["status"] for row in results(tmp_path).values()] == [outcome]


def test_a_job_that_cannot_run_is_refused_with_every_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"vidoe": ["a.mp4"], "edits": pa.array([["red"]])})
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "manifest.parquet")
    values = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "out"),
        "checkpoint": str(tmp_path / "no-such-checkpoint"),
    }
    assert retake_run(tmp_path, values) == EXIT_CANNOT_RUN
    shown = capsys.readouterr().err
    for part in ("vidoe", "video", "edits", "no-such-checkpoint", "there is no such folder"):
        assert part in shown
    assert not list((tmp_path / "out").glob("**/*.parquet"))


def test_storage_that_refuses_is_a_problem_of_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no keys")

    monkeypatch.setattr("pipeline.model.checkpoint.open_checkpoint", refuse)
    write_manifest([a_row("a.mp4", "red")], f"{tmp_path}/m.parquet")
    file = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(file[:4] + bytes(200) + file[204:])
    values = {"manifest": f"{tmp_path}/m.parquet", "output": f"{tmp_path}/out"}
    assert retake_run(tmp_path, values) == EXIT_CANNOT_RUN
    shown = capsys.readouterr().err
    assert "checkpoint 'embedded': cannot be read: RuntimeError: no keys" in shown
    assert "m.parquet: its rows cannot be read" in shown


def test_a_run_that_finds_nothing_pending_tidies_up_after_a_killed_one(tmp_path: Path) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows) == EXIT_DONE
    output = Folder(f"{tmp_path}/out")
    (part,) = output.list("results")
    output.write("results/copy.parquet", output.read(part))
    assert run(tmp_path, rows, trajectory={"keep": "until_done"}) == EXIT_DONE
    assert len(results(tmp_path)) == 1
    assert output.list("trajectories") == []


@pytest.mark.ray
def test_a_checkpoint_that_does_not_load_ends_the_job_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(Path(jobs.demo.__file__).parent / "checkpoint", checkpoint)
    config = checkpoint / "vae/config.json"
    config.write_text(config.read_text().replace("CogVideoXDownBlock3D", "NoSuchBlock3D"))
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red")]
    assert run(tmp_path, rows, checkpoint=str(checkpoint)) == EXIT_CANNOT_RUN
    shown = capsys.readouterr().err
    assert "a rank group could not start" in shown
    assert "down_block_type" in shown


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_refused_with_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red")]
    assert run(tmp_path, rows, cluster={"inversion": {"groups": 90}}) == EXIT_CANNOT_RUN
    assert (
        "need 94 CPUs (inversion 90 groups of 1, reconstruction 1 group of 1"
        in capsys.readouterr().err
    )


def test_a_size_that_the_model_cannot_take_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red")]
    assert run(tmp_path, rows, video={"height": 50}) == EXIT_CANNOT_RUN
    assert (
        "video.height is 50; this checkpoint needs a multiple of 8: 48" in capsys.readouterr().err
    )


def test_blocks_that_the_model_lacks_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red")]
    assert run(tmp_path, rows, reconstruction={"inject_blocks": [0, 99]}) == EXIT_CANNOT_RUN
    assert "reconstruction.inject_blocks is [0, 99]; this checkpoint has" in capsys.readouterr().err


def test_the_same_seed_makes_the_same_bytes_in_whatever_order_the_rows_come(
    tmp_path: Path,
) -> None:
    """That another seed makes another edit stands in `tests/cluster/ranks/test_editing.py`."""
    noise = {"start": "noise"}
    made: list[Callable[[], bytes]] = []
    for name, seed, order in (("x", 1, 1), ("y", 1, -1)):
        folder = tmp_path / name
        rows = [
            a_row(a_video(folder / f"{v}.mp4", shade=s), "red", "blue", video_id=v)
            for v, s in (("a", 0), ("b", 50))
        ]
        # The manifest need not end in .parquet.
        assert run(folder, rows[::order], "m.pq", reconstruction=noise, seed=seed) == EXIT_DONE
        made.append((folder / "out/edits/a/red.mp4").read_bytes)
    assert made[0]() == made[1]()


def test_both_layouts_write_the_same_bytes(tmp_path: Path) -> None:
    made: list[tuple[dict[str, bytes], list[Any]]] = []
    for layout in ("shared", "split"):
        folder = tmp_path / layout
        rows = [
            a_row(a_video(folder / "a.mp4"), "red", "blue", "green", video_id="a"),
            a_row(a_video(folder / "b.mp4", shade=50), "red", video_id="b"),
        ]
        how = {"edits_at_once": 2}
        cluster = {"layout": layout}
        assert run(folder, rows, reconstruction=how, cluster=cluster) == EXIT_DONE
        files = (folder / "out").glob("edits/*/*.mp4")
        known = ("output", "trajectory", "forwards", "metrics", "seed", "attempts", "frames")
        told = [[row[name] for name in known] for _, row in sorted(results(folder).items())]
        made.append(
            (
                {str(path.relative_to(folder)): path.read_bytes() for path in files},
                told,
            )
        )
    assert len(made[0][0]) == 4
    assert made[0] == made[1]


@pytest.mark.ray
@pytest.mark.distributed
def test_two_ranks_make_the_edits_of_one(tmp_path: Path) -> None:
    pair = {"gpus": 2, "ulysses": 2}
    shown, measured, stored = {}, {}, {}
    for name, cluster in (("one", {}), ("two", {"inversion": pair, "reconstruction": pair})):
        folder = tmp_path / name
        rows = [a_row(a_video(folder / "a.mp4"), "red", "blue", "green", "grey", video_id="a")]
        masks = {"red": a_mask(folder / "m.mp4", 20), "blue": "auto", "green": "none"}
        masks["grey"] = a_mask(folder / "black.mp4", 0)
        for edit in rows[0]["edits"]:
            edit["mask"] = masks[edit["edit_id"]]
        assert run(folder, rows, cluster=cluster) == EXIT_SOME_FAILED
        made = results(folder)
        assert [e for (_, e), row in made.items() if row["error_code"] == "bad_mask"] == ["grey"]
        files = (folder / "out/masks").glob("*/*.mp4")
        stored[name] = {path.name: path.read_bytes() for path in files}
        shards = list((folder / "out/trajectories" / made["a", "red"]["trajectory"]).glob("shard*"))
        assert len(shards) == (1 if name == "one" else 2)
        shown[name] = [
            torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode()])
            for edit in ("red", "blue", "green")
            for file in [av.open(str(folder / "out" / made["a", edit]["output"]))]
        ]
        measured[name] = [
            {metric: value for metric, value in made["a", edit]["metrics"].items() if value}
            for edit in ("red", "blue", "green")
        ]
    # Taken before the encoding, which makes a dozen of a difference of one in a few pixels.
    for one, two in zip(measured["one"], measured["two"], strict=True):
        assert len(one) > 5
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
    for one, two in zip(shown["one"], shown["two"], strict=True):
        assert (one.int() - two.int()).abs().float().mean() < 2
    assert stored["one"] == stored["two"] and stored["one"].keys() == {"red.mp4", "blue.mp4"}


def test_columns_of_every_type_and_of_folders_reach_the_results(tmp_path: Path) -> None:
    from tests.cluster.test_manifest import KINDS, a_column, stored

    columns = {f"column {name}": a_column(name) for name in KINDS}
    videos = [a_video(tmp_path / "m/0.mp4"), "nothing-is-asked-of-it.mp4"]
    edits = pa.array([[{"prompt": prompt, "edit_id": "red"}] for prompt in ("red", " ")])
    table = pa.table({"video": videos, "video_id": ["v0", "v1"], "edits": edits, **columns})
    stored(tmp_path / "m/seed=3/split=train/0.parquet", table)
    more = table.set_column(1, "video_id", pa.array(["v2", "v3"]))
    more = more.set_column(2, "edits", pa.array([[{"prompt": " ", "edit_id": "red"}]] * 2))
    stored(tmp_path / "m/seed=4/split=valid/0.parquet", more)
    stored(tmp_path / "m/seed=9/split=test/0.parquet", pa.table({"video": pa.array([], "f8")}))
    job = {**SMALL, "manifest": f"{tmp_path}/m", "output": f"{tmp_path}/out"}
    assert retake_run(tmp_path, job) == EXIT_SOME_FAILED

    made = pa.concat_tables(part for _, part in read_parts(Folder(f"{tmp_path}/out")))
    made = made.take(pc.sort_indices(made["video_id"]))
    assert made["status"].to_pylist() == ["ok", "failed", "failed", "failed"]
    assert made["split"].to_pylist() == ["train", "train", "valid", "valid"]
    for name, column in columns.items():
        found, expected = made[name].take([0, 1]).combine_chunks(), carried(column.type)
        assert found.equals(convert(column, expected).cast(found.type)), name
    far = {row["video_id"]: row["column far"] for row in current_rows(Folder(f"{tmp_path}/out"))}
    assert (far["v2"], far["v3"]) == (far["v0"], far["v1"]) == ("10000-01-01 00:00:00.000", None)
