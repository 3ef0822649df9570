"""CSV: a table for each split, and the videos as files, as trainers on diffusion models read them.

    train.csv  validation.csv  prompts.txt  videos.txt
    videos/<key>.mp4  sources/<source>.mp4  masks/<key>.mp4

`video`, `prompt`, `vace_video` and `vace_video_mask` are the names of DiffSynth-Studio: its dataset
reads `--dataset_metadata_path` with pandas and opens the columns of `--data_file_keys` below
`--dataset_base_path` (`diffsynth/core/data/unified_dataset.py`; `vace_video` in
`examples/wanvideo/model_training/lora/Wan2.1-VACE-1.3B.sh`, and `vace_video_mask` in
`diffsynth/pipelines/wan_video.py`). Scripts that take a CSV file and the names of two columns
(cogvideox-factory's `--dataset_file`) are given `video` and `prompt`.

`prompts.txt` and `videos.txt`, of the training pairs, are the two lists of diffusers'
`examples/cogvideo/train_cogvideox_lora.py` (`--instance_data_root`, `--caption_column prompts.txt`,
`--video_column videos.txt`), which finetrainers reads as well (`docs/dataset/README.md`). Both drop
empty lines, so a pair without a prompt is in neither list.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

from cluster.results.schema import plain_rows
from jobs.export.card import write_card
from jobs.export.formats import SPLITS, Pair, Shard, Whole
from jobs.export.plan import slug
from jobs.export.rows import exported_tables, quoted
from jobs.export.target import Target
from jobs.export.values import ending_of, flat, leaves

WRITERS = 8
"""Files that are written side by side."""
FOLDERS = ("videos/", "sources/", "masks/")
LISTS = ("prompts.txt", "videos.txt")
TAKEN = ("vace_video", "vace_video_mask", "source_uri")
"""Columns that a manifest's own may not be called."""


class Csv:
    """Tables beside the files that they name."""

    needs: ClassVar[tuple[str, ...]] = ()

    def write(self, shard: Shard, pairs: Iterator[Pair], target: Target) -> None:
        sources: set[str] = set()
        waiting: set[Future[None]] = set()
        with ThreadPoolExecutor(WRITERS, "export-files") as pool:
            for pair in pairs:
                files = {f"videos/{pair.key}{pair.endings['edit']}": pair.files["edit"]}
                source = _source(pair.row["video_id"], pair.source_sha, pair.endings["source"])
                if source not in sources:
                    sources.add(source)
                    files[source] = pair.files["source"]
                if "mask" in pair.files:
                    files[f"masks/{pair.key}{pair.endings['mask']}"] = pair.files["mask"]
                waiting |= {pool.submit(target.put, *file) for file in files.items()}
                while len(waiting) > 2 * WRITERS:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()
            for one in waiting:
                one.result()

    def leftovers(self, name: str) -> bool:
        return name.startswith(FOLDERS)

    def finish(self, whole: Whole, target: Target) -> None:
        write_card(whole, target)
        columns = _columns(whole)
        for split in SPLITS:
            with target.file(f"{split}.csv") as file:
                _write_lines(file, [columns.values()])
                for cells in _rows(whole, split):
                    _write_lines(file, [[cells.get(name) for name in columns]])
        with ExitStack() as stack:
            lists = [stack.enter_context(target.file(name)) for name in LISTS]
            for cells in _rows(whole, "train"):
                if prompt := " ".join((cells["prompt"] or "").split()):
                    for file, line in zip(lists, (prompt, cells[FILE]), strict=True):
                        file.write(f"{line}\n".encode())


FILE, SOURCE, MASK = "\0video", "\0vace_video", "\0vace_video_mask"
"""What `_rows` calls the columns that name files, unlike any column of the results."""


def _columns(whole: Whole) -> dict[str, str]:
    """The columns of the tables, by what `_rows` calls them.

    Metrics and scores that no pair has are left out, and so is the mask.
    """
    table = exported_tables(whole.database, whole.columns, whole.others, None, 0)
    schema = next(table).schema
    every: dict[str, str] = {}  # what counts the values of a column, by its name
    ducks = {name: duck for duck, name in whole.others.items()}
    for name in whole.columns:
        start = quoted(ducks.get(name, name))
        every |= dict(leaves(name, start, schema.field(name).type))
    counts = ", ".join(f"count({one})" for one in [*every.values(), "mask"])
    (found,) = whole.database.execute(f"SELECT {counts} FROM exported").fetchall()
    kept = [n for n, count in zip(every, found, strict=False) if count or "." not in n]
    named = {FILE: "video", "prompt": "prompt", SOURCE: "vace_video"}
    named |= {MASK: "vace_video_mask"} if found[-1] else {}
    for name in kept:
        if name == "video":
            named[name] = "source_uri"
        elif name != "prompt":
            named[name] = name if name not in TAKEN else f"manifest_{name}"
    return named


def _rows(whole: Whole, split: str) -> Iterator[dict[str, Any]]:
    """The cells of the pairs of a split, in order."""
    for table in exported_tables(whole.database, whole.columns, whole.others, split):
        for row in plain_rows(table):
            key, sha = row["_key"], row["_source_sha"]
            files = {
                FILE: f"videos/{key}{ending_of(row['output'])}",
                SOURCE: _source(row["video_id"], sha, ending_of(row["source"])),
                MASK: f"masks/{key}{ending_of(row['mask'])}" if row["mask"] else None,
            }
            yield files | dict(flat({name: row[name] for name in whole.columns}))


def _source(video_id: str, sha: str, ending: str) -> str:
    """The file of a source: named by its bytes, so that edits of one source share it."""
    return f"sources/{slug(video_id)}-{sha}{ending}"


def _write_lines(file: BinaryIO, lines: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    file.write(text.getvalue().encode(errors="replace"))
