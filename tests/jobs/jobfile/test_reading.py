"""A job file's bytes: what is read, and what is said of a file that is none."""

from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobError
from jobs.jobfile.reading import MOST_BYTES, parse_yaml, read_values
from tests.drawn_videos import draw, grays

JOB = "manifest: m.parquet\noutput: out\n"
VALUES = {"manifest": "m.parquet", "output": "out"}


def refusal(path: Path) -> str:
    with pytest.raises(JobError) as caught:
        read_values(str(path))
    text = str(caught.value)
    assert text.startswith(f"job file {path}: ")
    return text.removeprefix(f"job file {path}: ")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; expected keys and values, at least `manifest` and `output`; `retake init`"),
        ("# nothing\n", "is empty; expected keys and values"),
        ("- a\n- b\n", "is a list; expected keys and values"),
        ("a,b\nc,d\n", "is a text; expected keys and values"),
        ("5", "is one value; expected keys and values"),
        (
            "manifest:m\noutput:out",
            "'manifest:m' has no space after its colon; write `manifest: m`",
        ),
        ("manifest: m\noutput:out\n", "line 2, column 1: a key needs a colon and a space after it"),
        ("a: [", "line 1, column 5: a value is missing here, or a bracket is open\n  a: ["),
        ("a: [1, 2\nb: 3", "line 2, column 2: a bracket is open; close it with ]"),
        ("a: b: c", "line 1, column 5: a second colon in a line; a text that holds one needs"),
        ("inversion:\n\tsteps: 5", "line 2, column 1: a tab; YAML indents with spaces: replace it"),
        ("a:\n  b: 1\n c: 2", "line 3, column 2: the keys of a section need the same number of"),
        ("a: 1\n---\nb: 2", "line 2, column 1: a second document begins; a job file holds one"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1: the values ended above, and more follows"),
        ("? [a]\n: b", "line 1, column 3: a key is a list or a mapping; expected a name"),
        ("a: {{ x }}", "line 1, column 5: a key is a list or a mapping; expected a name"),
        ("a: !foo 1", "line 1, column 4: the tag !foo is unknown; remove it"),
        ("a: *x", "line 1, column 4: a text that begins with * needs quotes"),
        ("a: @x", "line 1, column 4: a text that begins with @ needs quotes"),
        ('a: "C:\\data"', "a backslash in double quotes; use single quotes"),
        ("a: 'x", "line 1, column 6: a quote is open; close it"),
        ("a: - b", "line 1, column 4: a list begins here"),
        ("a: " + "[" * 5000, "values are nested too deep"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_the_place_and_the_way_out(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert complaint in refusal(path)


@pytest.mark.parametrize(
    ("text", "key", "first", "second"),
    [
        ("manifest: a\noutput: b\nmanifest: c\n", "manifest", 1, 3),
        ("inversion:\n  steps: 5\n  method: ddim\n  'steps': 6\n", "steps", 2, 4),
        ("a: {x: 1, y: 2,\n  x: 3}\n", "x", 1, 2),
        ('{"a": 1,\n "a": 1}\n', "a", 1, 2),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, key: str, first: int, second: int
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    said = refusal(path)
    assert said.startswith(f"line {second}, column ")
    assert f"the key '{key}' stands in line {first} already; remove one" in said


@given(text=st.text(st.sampled_from(":-{}[]\"'#&*!|>%@`,?~ab01 \n\t\\<"), max_size=30))
def test_whatever_the_text_is_it_is_read_or_refused(text: str) -> None:
    with suppress(JobError):
        parse_yaml(text, "test")


@given(data=st.binary(max_size=30))
def test_whatever_the_bytes_are_they_are_read_or_refused(data: bytes) -> None:
    with fsspec.open("memory://jobs-read/any.yaml", "wb") as file:
        file.write(data)
    with suppress(JobError):
        read_values("memory://jobs-read/any.yaml")


def test_anchors_and_merged_keys_are_taken_and_own_keys_win(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, y: 4}\nd: {<<: [*a, *b]}\n"
    )
    values = read_values(str(path))
    assert values["b"] == {"x": 1, "y": 3}
    assert values["c"] == {"x": 1, "y": 4}
    assert values["d"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0", 0),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.0e-3", 0.001),
        ("true", True),
        ("~", None),
        ("2", 2),
    ],
)
def test_a_number_is_read_as_it_looks_or_as_a_text(
    tmp_path: Path, written: str, value: object
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"a: {written}")
    found = read_values(str(path))["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("manifest: ü\noutput: out\n", encoding=encoding)
    assert read_values(str(path)) == {"manifest": "ü", "output": "out"}


@pytest.mark.parametrize("suffix", [".json", ".yml", ""])
def test_json_is_a_job_file_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"job{suffix}"
    path.write_text('{"manifest": "m.parquet",\n "output": "out"}')
    assert read_values(str(path)) == VALUES


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("manifest: ü".encode("latin-1"), "is not text: line 1: the byte fc is no UTF-8; save"),
        ("manifest: m".encode("utf-16-le"), "is not text: it holds bytes of zero; save the file"),
        (b"a: b # " + b"x" * MOST_BYTES, "is larger than 1 MB; expected a short YAML file"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    assert complaint in refusal(path)


def test_a_manifest_a_video_and_a_table_are_sent_where_they_belong(tmp_path: Path) -> None:
    manifest, video, table = (tmp_path / name for name in ("m.parquet", "a.mp4", "t.csv"))
    pq.write_table(pa.table({"video": ["a"]}), manifest)
    video.write_bytes(draw(grays(6)))
    table.write_text("video,prompt\na,b\n")
    assert "it is a Parquet file; name it as `manifest` in a job file" in refusal(manifest)
    assert "it is a video; `retake manifest` lists videos in a manifest" in refusal(video)
    assert "to make a manifest of a table, `retake manifest`" in refusal(table)


def test_a_folder_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    assert "is a folder; name a YAML file" in refusal(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    assert "is a folder; name the file in it: job.yaml" in refusal(tmp_path)


def test_a_file_that_is_missing_is_named_with_the_command_that_writes_one(tmp_path: Path) -> None:
    said = refusal(tmp_path / "nowhere.yaml")
    assert said.startswith("cannot be read: No such file or directory; `retake init ")


def test_a_job_file_may_be_a_uri() -> None:
    with fsspec.open("memory://jobs-read/job.yaml", "wb") as file:
        file.write(JOB.encode())
    assert read_values("memory://jobs-read/job.yaml") == VALUES
    with pytest.raises(JobError, match="cannot be read: No such file"):
        read_values("memory://jobs-read/other.yaml")
    with pytest.raises(JobError, match="its protocol 'nowhere' is unknown"):
        read_values("nowhere://job.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(["a0: &a0 x"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]"
                                   for n in range(1, 10)]), "stand for more than 100000 values"),
        ("\n".join(["a0: &a0 {k0: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}"
                                         for n in range(1, 10)]), "more than 100000 values"),
        ("a: &a [*a]", "a value holds itself by an alias"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: " + "9" * 5000, "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_small_file_cannot_be_a_huge_one(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_yaml(text, "job file job.yaml")


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: [*a, *a]", "job") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": [{"x": 1}, {"x": 1}],
    }
