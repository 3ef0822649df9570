"""The gallery: a job's results as one static folder of HTML that needs no server.

`write_report` reads `<output>/results/*.parquet` and `<output>/job.yaml`, and writes

    <output>/report/index.html                the page: summary, style and program
    <output>/report/data/cards-*.js           the videos and their edits, up to 60 videos a file
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
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from itertools import accumulate
from typing import Any

from cluster.results.damaged import Damaged, PartDamaged, warn
from cluster.results.parts import PartGone
from jobs.errors import JobError, WrongOption
from jobs.jobfile.paths import absolute
from jobs.report.gather import Gallery, link_to
from jobs.report.read import as_json
from jobs.summary import plain as as_plain
from jobs.summary import summarise
from pipeline.storage import Folder, explain

VIDEOS_IN_A_FILE = 60
SAMPLE = 100_000
READINGS = 10
"""Files of results may go while they are read, or turn out to be damaged: all is read again."""
FILES_AT_ONCE = 16
EDITS_IN_LIST = 200  # names of edits to choose from; where there are more, search finds them
SCRIPTS = (
    "data.js", "player.js", "verdicts.js", "plots.js", "runs.js", "picks.js", "parquet.js",
    "cards.js", "large.js", "controls.js", "keys.js", "report.js",
)  # fmt: skip


def write_report(output_uri: str, compare: str | None = None, sample: int = SAMPLE) -> str:
    """Write the report of a job, over an earlier one if there is one.

    Args:
        output_uri: the job's output folder, a path or any fsspec URI.
        compare: the output folder of another run, whose edits are shown beside this one's.
        sample: the most edits that the page shows; of more, some videos stand for all.

    Returns:
        Path or URI of the report's index.html.

    Raises:
        WrongOption: a `sample` below 1.
        JobError: a folder holds no results, no link leads from one to the other, or the report
            cannot be written.
        Unreadable: storage does not give the results.
    """
    if sample < 1:
        raise WrongOption(f"--sample {sample}: expected a number of edits, 1 or more")
    output, other = (Folder(absolute(one)) if one else None for one in (output_uri, compare))
    assert output
    if other:
        link_to(output, other)
    damaged: list[Damaged] = []
    for _ in range(READINGS):
        try:
            return _write(output, other, sample, damaged)
        except PartGone:
            continue  # a run has put results together meanwhile
        except PartDamaged as error:
            warn(error.damaged)
            damaged.append(error.damaged)
    return _write(output, other, sample, damaged)


def _write(output: Folder, other: Folder | None, sample: int, damaged: Sequence[Damaged]) -> str:
    """Write a report of the results as they are, but for damaged files."""
    run = as_plain(summarise(output, None, _names(damaged, output)))  # frees its memory before
    gallery, folder = Gallery.read(output, other, sample, damaged), output.child("report")
    try:
        with _Report(folder) as report:
            summary = gallery.summary() | _write_data(report, gallery)
            summary |= {
                "settings": _settings(gallery.job),
                "run": run,
                # names the marks that a browser keeps; no path, as the page may be given away
                "key": hashlib.sha256(output.full_uri("").encode()).hexdigest()[:12],
            }
            return report.publish(_page(gallery.title, summary))
    except OSError as error:
        why = explain(error, folder.uri, "written").text
        raise JobError(f"report {folder.uri}: {why}") from error


def _names(damaged: Sequence[Damaged], output: Folder) -> list[str]:
    return [one.name for one in damaged if one.output == output]


def _write_data(report: _Report, gallery: Gallery) -> dict[str, Any]:
    """Write what the page loads when it needs it, and return the files' names."""
    cards, videos, words, masks = [], [], [], False
    for some, texts in gallery.cards(VIDEOS_IN_A_FILE):
        cards.append([len(some), report.add("cards", some)])
        videos += [(card["id"], card["prompt"]) for card in some]
        masks = masks or any(edit.get("mask") for card in some for edit in card["edits"])
        words += texts
    firsts = [0, *accumulate(count for count, _ in cards)][: len(cards)]
    edit_ids = _edit_ids(gallery)
    columns = {
        "layout": gallery.layout(),
        "state": gallery.states(gallery.shown),
        "verdict": gallery.verdicts(gallery.shown),
        "text": {"videos": [" ".join(filter(None, two)) for two in videos], "edits": words},
        "ids": {"videos": [name for name, _ in videos], **edit_ids},
    }
    names = {name: report.add("column", values) for name, values in columns.items()}
    for metric in gallery.metrics:
        values = as_json(gallery.numbers(metric.key, gallery.shown))
        names[f"number:{metric.key}"] = report.add("column", values)
    ids = [name for name in edit_ids["names"] if name is not None]
    return {
        "cards": [name for _, name in cards],
        "firsts": firsts,
        "columns": names,
        "masks": masks,
        "editIds": ids if len(ids) <= EDITS_IN_LIST else [],
    }


def _edit_ids(gallery: Gallery) -> dict[str, Any]:
    """The edits' ids in a person's order, and which of them each edit has."""
    ids = list(gallery.names.edits)
    codes = gallery.shown.edit.tolist()
    present = gallery.in_order(set(codes))
    place = {code: at for at, code in enumerate(present)}
    return {"names": [ids[code] for code in present], "edit": [place[code] for code in codes]}


def _settings(job: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The resolved job as sections of names and values."""
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


def _page(title: str, summary: Mapping[str, Any]) -> bytes:
    here = resources.files(__name__).joinpath("page")
    parts = {
        "title": html.escape(title),
        "style": here.joinpath("report.css").read_text("utf-8"),
        "script": "\n".join(here.joinpath(name).read_text("utf-8") for name in SCRIPTS),
        # "</script>" in a prompt or a setting must not end the element that holds the summary
        "summary": json.dumps(summary, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = here.joinpath("report.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode()


class _Report:
    """The report's folder. Files are written as they are made, some at a time; the page last."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(FILES_AT_ONCE)
        self._writing: list[Future[None]] = []
        self._names: set[str] = set()

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def add(self, kind: str, values: Any) -> str:
        """Write data; returns the name that the page loads it by."""
        data = json.dumps(values, separators=(",", ":"), default=str)
        name = f"{kind}-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
        self._names.add(f"data/{name}.js")
        text = f'retake("{name}",{data});\n'.encode()
        self._writing.append(self._pool.submit(self._folder.write, f"data/{name}.js", text))
        if len(self._writing) >= FILES_AT_ONCE:  # else a slow storage's files fill the memory
            self._writing.pop(0).result()
        return name

    def publish(self, page: bytes) -> str:
        for file in self._writing:
            file.result()
        self._folder.write("index.html", page)
        stale = [name for name in self._folder.list("data") if name not in self._names]
        list(self._pool.map(self._folder.remove, stale))
        return self._folder.full_uri("index.html")
