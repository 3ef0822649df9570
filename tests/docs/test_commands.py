"""Every command that the documentation shows is run: here, or where `ELSEWHERE` says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.docs.pages import PAGES, ROOT, blocks, commands, name_of

COMMANDS = sorted(
    {c for page in PAGES for block in blocks(page, "console") for c in commands(block)}
)

HERE = {
    "retake manifest clips/ manifest.parquet": "test_the_readmes_own_dataset_is_edited",
    "cat job.yaml": "test_the_readmes_own_dataset_is_edited",
    "retake validate job.yaml": "test_the_readmes_own_dataset_is_edited",
    "retake run job.yaml": "test_the_readmes_own_dataset_is_edited",
    "retake report out": "test_the_readmes_own_dataset_is_edited",
    "retake gc out": "test_the_readmes_own_dataset_is_edited",
    "retake edit horse.mp4": "test_the_readmes_one_video_is_edited",
    "python -m docs.tables": "test_tables_are_written_by_their_command",
}
"""How a command starts, and the test of this file that runs it."""

ELSEWHERE = {
    "retake submit": (
        "tests/jobs/submission/test_submit.py",
        "def test_a_job_is_sent_followed_and_ends_with_the_exit_status_of_its_run",
    ),
    "make test": (".ci/run", "make test"),
    "make quality": (".ci/run", "quality docs"),
    "make demo": ("Makefile", "$(BIN)/retake demo"),
    "make bench": ("Makefile", "-m tests.benchmarks"),
    "python -m tests.benchmarks --only": ("tests/benchmarks/test_bench.py", 'main(["--only", '),
    "python -m tests.benchmarks --quick": ("tests/benchmarks/test_bench.py", '["--quick", '),
    "python -m tests.benchmarks --tables": ("tests/benchmarks/test_bench.py", 'main(["--tables"])'),
    "python -m tests.benchmarks.gpu": ("tests/benchmarks/test_gpu.py", "gpu.main(arguments)"),
    "retake demo": (
        "tests/jobs/test_demo.py",
        "def test_the_demos_command_makes_six_right_edits_and_a_report_and_then_has_nothing_to_do",
    ),
    "retake manifest table.csv manifest.parquet": (
        "tests/jobs/test_cli.py",
        "def test_what_was_guessed_is_printed",
    ),
    "pip install -c constraints.txt -e": ("Makefile", "install -q -c constraints.txt -e"),
    "retake plan": ("tests/jobs/plan/test_plan.py", '["plan", str(job)'),
    "retake logs": ("tests/jobs/logs/test_logs.py", 'retake("logs", str(output)'),
    "retake failures out": ("tests/jobs/failures/test_failures.py", 'retake("failures"'),
    "retake accept out": (
        "tests/jobs/accept/test_accept.py",
        "def test_the_table_says_what_each_rule_rejects",
    ),
    "retake export out": ("tests/jobs/export/outputs.py", '["export", str(output), '),
    "retake manifest clips manifest.parquet": (
        "tests/docs/test_dataset.py",
        "def test_five_commands_lead_from_three_clips_to_a_dataset_and_its_card",
    ),
    "retake init job.yaml": ("tests/docs/test_dataset.py", '"retake init" in b'),
    "retake metrics": ("tests/jobs/test_measure.py", '"metrics"'),
    "retake dashboard": (
        "tests/cluster/metrics/test_dashboard.py",
        "def test_the_command_writes_the_dashboard_and_says_what_to_do_with_it",
    ),
    "retake deploy aws": ("tests/cluster/deploy/clouds/test_command.py", '["aws", '),
    "retake deploy gcp": ("tests/cluster/deploy/clouds/test_command.py", '["gcp", '),
    "retake deploy skypilot": ("tests/cluster/deploy/clouds/test_command.py", '["skypilot", '),
    "retake deploy kuberay": ("tests/jobs/deployment/test_files.py", '"kuberay", {'),
    "retake deploy docker": ("tests/jobs/deployment/test_files.py", '"docker", {'),
    "RAY_ADDRESS=10.0.0.1:6379 retake run s3.yaml": (
        "tests/jobs/test_run_s3.py",
        "def test_a_job_runs_with_everything_on_s3",
    ),
    "retake status": ("tests/jobs/test_watching.py", 'retake("status", output.uri, "--json")'),
    "retake stop": ("tests/jobs/test_watching.py", 'retake("stop", output.uri)'),
}
"""How a command starts, the file that runs it, and a text in that file."""

BY_HAND = {
    "pgrep -f cluster.ranks.process": "looks at a running job",
    "py-spy dump --pid": "looks at a running job",
}
"""How a command starts, and why no test runs it."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_is_run_somewhere(command: str) -> None:
    starts = [start for start in (*HERE, *ELSEWHERE, *BY_HAND) if command.startswith(start)]
    assert starts, f"{command!r}: run it in a test, and say here in which"


@pytest.mark.parametrize("start", ELSEWHERE)
def test_what_is_said_to_run_a_command_is_there(start: str) -> None:
    file, text = ELSEWHERE[start]
    assert text in (ROOT / file).read_text()


@pytest.mark.parametrize("start", [*HERE, *ELSEWHERE, *BY_HAND])
def test_a_command_that_is_listed_here_is_in_the_documentation(start: str) -> None:
    assert any(command.startswith(start) for command in COMMANDS)
    assert start not in HERE or HERE[start] in globals()


MISTAKEN = [ROOT / "docs/messages.md"]
"""Pages whose commands are wrong on purpose."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_target_of_make_that_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(r"`make (\w+)`|^\$ make (\w+)", page.read_text(), re.MULTILINE))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {one or other for one, other in named} <= set(targets)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in MISTAKEN], ids=name_of)
def test_every_command_and_option_of_retake_that_a_page_names_is_there(page: Path) -> None:
    from jobs.cli import app

    text = page.read_text()
    shown = [c for block in blocks(page, "console") for c in commands(block)]
    for line in shown + re.findall(r"`(retake [^`]*)`", text):
        if not (found := re.search(r"\bretake (\w+)(.*)", line)):
            continue
        name, rest = found.groups()
        help_ = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
        assert help_.exit_code == 0, f"there is no `retake {name}`"
        printed = re.sub(r"\x1b\[[0-9;]*m", "", help_.output)
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert option in printed, f"`retake {name}` has no {option}"


def test_tables_are_written_by_their_command() -> None:
    guide = ROOT / "docs/guide.md"
    before = guide.read_text()
    try:
        subprocess.run([sys.executable, "-m", "docs.tables"], cwd=ROOT, check=True)
        assert guide.read_text() == before
    finally:
        guide.write_text(before)


def test_the_readmes_one_video_is_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of "One video", in order, on a small drawn clip."""
    from tests.drawn_videos import draw, waves

    monkeypatch.chdir(tmp_path)
    (tmp_path / "horse.mp4").write_bytes(draw(list(waves(6, 32, 32))))
    shown = [c for block in blocks(ROOT / "README.md", "console") for c in commands(block)]
    for command in [c for c in shown if c.startswith("retake edit")]:
        command = re.sub(r" --checkpoint \S+", "", command)
        few = "" if "--trajectory" in command else " --steps 2"
        shell(f"{command} --height 32 --width 32 --frames 5{few}")
    names = ["donkey.mp4", "edits/a-horse-in-the-snow.mp4", "edits/a-zebra-gallops.mp4"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.mp4")) == sorted(
        [*names, "horse.mp4", "zebra.mp4"]
    )


@pytest.mark.ray
def test_the_readmes_own_dataset_is_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of "Your own dataset" and after it, in order, on small drawn clips."""
    from cluster import quiet  # noqa: F401
    import ray  # isort: skip

    from jobs.demo.job import write_demo

    write_demo(tmp_path / "demo")
    (tmp_path / "demo/clips").rename(tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    (block,) = (b for b in blocks(ROOT / "README.md", "console") if "cat job.yaml" in b)
    job = re.search(r"^\$ cat job\.yaml\n(.*?)^\$ ", block, re.DOTALL | re.MULTILINE)
    assert job
    (tmp_path / "job.yaml").write_text(job.group(1))
    small = ["checkpoint=embedded", "inversion.steps=2"]
    small += ["video.height=32", "video.width=32", "video.frames=5"]
    changes = " ".join(f"--set {change}" for change in small)
    more = [
        c for c in COMMANDS if c.startswith(("retake run job.yaml --set recon", "retake gc out"))
    ]
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:  # all commands on one cluster, as on one that is there
        printed = ""
        for command in [c for c in commands(block) if not c.startswith("cat")] + more:
            printed += shell(f"{command} {changes}" if " job.yaml" in command else command)
    finally:
        ray.shutdown()
    assert "manifest.parquet: 3 videos, 6 edits" in printed
    assert len(list((tmp_path / "out/edits").rglob("*.mp4"))) == 6
    assert (tmp_path / "out/report/index.html").exists()


def shell(command: str) -> str:
    """What a `retake` command prints, run in this process."""
    import shlex

    from jobs.cli import app

    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, f"{command}: {done.output}"
    return done.output
