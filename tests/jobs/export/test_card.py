"""The card of an export: what is in it, how it was made, and nothing that is secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.storage import Folder
from tests.jobs.export.outputs import export, make_pairs, store

JOB = {
    "manifest": "s3://secret-bucket/manifest.csv",
    "output": "/home/someone/out",
    "checkpoint": "/models/CogVideoX-5b",
    "seed": 7,
    "reconstruction": {"guidance_scale": 6.0},
    "score": {"clip": "openai/clip", "judge": "https://me:pa55word1@judge.corp/v1"},
    "accept": ["judge.follows >= 3"],
    "cluster": {"gpus": 8},
    "about": {
        "versions": {"retake": "1.2.3", "torch": "2.13.0"},
        "fingerprints": {"job": "0a1b", "checkpoint": "77aa"},
    },
}


def card_of(tmp_path: Path, *options: str, format: str = "webdataset") -> tuple[dict, str]:
    done = export(tmp_path / "out", tmp_path / "pairs", *options, format=format)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "pairs" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


@pytest.fixture
def output(tmp_path: Path) -> str:
    """4 videos with 4 edits each, whose judge says 1, 2, 3 and 4."""
    folder = str(tmp_path / "out")
    rows = []
    for row in make_pairs(folder, 4, 4):
        follows = row["scores"]["judge"]["follows"]
        why = [] if follows >= 3 else ["judge.follows >= 3"]
        if row["video_id"] == "clip.0":
            why.append("clip.text >= 0.2: no score")
        judge = {"follows": follows, "model": "https://me:pa55word1@h/judge"}
        scores = {"judge": judge, "clip": {"text": follows / 8, "model": "/models/clip-b"}}
        rows.append(row | {"scores": scores, "accepted": not why, "rejected_for": why})
    store(folder, rows)
    Folder(folder).write("job.yaml", yaml.safe_dump(JOB).encode())
    return folder


def test_it_counts_pairs_and_says_which_rules_rejected(output: str, tmp_path: Path) -> None:
    header, text = card_of(tmp_path, "--validation", "0")
    assert header["size_categories"] == ["n<1K"]
    assert header["task_categories"] == ["video-to-video"]
    assert "6 pairs of a video and an edit of it, from 3 videos" in text
    assert "| train | 6 | 3 |\n| validation | 0 | 0 |" in text
    assert "its rules accepted 6 and rejected 10" in text
    assert "| `judge.follows >= 3` | 8 | 0 |" in text
    assert "| `clip.text >= 0.2` | 0 | 4 |" in text
    assert "| 64 | 64 | 9 | 8 | 6 |" in text
    assert "3 pairs with a mask" in text


def test_scores_have_their_spread_and_a_histogram(output: str, tmp_path: Path) -> None:
    _, text = card_of(tmp_path, "--all")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert lines["`scores.judge.follows`"] == (
        "| `scores.judge.follows` | 16 | 1 | 1 | 2.5 | 4 | 4 | █···█···█··█ |"
    )
    assert "| 16 | 0.125 |" in lines["`scores.clip.text`"]
    assert "`scores.dino.source`" not in text  # that nobody measured
    assert lines["`metrics.flicker`"].endswith("| █ |")  # all the same


def test_it_says_how_the_pairs_were_made_without_locations_and_secrets(
    output: str, tmp_path: Path
) -> None:
    _, text = card_of(tmp_path, "--where", "seed = 7", "--validation", "0.1")
    for there in (
        "| Checkpoint | CogVideoX-5b |",
        "| Versions | retake 1.2.3, torch 2.13.0 |",
        "| Fingerprint of the checkpoint | 77aa |",
        "| Model of `scores.clip` | clip-b |",
        "| Model of `scores.judge` | a server |",
        "| Only where | `seed = 7` |",
        "  guidance_scale: 6.0",
        "- judge.follows >= 3",
        "  judge: a server",
    ):
        assert there in text
    for absent in ("pa55word1", "secret-bucket", "someone", "/models", "judge.corp", "gpus"):
        assert absent not in text


def test_the_rules_are_those_that_decided_also_such_that_reject_nothing(
    output: str, tmp_path: Path
) -> None:
    rules = yaml.safe_dump({"accept": ["judge.follows>=3", "clip.text >= 0.2", "change > 0"]})
    Folder(output).write("accept.yaml", rules.encode())
    _, text = card_of(tmp_path)
    assert "| `judge.follows >= 3` | 8 | 0 |" in text
    assert "| `change > 0` | 0 | 0 |" in text
    assert "- change > 0\n" in text


def test_the_files_beside_the_card_name_no_location_either(output: str, tmp_path: Path) -> None:
    card_of(tmp_path)
    for path in (tmp_path / "pairs/.export").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_a_job_without_its_file_has_a_card_too(tmp_path: Path) -> None:
    store(str(tmp_path / "out"), make_pairs(str(tmp_path / "out"), 1))
    _, text = card_of(tmp_path, "--where", "seed = 7")
    assert "| Only where | `seed = 7` |" in text
    assert "1 pair of a video and an edit of it, from 1 video;" in text
    assert "no `job.yaml`" in text
    assert "Which edits were accepted" not in text


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        ("Our Own, v2", {"license": "other", "license_name": "Our Own, v2"}),
    ],
)
def test_the_licence_is_in_the_header_and_may_be_changed_later(
    name: str, header: dict[str, Any], output: str, tmp_path: Path
) -> None:
    before, text = card_of(tmp_path)
    assert "license" not in before
    assert "None was given." in text
    found, text = card_of(tmp_path, "--license", name)
    assert header.items() <= found.items()
    assert f"## Licence\n\n{name}\n" in text
    again, _ = card_of(tmp_path)  # what was given before
    assert again == found


def test_every_format_has_a_card_that_says_how_to_open_it(output: str, tmp_path: Path) -> None:
    from jobs.export.formats import _FORMATS, format_named

    for name in _FORMATS:
        try:
            format_named(name)
        except Exception:
            continue  # its package is not here
        to = tmp_path / name
        assert export(output, to, format=name).exit_code == 0
        text = (to / "README.md").read_text()
        assert "## How to open it" in text
        assert f"| Exported as | {name} |" in text
        assert "README.md" in (to / "checksums.sha256").read_text()
