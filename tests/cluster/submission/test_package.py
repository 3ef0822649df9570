"""Retake as a file that travels: what is in it, and that its bytes say what is in it."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.job import CannotRun
from cluster.submission.environment import pinned, runtime_environment, variables
from cluster.submission.package import code_package, requirements, zipped
from pipeline import __version__

ROOT = Path(__file__).parents[3]
METADATA = f"retake-{__version__}.dist-info/METADATA"


def names(package: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return set(archive.namelist())


def test_the_three_packages_travel_without_tests_caches_and_history() -> None:
    found = names(code_package(embedded=False))
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "cluster", "jobs")
        for path in (ROOT / package).rglob("*.py")
        if "jobs/demo/training" not in path.as_posix()
    }
    assert {name for name in found if name.endswith(".py")} == modules
    rest = {name.rpartition(".")[2] for name in found - modules - {METADATA}}
    assert rest <= {"html", "css", "js", "txt"}, "what a wheel does not hold"
    assert METADATA in found


def test_the_embedded_checkpoint_travels_where_a_job_needs_it() -> None:
    with_it, without = code_package(embedded=True), code_package(embedded=False)
    more = names(with_it) - names(without)
    assert {name.rpartition("/checkpoint/")[0] for name in more} == {"jobs/demo"}
    assert len(without) < 2_000_000


def test_the_same_files_have_the_same_bytes_whenever_they_were_written(tmp_path: Path) -> None:
    assert code_package(embedded=False) == code_package(embedded=False)
    files = {"b": b"2", "a/c": b"1"}
    assert zipped(files) == zipped(dict(reversed(files.items())))
    assert zipped(files) != zipped({**files, "b": b"3"})


def test_what_travels_can_be_run_and_knows_what_it_requires(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(code_package(embedded=False))) as archive:
        archive.extractall(tmp_path)
    lines = [
        "import cluster, jobs.cli, pipeline, importlib.metadata as m",
        "print(cluster.__file__, m.version('retake'), len(m.requires('retake')))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    expected = f"{tmp_path}/cluster/__init__.py {__version__} {len(requirements())}"
    assert done.stdout.strip() == expected, done.stderr


def test_packages_are_brought_in_the_versions_of_this_machine_but_for_ray() -> None:
    found = runtime_environment(20.0, bring_packages=True)
    pins = dict(one.split(";")[0].strip().split("==") for one in found["pip"])
    assert "ray" not in pins
    assert pins["torch"] == version("torch").partition("+")[0]
    assert pins["av"] == version("av")
    assert pinned() == sorted(pinned())
    assert found["config"]["setup_timeout_seconds"] > 600


def test_ray_gives_a_run_the_time_that_it_takes_to_stop() -> None:
    assert runtime_environment(20.0)["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "40"}
    assert runtime_environment(90.5)["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "111"}
    in_an_image = runtime_environment(20.0, image="registry/retake:1")
    assert set(in_an_image) == {"image_uri", "env_vars"}, "Ray takes nothing else with an image"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NOT_SET_HERE", "--env NOT_SET_HERE: is not set here"),
        ("AWS_KEY=abc-secret", "--env takes the name of a variable alone, as AWS_KEY."),
        ("RAY_AUTH_TOKEN", "Ray or Python sets it on each node"),
        ("PYTHONPATH", "Ray or Python sets it on each node"),
    ],
)
def test_only_the_names_of_variables_that_are_set_are_taken(name: str, part: str) -> None:
    with pytest.raises(CannotRun) as refused:
        variables([name])
    assert part in str(refused.value)
    assert "secret" not in str(refused.value)


def test_named_variables_have_their_values_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "films")
    assert variables(["AWS_PROFILE"]) == {"AWS_PROFILE": "films"}
