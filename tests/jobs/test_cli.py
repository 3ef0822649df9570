"""The commands that run nothing: what they print, and their exit status."""

import random
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cluster.progress import Counts
from cluster.results.parts import part_names
from jobs.cli import app
from jobs.manifest.writing import write_manifest
from jobs.spec import load_job
from pipeline import __version__
from pipeline.storage import Folder
from tests.cluster.test_results import a_result, store
from tests.drawn_videos import draw, grays


def retake(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def put_video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(grays(6)))


def test_wrong_usage_is_exit_status_two() -> None:
    assert retake("run")[0] == 2
    assert retake("fly")[0] == 2
    assert retake("run", "job.yaml", "--fast")[0] == 2


def test_a_job_file_that_is_missing_is_exit_status_one() -> None:
    status, text = retake("run", "nowhere.yaml")
    assert status == 1
    assert "error: job file nowhere.yaml: cannot be read" in text


def test_rows_of_a_manifest_that_cannot_be_read_are_a_message(tmp_path: Path) -> None:
    """Only its last column is damaged, which the first look at the ids does not read."""
    notes = [random.Random(n).randbytes(64) for n in range(500)]
    rows = {"video": ["a.mp4"], "edits": [[{"prompt": "x"}]]}
    ids = {"video_id": [str(n) for n in range(500)]}
    table = pa.table({name: value * 500 for name, value in rows.items()} | ids | {"note": notes})
    manifest, job = tmp_path / "m.parquet", tmp_path / "job.yaml"
    pq.write_table(table, manifest, compression="none", use_dictionary=False)
    data = manifest.read_bytes()
    at = data.index(notes[100]) - 4  # its length
    manifest.write_bytes(data[:at] + b"\xff" * 4 + data[at + 4 :])
    job.write_text(yaml.safe_dump({"manifest": str(manifest), "output": str(tmp_path / "out")}))
    for command in (["validate"], ["run", "--dry-run"], ["run"], ["run", "--limit", "1"]):
        status, text = retake(*command, str(job))
        assert status == 1
        assert f"error: manifest {manifest}: its rows cannot be read: ArrowInvalid" in text


def test_damaged_results_are_left_out_and_named_by_every_command_that_only_reads(
    tmp_path: Path,
) -> None:
    output, manifest = Folder(str(tmp_path / "out")), str(tmp_path / "m.parquet")
    store(output, "r1", a_result("v", "a"))
    output.write("results/r2.parquet", output.read("results/r1-000000.parquet")[:-100])
    write_manifest([{"video": "a.mp4", "edits": [{"prompt": "x"}]}], manifest)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"manifest": manifest, "output": output.uri}))
    for command in (
        *(("validate", str(job)), ("run", "--dry-run", str(job))),
        *(("gc", output.uri), ("gc", output.uri, "--keep", "until_done")),
        *(("report", output.uri), ("verify", output.uri, "--dry-run")),
    ):
        status, text = retake(*command)
        assert status == (3 if command[0] in ("validate", "verify") else 0)
        assert f"results {output.uri}/results/r2.parquet: cannot be read: Arrow" in text
        assert "the next `retake run` sets it aside" in text or command[0] == "verify"
        assert "Traceback" not in text
    assert part_names(output) == ["results/r1-000000.parquet", "results/r2.parquet"]


def test_validate_shows_what_a_job_is_going_to_do(tmp_path: Path) -> None:
    put_video(tmp_path / "clips/a.mp4")
    manifest = str(tmp_path / "m.parquet")
    status, text = retake(
        "manifest", str(tmp_path / "clips"), manifest, "--prompt", "x", "--prompt", "y"
    )
    assert status == 0
    assert text.startswith(f"{manifest}: 1 video, 2 edits\nnext: ")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"manifest": manifest, "output": str(tmp_path / "out [/b]")}))
    status, text = retake("validate", str(job), "--set", "inversion.steps=7")
    assert status == 0
    assert "1 video, 2 edits" in text
    assert "pec, 4 of 7 steps, 5 forwards, once for each video" in text
    # However wide the terminal is.
    steps = "4 steps from 0.6 of the levels, reference empty, guidance 2 in 2 of them"
    assert steps in " ".join(text.split())
    changes = ("inversion.steps=7", "inversion.method=ddim", "reconstruction.start=inverted")
    status, text = retake("validate", str(job), *(f"--set={change}" for change in changes))
    assert "ddim, 7 of 7 steps, 7 forwards, once for each video" in text
    assert "7 steps from inverted" in text
    assert not (tmp_path / "out [/b]/results").exists()


def test_three_frames_lead_from_the_command_to_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_video(tmp_path / "clips/a.mp4")
    manifest = str(tmp_path / "m.parquet")
    retake("manifest", str(tmp_path / "clips"), manifest, "--prompt", "x")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"manifest": manifest, "output": str(tmp_path / "out")}))
    callers: list[str] = []

    def run(*arguments: object, **_: object) -> Counts:
        frame = sys._getframe(1)
        while frame is not None and "run" not in callers:
            callers.append(frame.f_code.co_name)
            frame = frame.f_back
        return Counts(edited=1)

    monkeypatch.setattr("cluster.dataflow.run", run)
    status, text = retake("run", str(job))
    assert status == 0, text
    assert callers == ["run_job", "run"]
    about = yaml.safe_load((tmp_path / "out/job.yaml").read_text())
    assert list(about)[:2] == ["manifest", "output"]
    assert load_job(str(tmp_path / "out/job.yaml")) == load_job(str(job))
    assert about["reconstruction"]["guidance_steps"] == [0.0, 0.4]
    assert "edits done" in text


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("jobs.report.write_report", fail)
    assert isinstance(CliRunner().invoke(app, ["report", "out"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("cluster", "complaint"),
    [
        ({"gpus": 3, "ulysses": 3}, "ulysses"),
        ({"gpus": 4, "ulysses": 2, "ring": 1}, "4"),
        ({"gpus": 2, "ring": 3}, "ring"),
    ],
)
def test_degrees_that_the_checkpoint_cannot_be_split_by_are_refused(
    tmp_path: Path, cluster: dict, complaint: str
) -> None:
    put_video(tmp_path / "clips/a.mp4")
    retake("manifest", str(tmp_path / "clips"), str(tmp_path / "m.parquet"), "--prompt", "x")
    job = tmp_path / "job.yaml"
    values = {
        "manifest": str(tmp_path / "m.parquet"),
        "output": str(tmp_path / "out"),
        "cluster": {"inversion": cluster},
    }
    job.write_text(yaml.safe_dump(values))
    status, text = retake("validate", str(job))
    assert status == 1
    assert complaint in text


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    put_video(tmp_path / "clips/a.mp4")
    retake("manifest", str(tmp_path / "clips"), str(tmp_path / "m.parquet"), "--prompt", "x")
    (tmp_path / "file").write_text("in the way")
    job = tmp_path / "job.yaml"
    values = {"manifest": str(tmp_path / "m.parquet"), "output": str(tmp_path / "file/out")}
    job.write_text(yaml.safe_dump(values))
    status, text = retake("run", str(job))
    assert status == 1
    assert "cannot be written" in text


def test_a_table_becomes_a_manifest_and_its_other_columns_pass_through(tmp_path: Path) -> None:
    put_video(tmp_path / "a.mp4")
    (tmp_path / "t.csv").write_text("video,prompt,split\na.mp4,red,train\n")
    status, text = retake("manifest", str(tmp_path / "t.csv"), str(tmp_path / "m.parquet"))
    assert status == 0, text
    row = pq.read_table(tmp_path / "m.parquet").to_pylist()[0]
    assert row["split"] == "train"
    assert row["edits"][0]["prompt"] == "red"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{}/nowhere"], "nowhere"),
        (["nosuch://x", "--prompt", "x"], "'nosuch://x' has the unknown protocol 'nosuch'"),
        (["{}/empty", "--prompt", "x"], "no video file is in it or below"),
        (["{}/t.csv", "--prompt", "x"], "has edit prompts of its own in the column 'prompt'"),
        (["{}/t.csv", "--format", "tabel"], "did you mean 'table'?"),
    ],
)
def test_a_source_that_is_no_manifest_is_refused(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("video,prompt\na.mp4,red\n")
    filled = [argument.format(tmp_path) for argument in arguments]
    status, text = retake("manifest", filled[0], str(tmp_path / "m.parquet"), *filled[1:])
    assert status == 1
    assert complaint in text
    assert not (tmp_path / "m.parquet").exists()


def test_the_shell_may_expand_the_sources_of_a_manifest(tmp_path: Path) -> None:
    put_video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    manifest, clips = str(tmp_path / "m.parquet"), [str(tmp_path / n) for n in ("a.mp4", "b.mp4")]
    status, text = retake("manifest", *clips, manifest, "--prompt", "x")
    assert (status, text.splitlines()[0]) == (0, f"{manifest}: 2 videos, 2 edits")
    status, text = retake("manifest", *clips, "--prompt", "x")
    assert status == 1 and "b.mp4 is a video; the last argument is the manifest to write" in text
    status, text = retake("manifest", "t.csv")
    assert status == 2 and "MANIFEST: it is missing; write" in text


def test_what_was_guessed_is_printed(tmp_path: Path) -> None:
    put_video(tmp_path / "a.mp4")
    (tmp_path / "table.csv").write_text("path,caption,instruction\na.mp4,a toy,a red toy\n")
    manifest = str(tmp_path / "m.parquet")
    status, text = retake("manifest", str(tmp_path / "table.csv"), manifest)
    assert status == 0
    guess = "video from column `path`, prompt from `instruction`, source prompt from `caption`"
    assert text.splitlines()[:2] == [guess, f"{manifest}: 1 video, 1 edit"]
    options = ("--prompt", "y", "--source-prompt-column", "instruction", "--absolute")
    status, text = retake("manifest", str(tmp_path / "table.csv"), manifest, *options)
    assert status == 0
    row = pq.read_table(manifest).to_pylist()[0]
    assert (row["video"], row["source_prompt"]) == (str(tmp_path / "a.mp4"), "a red toy")
    assert row["edits"][0]["prompt"] == "y"


COMMANDS = ("run", "edit", "validate", "demo", "manifest", "report", "metrics", "gc")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_there_in_short_and_long(command: tuple[str, ...]) -> None:
    status, text = retake(*command, "-h")
    assert status == 0
    assert "Usage: " in text
    assert (status, text) == retake(*command, "--help")


def test_the_version_names_what_runs_here_without_importing_it() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app\n"
        "print(CliRunner().invoke(app, ['--version']).output, 'torch' in sys.modules, end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    torch = re.escape(version("torch"))
    assert re.fullmatch(
        rf"retake {__version__}, torch {torch}, diffusers \S+, transformers \S+, ray \S+\n False",
        done.stdout,
    )


def test_a_shell_completes_commands_and_options() -> None:
    """Typer's protocol, as the script that `--show-completion` prints uses it."""
    variables = {"_RETAKE_COMPLETE": "complete_bash", "COMP_WORDS": "retake r", "COMP_CWORD": "1"}
    completed = {}
    for words in ("retake r", "retake run --li"):
        variables |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = CliRunner().invoke(app, [], prog_name="retake", env=variables)
        completed[words] = done.output.split()
    assert completed == {"retake r": ["run", "report"], "retake run --li": ["--limit"]}


def test_gc_reports_what_it_deleted(tmp_path: Path) -> None:
    from pipeline.storage import Folder

    output = Folder(str(tmp_path))
    output.write("trajectories/stale/index.json", b"{}")
    store(output, "r", a_result("a", "1", trajectory="kept"))
    assert retake("gc", str(tmp_path)) == (0, "1 trajectory cleaned up, 0.0 MB deleted\n")
    assert retake("gc", str(tmp_path), "--keep", "some")[0] == 2


def test_a_report_of_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    status, text = retake("report", str(tmp_path))
    assert status == 1
    assert "error:" in text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RETAKE_STORAGE_PATIENCE_S", "2m", "a number of seconds, such as 120, or 0"),
        ("RETAKE_STORAGE_PATIENCE_S", "-1", "a number of seconds, such as 120, or 0"),
        ("RETAKE_STORAGE_TIMEOUT_S", "0", "a number of seconds above 0, such as 30"),
        ("RETAKE_STORAGE_TIMEOUT_S", "nan", "a number of seconds above 0, such as 30"),
    ],
)
def test_an_environment_variable_that_is_no_number_of_seconds_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    status, text = retake("validate", "job.yaml")
    assert status == 1
    assert text == f"error: the environment variable {name} is {value!r}; expected {expected}\n"
