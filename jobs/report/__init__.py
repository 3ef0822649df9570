"""The gallery: a job's results as one static folder of HTML that needs no server.

`write_report` reads `<output>/results/*.parquet` and `<output>/job.yaml`, and writes

    <output>/report/index.html                the page: summary, style and program
    <output>/report/data/cards-*.js           the videos and their edits, 60 videos a file
    <output>/report/data/column-*.js          one number (status, text) of every edit a file

The page links to `../edits` and `../sources`, so it opens from a disk and from a bucket alike. Data
are scripts and not JSON because a page opened from a disk may not fetch. Only what a view needs is
loaded: the first page takes one file of cards, sorting takes a column, searching the text.

Files of data carry a hash of their content in the name, and `index.html` is written last: whoever
opens the report while it is written again sees the old one or the new one, whole.
"""

from __future__ import annotations

import hashlib
import html
import json
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import islice
from typing import Any

import yaml

from jobs.report.metrics import METRICS, describe, summarise
from jobs.report.rows import Row, by_video, make_card, numbers_of, read_rows, shown
from pipeline.storage import Folder

CARDS_PER_FILE = 60
SCRIPTS = ("data.js", "player.js", "plots.js", "cards.js", "report.js")


def write_report(output_uri: str) -> str:
    """Write the report of a job, over an earlier one if there is one.

    Args:
        output_uri: the job's output folder, a path or any fsspec URI.

    Returns:
        Path or URI of the report's index.html.

    Raises:
        JobError: the folder holds no results.
    """
    output = Folder(output_uri)
    rows = read_rows(output)
    videos = by_video(rows)
    numbers = _numbers(rows)
    states = Counter((row["status"], row["error_code"]) for row in rows)
    files: dict[str, bytes] = {}
    cards = _cards(videos, numbers)
    summary = _summarise(rows, states, numbers) | {
        "videos": len(videos),
        "settings": _settings(output),
        "cardsPerFile": CARDS_PER_FILE,
        "cards": [
            _add(files, "cards", cards[i : i + CARDS_PER_FILE])
            for i in range(0, len(cards), CARDS_PER_FILE)
        ],
        "columns": {
            name: _add(files, "column", values)
            for name, values in _columns(rows, videos, list(states), numbers).items()
        },
    }
    title = posixpath.basename(output.path().rstrip("/")) or "Results"
    return _publish(output.child("report"), files, _page(title, summary))


def _cards(
    videos: Sequence[Sequence[Row]], numbers: Mapping[str, Sequence[float | None]]
) -> list[dict[str, Any]]:
    count = sum(len(edits) for edits in videos)
    of_rows = iter([[values[i] for values in numbers.values()] for i in range(count)])
    return [make_card(edits, list(islice(of_rows, len(edits)))) for edits in videos]


def _columns(
    rows: Sequence[Row],
    videos: Sequence[Sequence[Row]],
    states: Sequence[tuple[str, str | None]],
    numbers: Mapping[str, Sequence[float | None]],
) -> dict[str, Any]:
    """What the page sorts, filters and searches by; each becomes a file of its own."""
    order = {state: place for place, state in enumerate(states)}
    return {
        "layout": [len(edits) for edits in videos],
        "state": [order[row["status"], row["error_code"]] for row in rows],
        "text": {
            "videos": [_words(edits[0], "video_id", "source_prompt") for edits in videos],
            "edits": [_words(row, "edit_id", "prompt") for row in rows],
        },
        **{f"number:{key}": values for key, values in numbers.items()},
    }


def _numbers(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """The numbers of all edits, by metric: the known ones first, in their order."""
    found = [numbers_of(row) for row in rows]
    present = dict.fromkeys(k for numbers in found for k, v in numbers.items() if v is not None)
    keys = [m.key for m in METRICS if m.key in present]
    keys += [key for key in present if key not in keys]
    return {key: [numbers.get(key) for numbers in found] for key in keys}


def _summarise(
    rows: Sequence[Row],
    states: Mapping[tuple[str, str | None], int],
    numbers: Mapping[str, list[float | None]],
) -> dict[str, Any]:
    """What the page shows of the job as a whole."""
    timings: Counter[str] = Counter()
    forwards: Counter[str] = Counter()
    for row in rows:
        timings.update({k: v for k, v in (row["timings"] or {}).items() if v})
        forwards.update({k: v for k, v in (row["forwards"] or {}).items() if v})
    return {
        "edits": len(rows),
        "states": [[*state, count] for state, count in states.items()],
        "metrics": [summarise(describe(key), values) for key, values in numbers.items()],
        "timings": {part: round(seconds, 3) for part, seconds in timings.items()},
        "forwards": forwards,
        "gpuSeconds": round(sum(row["gpu_seconds"] or 0 for row in rows), 3),
        "retried": sum((row["attempts"] or 1) > 1 for row in rows),
        "finished": shown(max(row["finished_at"] for row in rows)),
    }


def _settings(output: Folder) -> list[tuple[str, list[tuple[str, str]]]]:
    """The resolved job as sections of names and values; empty where there is no job.yaml."""
    if not output.exists("job.yaml"):
        return []
    job = yaml.safe_load(output.read("job.yaml")) or {}
    sections = {"job": [(k, _value(v)) for k, v in job.items() if not isinstance(v, dict)]}
    for name, section in job.items():
        if isinstance(section, dict):
            sections[str(name)] = _flat(section)
    return [(name, pairs) for name, pairs in sections.items() if pairs]


def _flat(section: Mapping[Any, Any], before: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in section.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", _value(value)))
    return pairs


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _words(row: Row, *names: str) -> str:
    return " ".join(row[name] for name in names if row[name])


def _add(files: dict[str, bytes], kind: str, values: Any) -> str:
    """Put data among the files to write; returns the name that the page loads it by."""
    data = json.dumps(values, separators=(",", ":"), default=str)
    name = f"{kind}-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
    files[f"data/{name}.js"] = f'retake("{name}",{data});\n'.encode()
    return name


def _page(title: str, summary: Mapping[str, Any]) -> bytes:
    here = resources.files(__name__)
    parts = {
        "title": html.escape(title),
        "style": here.joinpath("report.css").read_text("utf-8"),
        "script": "\n".join(here.joinpath(name).read_text("utf-8") for name in SCRIPTS),
        # "</script>" in a prompt or a setting must not end the element that holds the summary
        "summary": json.dumps(summary, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = here.joinpath("report.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode()


def _publish(report: Folder, files: Mapping[str, bytes], page: bytes) -> str:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: report.write(name, files[name]), files))
        report.write("index.html", page)
        stale = [name for name in report.list("data") if name not in files]
        list(pool.map(report.remove, stale))
    return report.full_uri("index.html")
