"""What `retake gc` deletes, and what it leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.garbage import Unneeded, collect_garbage, find_garbage, tidy
from cluster.output.lease import LeaseLost
from jobs.clean import clean
from jobs.errors import JobError
from jobs.manifest.writing import write_manifest
from jobs.prepare import Prepared, prepare
from jobs.run import resolved
from jobs.spec import load_job
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX
from tests.cluster.test_results import a_result, store
from tests.pending_rows import work_of_row
from tests.pipeline.trajectories.test_trajectory import entries
from tests.pipeline.trajectories.test_trajectory import store as store_trajectory
from tests.small_jobs import a_job


def test_it_deletes_what_no_result_names_and_only_that(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for key in ("done", "partly", "hung", "stale"):
        output.write(f"trajectories/{key}/index.json", b"{}")
        output.write(f"trajectories/{key}/shard.safetensors", b"x" * 100)
    store(
        output,
        "r1",
        a_result("a", "1", trajectory="done"),
        a_result("b", "1", trajectory="partly"),
        a_result("b", "2", "failed", trajectory="partly"),
        a_result("c", "1", trajectory="hung"),
        a_result("c", "2", "quarantined", trajectory="hung"),
    )
    assert collect_garbage(output, "always") == {"stale": 102}
    assert not (tmp_path / "trajectories/stale").exists()
    assert collect_garbage(output, "always") == {}
    assert collect_garbage(output, "until_done") == {"done": 102}
    assert collect_garbage(output, "never") == {}
    assert output.list("trajectories") == [
        "trajectories/hung/index.json",
        "trajectories/hung/shard.safetensors",
        "trajectories/partly/index.json",
        "trajectories/partly/shard.safetensors",
    ]


def test_it_deletes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    folder = output.child("trajectories/mine")
    store_trajectory(folder, entries(), key="mine")
    named = folder.list()
    temporary = tmp_path / "trajectories/mine/.shard-00000.safetensors.1a2b3c4d"
    temporary.write_bytes(b"x" * 11)
    store(output, "r1", a_result("mine", "1", trajectory="mine"))
    assert collect_garbage(output, "always") == {"mine": 11}
    assert not temporary.exists()
    assert folder.list() == named


def test_nothing_is_deleted_once_another_run_has_the_folder(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("a", "1", trajectory="needed"))
    for key in ("one", "two"):
        output.write(f"trajectories/{key}/index.json", b"{}")
    calls = []

    def before() -> None:
        calls.append(output.list("trajectories"))
        if len(calls) == 2:
            raise LeaseLost("another run has it")

    with pytest.raises(LeaseLost):
        collect_garbage(output, "always", before)
    assert output.list("trajectories") == ["trajectories/two/index.json"]


def test_it_deletes_shards_that_no_index_names(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    folder = output.child("trajectories/mine")
    store_trajectory(folder, entries(), key="mine")
    named = set(folder.list())
    folder.write("shard-of-a-killed-group.safetensors", b"x" * 9)
    output.write("trajectories/uncommitted/shard.safetensors", b"x" * 7)
    output.write(f"trajectories/damaged/{INDEX}", b"not an index")
    output.write("trajectories/damaged/shard.safetensors", b"x" * 5)
    keys = ("mine", "uncommitted", "damaged")
    store(output, "r1", *(a_result(key, "1", trajectory=key) for key in keys))
    assert collect_garbage(output, "always") == {"mine": 9, "uncommitted": 7}
    assert set(folder.list()) == named
    assert len(output.list("trajectories/damaged")) == 2


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """An output with a trajectory that is done, one whose edit failed, and one of no result."""
    output = Folder(str(tmp_path / "out"))
    for key in ("done", "failed", "stale"):
        output.write(f"trajectories/{key}/index.json", b"{}")
        output.write(f"trajectories/{key}/shard.safetensors", b"x" * 2_000_000)
    done = a_result("a", "1", trajectory="done")
    store(output, "r", done, a_result("b", "1", "failed", trajectory="failed"))
    return output


def keys(output: Folder) -> set[str]:
    return {name.split("/")[1] for name in output.list("trajectories")}


def test_what_is_found_says_whether_results_name_it(output: Folder) -> None:
    found = {one.key: one for one in find_garbage(output, "until_done")}
    files = ("trajectories/done/index.json", "trajectories/done/shard.safetensors")
    assert found["done"] == Unneeded("done", files, 2_000_002, whole=True, named=True)
    assert not found["stale"].named
    assert set(found) == {"done", "stale"}
    assert {one.key for one in find_garbage(output, "until_done", {"a"})} == {"stale"}
    assert keys(output) == {"done", "failed", "stale"}


def test_a_file_that_is_of_no_trajectory_is_left(output: Folder) -> None:
    output.write("trajectories/notes.txt", b"mine")
    assert collect_garbage(output, "always") == {"stale": 2_000_002}
    assert output.exists("trajectories/notes.txt")


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_of_a_part_deletes_no_trajectory(output: Folder, whole: bool) -> None:
    job = a_job()
    kept = TrajectorySettings(keep="until_done")
    tidy(
        replace(job, editing=replace(job.editing, output=output.uri, trajectory=kept)), whole=whole
    )
    assert keys(output) == ({"failed"} if whole else {"done", "failed", "stale"})


def test_what_a_killed_process_left_half_written_goes_when_a_run_ends(output: Folder) -> None:
    (whole,) = output.list("results")
    left = {"edits/a/.red.mp4.4ae233ee", f"results/.{whole.partition('/')[2]}.924ea3fd"}
    for name in (*left, "edits/a/.DS_Store"):
        Path(output.path(name)).parent.mkdir(parents=True, exist_ok=True)
        Path(output.path(name)).write_bytes(b"half")
    job = a_job()
    tidy(replace(job, editing=replace(job.editing, output=output.uri)))
    found = {*output.list("edits", scratch=True), *output.list("results", scratch=True)}
    assert found == {"edits/a/.DS_Store"}
    assert len(output.list("results")) == 1


def nobody(question: str) -> bool:
    raise AssertionError(f"it asks: {question}")


def test_what_no_result_names_is_deleted_without_a_question(
    output: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(output.uri, "always", dry_run=False, yes=False, confirm=nobody)
    assert keys(output) == {"done", "failed"}
    assert capsys.readouterr().out == "1 trajectory cleaned up, 2.0 MB deleted\n"


@pytest.mark.parametrize(("answer", "left"), [(True, {"failed"}), (False, {"done", "failed"})])
def test_it_asks_before_it_deletes_what_results_name(
    output: Folder, answer: bool, left: set[str]
) -> None:
    questions: list[str] = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return answer

    clean(output.uri, "until_done", dry_run=False, yes=False, confirm=confirm)
    assert keys(output) == left
    assert len(questions) == 1
    assert questions[0].startswith("1 trajectory, 2.0 MB: results name them")


def test_without_a_terminal_it_refuses_unless_it_is_given_yes(output: Folder) -> None:
    with pytest.raises(JobError, match="There is nobody to ask: say --yes, or see --dry-run"):
        clean(output.uri, "until_done", dry_run=False, yes=False, confirm=None)
    assert keys(output) == {"done", "failed", "stale"}
    clean(output.uri, "until_done", dry_run=False, yes=True, confirm=None)
    assert keys(output) == {"failed"}


def test_a_dry_run_lists_what_would_go_with_its_size(
    output: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(output.uri, "until_done", dry_run=True, yes=False, confirm=nobody)
    assert keys(output) == {"done", "failed", "stale"}
    assert capsys.readouterr().out.splitlines() == [
        "trajectories/done  2.0 MB  its edits are done",
        "trajectories/stale  2.0 MB  no result names it",
        "2 trajectories, 4.0 MB would be deleted",
    ]


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ({}, True),
        ({"trajectories/x/index.json": "{}"}, True),
        ({"job.yaml": "manifest: m\noutput: out\n"}, True),
        ({"job.yaml": "a list: [", "notes.txt": ""}, True),
        ({"results/notes.txt": ""}, True),
        ({"job.yaml": "about: {run: r}\n"}, False),
    ],
)
def test_a_folder_that_is_no_output_is_refused(
    tmp_path: Path, files: dict[str, str], refused: bool
) -> None:
    folder = Folder(str(tmp_path / "some"))
    for name, text in {**files, "trajectories/mine/index.json": "{}"}.items():
        folder.write(name, text.encode())
    if not refused:
        clean(folder.uri, "always", dry_run=False, yes=False, confirm=None)
        assert not keys(folder)
        return
    with pytest.raises(JobError, match="some: (is no output of a job|cannot be read)"):
        clean(folder.uri, "always", dry_run=False, yes=True, confirm=None)
    assert "mine" in keys(folder)


def test_a_trajectory_that_a_pending_edit_needs_stays_where_its_video_has_done_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `retake run --only a/red`, which left blue pending."""
    edits = [{"edit_id": name, "prompt": name} for name in ("red", "blue")]
    rows = [
        {"video": "a.mp4", "video_id": "a", "edits": edits},
        {"video": "b.mp4", "video_id": "b", "edits": edits[:1]},
    ]
    write_manifest(rows, str(tmp_path / "m.parquet"))
    values = {"manifest": str(tmp_path / "m.parquet"), "output": str(tmp_path / "out")}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    prepared = prepare(load_job(str(tmp_path / "job.yaml")))
    output = Folder(str(tmp_path / "out"))
    output.write("job.yaml", resolved(prepared).encode())
    made = []
    for row in rows:
        output.write(f"trajectories/of-{row['video_id']}/index.json", b"{}")
        made.append(done(prepared, row))
    store(output, "r", *made)
    clean(output.uri, "until_done", dry_run=False, yes=True, confirm=None)
    assert keys(output) == {"of-a"}
    (tmp_path / "m.parquet").unlink()
    clean(output.uri, "until_done", dry_run=False, yes=True, confirm=None)
    assert keys(output) == set()
    assert "warning: which edits are pending is not known" in capsys.readouterr().err


def done(prepared: Prepared, row: dict[str, Any]) -> dict[str, Any]:
    """The result of a row's edit `red`, as a run of this job writes it."""
    work = work_of_row(prepared.job, row)
    assert work is not None
    (red,) = [edit for edit in work.edits if edit.edit_id == "red"]
    key = f"of-{work.video_id}"
    return a_result(str(work.video_id), "red", trajectory=key, fingerprint=red.fingerprint)
