"""`retake accept`: verdicts decided anew in a folder of results, and what is printed of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from cluster.output.lease import held
from cluster.results.compaction import current_rows
from cluster.results.parts import part_names
from cluster.results.schema import SCHEMA
from jobs.accept import decide
from jobs.accept.remembered import rules_in
from jobs.cli import app
from pipeline.storage import Folder
from tests.cluster.test_result_parts import of_before
from tests.cluster.test_results import a_result, all_rows, store, store_table

RULES = ("background_psnr_db >= 30", "judge.follows >= 3")
HEAVY = ("torch", "ray", "diffusers", "transformers", "av")


def scored(video: str, edit: str, psnr: float, follows: int | None, **values: Any) -> dict:
    judge = {"follows": follows, "error": None if follows else "no answer"}
    scores = {"frames": {"background_psnr_db": psnr}, "judge": judge}
    return a_result(video, edit, scores=scores, run="r1", **values)


ROWS = (
    scored("v1", "a", 35.0, 4),
    scored("v1", "b", 25.0, 4),
    scored("v2", "a", 25.0, 1),
    scored("v2", "b", 35.0, None),
    scored("v2", "c", 35.0, 3, accepted=False, rejected_for=["an older rule"]),
    a_result("v3", "a", "failed", run="r1"),
)
VERDICTS = {
    ("v1", "a"): (True, []),
    ("v1", "b"): (False, [RULES[0]]),
    ("v2", "a"): (False, [*RULES]),
    ("v2", "b"): (False, [f"{RULES[1]}: no score"]),
    ("v2", "c"): (True, []),
    ("v3", "a"): (None, []),
}


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "out"))
    for file in range(3):
        table = pa.Table.from_pylist(list(ROWS[2 * file : 2 * file + 2]), SCHEMA)
        store_table(folder, "r1", table, file)
    return folder


def accept(output: Folder, *options: str, rules: tuple[str, ...] = RULES) -> tuple[int, str]:
    given = [part for rule in rules for part in ("--rule", rule)]
    result = CliRunner().invoke(app, ["accept", output.full_uri(""), *given, *options])
    return result.exit_code, result.output


def verdicts(output: Folder) -> dict[tuple[str, str], tuple[bool | None, list[str]]]:
    rows = current_rows(output)
    return {
        (row["video_id"], row["edit_id"]): (row["accepted"], row["rejected_for"] or [])
        for row in rows
    }


def contents(output: Folder) -> dict[str, bytes]:
    return {name: output.read(name) for name in part_names(output)}


def test_every_edit_gets_its_verdict_and_nothing_else_changes(output: Folder) -> None:
    before = current_rows(output)
    status, text = accept(output)
    assert status == 0, text
    assert verdicts(output) == VERDICTS
    other = {"accepted": None, "rejected_for": None}
    assert [row | other for row in current_rows(output)] == [row | other for row in before]


def test_the_table_says_what_each_rule_rejects(output: Folder) -> None:
    assert accept(output)[1].splitlines() == [
        "rule                       rejects     alone  no score",
        "background_psnr_db >= 30         2         1         0",
        "judge.follows >= 3               2         1         1",
        "accepted 2 of 5 edits (40.0%)",
        "1 edit not made, and so without a verdict",
        "5 verdicts changed",
    ]
    assert accept(output)[1].splitlines()[-1] == "0 verdicts changed"


def test_verdicts_that_stay_leave_their_files_alone(output: Folder) -> None:
    accept(output)
    before = {name: output.modified(name) for name in part_names(output)}
    accept(output)
    assert {name: output.modified(name) for name in part_names(output)} == before


def test_a_dry_run_prints_the_same_and_writes_nothing_while_a_job_runs(output: Folder) -> None:
    before = contents(output)
    with held(output, "r2"):
        status, text = accept(output, "--dry-run")
    assert status == 0
    assert text.splitlines()[3:] == [
        "accepted 2 of 5 edits (40.0%)",
        "1 edit not made, and so without a verdict",
        "5 verdicts would change; nothing was written",
    ]
    assert contents(output) == before
    assert rules_in(output) == ()


def test_a_folder_that_a_job_writes_to_is_left_alone(output: Folder) -> None:
    before = contents(output)
    with held(output, "r2"):
        status, text = accept(output)
    assert status == 1
    assert "retake run" in text
    assert contents(output) == before


def test_a_command_killed_between_two_files_is_finished_by_the_next(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Folder.write, []

    def killed(folder: Folder, name: str, data: bytes) -> None:
        if name.startswith("results/"):
            if written:
                raise KeyboardInterrupt
            written.append(name)
        write(folder, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            decide(output.full_uri(""), RULES)
    half = verdicts(output)
    assert [half[key] == VERDICTS[key] for key in VERDICTS] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert len(all_rows(output)) == len(ROWS)
    assert rules_in(output) == ()
    assert decide(output.full_uri(""), RULES).changed == 3
    assert verdicts(output) == VERDICTS
    assert rules_in(output) == RULES


def test_only_the_newest_row_of_an_edit_counts(output: Folder) -> None:
    store(output, "r2", scored("v1", "a", 10.0, 4) | {"run": "r2"})
    found = decide(output.full_uri(""), RULES)
    assert (found.accepted, found.edits) == (1, 5)
    assert verdicts(output)["v1", "a"] == (False, [RULES[0]])
    older = [row for row in all_rows(output) if row["run"] == "r1"]
    assert older[0]["accepted"] is None


def test_a_damaged_file_is_left_out_with_a_warning(output: Folder) -> None:
    name = part_names(output)[1]
    output.write(name, output.read(name)[:-40])
    damaged = output.read(name)
    status, text = accept(output)
    assert status == 0
    assert f"{name}: cannot be read" in text
    assert "accepted 2 of 3 edits" in text
    assert output.read(name) == damaged
    assert "accepted 2 of 3 edits" in accept(output, "--dry-run")[1]


def test_results_from_before_there_were_verdicts_get_the_columns(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    schema = pa.schema([f for f in SCHEMA if f.name not in ("accepted", "rejected_for", "scores")])
    table = pa.Table.from_pylist([a_result("v", "a"), a_result("v", "b")], schema)
    store_table(output, "r1", table.append_column("clip_text", pa.array([0.3, 0.1])))
    found = decide(str(tmp_path), ["clip_text > 0.2"])
    assert (found.accepted, found.edits) == (1, 2)
    assert verdicts(output) == {("v", "a"): (True, []), ("v", "b"): (False, ["clip_text > 0.2"])}


def test_without_rules_those_of_the_job_decide(output: Folder) -> None:
    output.write("job.yaml", yaml.safe_dump({"accept": [RULES[0]]}).encode())
    accept(output)
    assert rules_in(output) == RULES
    status, text = accept(output, rules=())
    assert status == 0
    assert "accepted 3 of 5 edits" in text
    assert rules_in(output) == (RULES[0],)
    assert not output.exists("accept.yaml")


def test_a_rule_may_name_a_number_of_the_manifest(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    table = pa.Table.from_pylist([a_result("v", "a"), a_result("v", "b")], SCHEMA)
    store_table(output, "r1", table.append_column("aesthetic", pa.array([4.0, 6.0])))
    store_table(output, "r2", pa.Table.from_pylist([a_result("w", "a")], SCHEMA))
    decide(str(tmp_path), ["aesthetic >= 5"])
    assert verdicts(output) == {
        ("v", "a"): (False, ["aesthetic >= 5"]),
        ("v", "b"): (True, []),
        ("w", "a"): (False, ["aesthetic >= 5: no score"]),
    }


@pytest.mark.parametrize(
    ("rules", "status", "message"),
    [
        ((), 1, "its job has no rules to accept edits by"),
        (("judge.follow >= 3",), 2, "--rule 'judge.follow >= 3': no number 'judge.follow'"),
    ],
)
def test_what_cannot_be_decided_is_a_message(
    output: Folder, rules: tuple[str, ...], status: int, message: str
) -> None:
    assert (accept(output, rules=rules)[0], message in accept(output, rules=rules)[1]) == (
        status,
        True,
    )


def test_a_folder_without_results_is_a_message(tmp_path: Path) -> None:
    status, text = accept(Folder(str(tmp_path)))
    assert status == 1
    assert "no rows in results/*.parquet" in text


def test_neither_torch_nor_ray_is_imported(output: Folder) -> None:
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from jobs.cli import app\n"
        f"given = ['accept', {output.full_uri('')!r}, '--rule', {RULES[0]!r}]\n"
        "status = CliRunner().invoke(app, given).exit_code\n"
        "print(json.dumps([status, sorted(sys.modules)]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    status, modules = json.loads(answer)
    assert status == 0
    assert not set(HEAVY) & set(modules)


def test_verdicts_on_results_of_the_version_before_are_no_columns_of_the_manifest(
    tmp_path: Path,
) -> None:
    output = Folder(str(tmp_path))
    store_table(output, "r1", of_before(a_result("v", "a", gpu_seconds=2.0), round="first"))
    assert decide(str(tmp_path), ["gpu_seconds > 3"]).changed == 1
    assert decide(str(tmp_path), ["gpu_seconds > 3"]).changed == 0
    (row,) = current_rows(output)
    assert (row["accepted"], row["rejected_for"]) == (False, ["gpu_seconds > 3"])
    assert (row["manifest_round"], row["round"]) == ("first", None)
