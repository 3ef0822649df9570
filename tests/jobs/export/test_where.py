"""`--where`: SQL over the columns of the results, and nothing else."""

from pathlib import Path

import pytest

from jobs.cli import EXIT_DONE, EXIT_USAGE
from tests.jobs.export.outputs import export, make_pairs, store
from tests.jobs.export.test_export import exported


@pytest.fixture
def output(tmp_path: Path) -> str:
    place = str(tmp_path / "out")
    store(place, make_pairs(place, 1, 4, level=3, today=3, **{"odd name": "x"}))
    return place


@pytest.mark.parametrize(
    ("where", "edits"),
    [
        ("scores.judge.follows >= 3", ["e2", "e3"]),
        ("scores.judge.follows >= 3 AND mask IS NULL", ["e2"]),
        ("edit_id IN ('e0', 'e3') -- those", ["e0", "e3"]),
        ("metrics.flicker < 1 and level = 3 and \"odd name\" = 'x'", ["e0", "e1", "e2", "e3"]),
        ("scores.clip.text > 0", []),
        ("accepted", []),
        ("edit_id != 'now()' AND md5(video_id) >= '' AND today = 3", ["e0", "e1", "e2", "e3"]),
    ],
)
def test_a_condition_over_any_column_chooses(
    tmp_path: Path, output: str, where: str, edits: list[str]
) -> None:
    result = export(output, tmp_path / "to", "--where", where)
    assert result.exit_code == EXIT_DONE, result.output
    assert [edit for _, edit in exported(tmp_path / "to")] == edits
    if len(edits) < 4:
        assert f"{4 - len(edits)} by --where" in result.output


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("scores.judge.folows > 1", "'scores.judge.folows'; did you mean scores.judge.follows?"),
        ("judge.follows > 1", "no column 'judge.follows'; did you mean scores.judge.follows?"),
        ("follows > 1", "no column 'follows'; did you mean scores.judge.follows?"),
        ("promt = 'x'", "no column 'promt'; did you mean prompt?"),
        ("zzzzzz = 1", "no column 'zzzzzz'; columns are video_id, edit_id"),
        ("frames", "is a value of BIGINT; expected a condition, such as `frames > 0`"),
        ("prompt", "is a value of VARCHAR; expected a condition, which is true or false"),
        ("frames >", "syntax error"),
        ("true; DROP TABLE done", "more than one statement"),
        ("1 = 1) OR (1 = 1", "syntax error"),
        ("count(*) > 1", "aggregates"),
        ("frames > 'many'", "Could not convert string 'many' to INT64"),
        ("CAST(prompt AS INT) > 1", "Could not convert string"),
        ("nosuch(frames)", "Scalar Function with name nosuch does not exist"),
        ("Random() < 0.5", "random gives another answer each time"),
        ("frames IN (SELECT 9 WHERE uuid() > '')", "uuid gives another answer each time"),
        ("finished_at > now() - INTERVAL 1 DAY", "now gives another answer each time"),
        ("finished_at::DATE = CURRENT_DATE", "current_date gives another answer each time"),
    ],
)
def test_what_is_no_condition_over_the_columns_is_refused_before_anything_is_written(
    tmp_path: Path, output: str, where: str, said: str
) -> None:
    result = export(output, tmp_path / "to", "--where", where)
    assert result.exit_code == EXIT_USAGE
    assert said in result.output
    assert not (tmp_path / "to/.export/export.json").exists()


@pytest.mark.parametrize(
    "where",
    [
        "(SELECT count(*) FROM read_text('{file}')) > 0",
        "EXISTS (SELECT * FROM read_csv('{file}'))",
        "EXISTS (FROM read_blob('http://127.0.0.1:9/x'))",
        "EXISTS (SELECT * FROM glob('{file}*'))",
        "EXISTS (SELECT * FROM '{file}')",
    ],
)
def test_no_condition_reads_a_file_or_the_network(tmp_path: Path, output: str, where: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    result = export(output, tmp_path / "to", "--where", where.format(file=secret))
    assert result.exit_code == EXIT_USAGE
    assert "reads a file or the network" in result.output or "does not exist" in result.output
