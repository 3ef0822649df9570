"""The stage that scores edits: result rows in, the same rows with their scores out.

It runs beside the groups, in an execution of its own, and reads what they have stored. What goes
wrong with one edit is in its row; only a row that could not be looked at, since storage or a model
was away, is given back as it was.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import Rules
from cluster.candidates.choice import Ranking, choose, files_to_score, known_scores
from cluster.candidates.choice import with_scores as scored_candidates
from cluster.results.schema import SCHEMA, plain_rows, plain_values
from pipeline.records import EditResult, from_dict
from pipeline.redaction import log_error, redacted
from pipeline.scores import Scores
from pipeline.settings import ScoreSettings
from pipeline.storage import Folder
from pipeline.storage.trouble import is_temporary

if TYPE_CHECKING:
    import torch

    from pipeline.quality.scoring import Pair, Scorer

GIVEN_BACK, SECONDS = "retake:given back", "retake:seconds"
"""Columns that a block has beside those of its rows: why a row has no scores, null where it has
some; and how long its scores took."""
NOT_LOADED = "the scores' models cannot be loaded: "
"""How the reason begins where no row can be scored here."""
LOAD_TRIES = 3
HOLD_S = 5.0
"""Between two tries to load; and a process without models holds a block so long before it gives it
back, for others to have it."""
LOOK_S = 5.0
NICE = 5
"""Ranks on the same cores go first."""
Changes = dict[str, Any]
OF_A_CHOICE = ("scores", "candidates", "candidate", "output", "size_bytes", "mask", "metrics")
"""What is other in a row once a candidate was chosen, beside the verdict."""
READ: tuple[str, ...] = ("output", "source", "mask", "height", "width", "frames")
READ += ("prompt", "source_prompt")
READ += ("instruction", "scores", "candidates")


class ScoreEdits:
    """Scores the rows of blocks.

    Args:
        output: the folder that holds the edits, a path or URI.
        score: what is to be measured.
        rules: that decide.
        device: of the models, as torch calls it.
        threads: of torch on CPUs.
        scorer: the models, where they are there already; else the first block loads them.
        ranking: which candidate of an edit becomes the edit; None where edits have none.
    """

    def __init__(
        self,
        output: str,
        score: ScoreSettings,
        rules: Rules,
        device: str = "cpu",
        threads: int = 1,
        scorer: Scorer | None = None,
        ranking: Ranking | None = None,
    ) -> None:
        self.ranking = ranking
        self.score, self.device, self.threads = score, device, threads
        self.output, self.rules, self.scorer = Folder(output), rules, scorer
        self.trouble = ""
        self._source: tuple[Any, torch.Tensor | None] = (None, None)
        threading.Thread(target=end_with_the_node, args=(os.getppid(),), daemon=True).start()

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.scorer is None and not self._load():
            return given_back(table, self.trouble)
        wanted = SCHEMA.names if self.ranking else READ
        rows = plain_rows(table.select([name for name in wanted if name in table.column_names]))
        changes: list[Changes] = []
        reasons: list[str | None] = []
        seconds: list[float] = []
        for row in rows:
            began = time.monotonic()
            try:
                changed, why = self._changes(row), None
            except Exception as error:  # of storage; what is the edit's own is in its scores
                changed, why = {}, redacted(f"{type(error).__name__}: {error}")
            changes.append(changed)
            reasons.append(why)
            seconds.append(time.monotonic() - began)
        restated = decided(newer(with_changes(table, changes)), self.rules)
        restated = restated.append_column(GIVEN_BACK, pa.array(reasons, pa.string()))
        return restated.append_column(SECONDS, pa.array(seconds, pa.float64()))

    def _changes(self, row: Mapping[str, Any]) -> Changes:
        """What is other in a row once it is scored.

        Raises:
            OSError: and others, each storage its own: its files cannot be read or copied now, and
                may be later.
        """
        if self.ranking and row.get("candidates"):
            return self._best(from_dict(EditResult, row), row, self.ranking)
        known = from_dict(Scores, row.get("scores") or {})
        return {"scores": asdict(self._scored(known, row, row["output"], row.get("mask")))}

    def _best(self, edit: EditResult, row: Mapping[str, Any], ranking: Ranking) -> Changes:
        """The same of an edit with candidates: each is scored, and the best becomes the edit."""
        known = known_scores(edit)
        scores = {
            number: self._scored(known[number], row, *files)
            for number, files in files_to_score(edit).items()
        }
        choice = choose(scored_candidates(edit, scores), ranking)
        for source, target in choice.copies:
            self.output.write(target, self.output.read(source))
        return {name: asdict(choice.row)[name] for name in OF_A_CHOICE}

    def _scored(self, known: Scores, row: Mapping[str, Any], edit: str, mask: str | None) -> Scores:
        """Some scores, with those that are missing.

        Args:
            known: of this edit, or of this candidate.
            row: of the edit.
            edit, mask: their files.
        """
        from pipeline.quality.scoring import RECORDS

        assert self.scorer
        if not (kinds := self.scorer.lacking(known)):
            return known
        try:
            pair = self._pair(row, edit, mask)
        except Exception as error:  # each storage has its own kinds of failure
            text = redacted(f"{type(error).__name__}: {error}")
            if is_temporary(error):
                raise
            return replace(known, **{kind: RECORDS[kind](error=text) for kind in kinds})
        made = self.scorer.score(pair, kinds)
        return replace(known, **{kind: getattr(made, kind) for kind in kinds})

    def _pair(self, row: Mapping[str, Any], edit: str, mask: str | None) -> Pair:
        """An edit and its source, as they are stored."""
        from pipeline.quality.scoring import Pair

        return Pair(
            source=self._of_source(row),
            edit=self._frames(edit, row),
            mask=self._frames(mask, row)[..., 0].float() / 255 if mask else None,
            prompt=row["prompt"] or "",
            source_prompt=row.get("source_prompt"),
            instruction=row.get("instruction"),
        )

    def _of_source(self, row: Mapping[str, Any]) -> torch.Tensor:
        """The frames of the source; the edits of a video come one after the other."""
        key = tuple(row[name] for name in ("source", "height", "width", "frames"))
        if self._source[0] != key or self._source[1] is None:
            self._source = key, self._frames(row["source"], row)
        frames = self._source[1]
        assert frames is not None
        return frames

    def _frames(self, name: str, row: Mapping[str, Any]) -> torch.Tensor:
        """The frames of a stored clip, uint8 [F, H, W, 3]."""
        from pipeline.media.decoding import read_clip

        size = {name: row[name] for name in ("height", "width", "frames")}
        with self.output.open(name) as file:
            return read_clip(file, name=name, **size).frames

    def _load(self) -> bool:
        """Have the models; False where they cannot be had."""
        if self.trouble:
            time.sleep(HOLD_S)
            return False
        import torch

        from pipeline.quality.fingerprints import WrongModel
        from pipeline.quality.scoring import Scorer

        with suppress(OSError):
            os.nice(NICE)
        torch.set_num_threads(max(1, self.threads))
        for tries in range(1, LOAD_TRIES + 1):
            try:
                self.scorer = Scorer.load(self.score, self.device)
                return True
            except Exception as error:  # of memory, of drivers, of the Hub
                log_error(error)
                reason = error
                if isinstance(error, WrongModel):
                    break
            if tries < LOAD_TRIES:
                time.sleep(HOLD_S)
        self.trouble = redacted(f"{NOT_LOADED}{type(reason).__name__}: {reason}")
        return False


def end_with_the_node(node_process: int) -> None:
    """End this worker of Ray with its node: it may be waiting for an answer of a judge for long.

    Nothing is done in a process that is no worker.
    """
    with suppress(OSError):
        if not Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"):
            return
        while os.getppid() == node_process:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)


def given_back(table: pa.Table, why: str) -> pa.Table:
    """Rows as they were, none of them scored."""
    count = table.num_rows
    table = table.append_column(GIVEN_BACK, pa.array([why] * count, pa.string()))
    return table.append_column(SECONDS, pa.array([0.0] * count, pa.float64()))


def with_scores(table: pa.Table, scores: Sequence[Scores], rules: Rules) -> pa.Table:
    """Result rows with other scores, and what the rules say of them."""
    changes: list[Changes] = [{"scores": asdict(one)} for one in scores]
    return decided(newer(with_changes(table, changes)), rules)


def with_changes(table: pa.Table, changes: Sequence[Changes]) -> pa.Table:
    """Result rows with other values.

    Args:
        changes: of each row, by column.
    """
    for name in dict.fromkeys(name for one in changes for name in one):
        there = plain_values(table[name]) if name in table.column_names else [None] * len(changes)
        values = [one.get(name, old) for one, old in zip(changes, there, strict=True)]
        table = _with(table, name, pa.array(values, SCHEMA.field(name).type))
    return table


def newer(table: pa.Table) -> pa.Table:
    """Result rows that take the places of these.

    They are rows of the run that made the edits, a microsecond newer than they were: so no row of
    a later run gives way to them. Nothing is counted a second time: neither in the sums of the run,
    nor in the edits over time.
    """
    times = table["finished_at"].cast(SCHEMA.field("finished_at").type, safe=False)
    tick = pa.scalar(timedelta(microseconds=1), pa.duration("us"))
    return _with(table, "finished_at", pc.add(times, tick))


def decided(table: pa.Table, rules: Rules) -> pa.Table:
    """Result rows with what the rules say of them; as they are where there are no rules."""
    if not rules.rules:
        return table
    names = ("accepted", "rejected_for")
    for name, values in zip(names, rules.verdicts(table).columns(), strict=True):
        table = _with(table, name, values.cast(SCHEMA.field(name).type))
    return table


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    """A table with a column in the place of one that it may have."""
    if name not in table.column_names:
        return table.append_column(SCHEMA.field(name), values)
    return table.set_column(table.column_names.index(name), SCHEMA.field(name), values)
