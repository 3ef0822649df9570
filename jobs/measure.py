"""`retake metrics`: the scores that edits lack, measured after the job as its own stage does.

Each edit that was measured gets a newer row in the results, whole, with its scores; the newest row
of an edit counts. So a command that was stopped goes on where it was, and one after another run
measures only the new edits. At the end the older rows are put away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import Rules, WrongRule
from cluster.candidates.made import FOLDER as CANDIDATES
from cluster.output.lease import Lease, held
from cluster.output.naming import after, run_name, runs_with_results
from cluster.pending.unscored import Unscored, lacks
from cluster.results.again import whole_reading
from cluster.results.compaction import compact, find_current, read_current
from cluster.results.parts import part_names
from cluster.results.schema import plain_rows
from cluster.results.writer import ResultWriter
from cluster.settings import ClusterSettings
from cluster.stages.score import GIVEN_BACK, SECONDS, ScoreEdits
from jobs.accept import numbers_of
from jobs.accept.remembered import rules_in
from jobs.errors import JobError, WrongOption
from jobs.spec import absolute, model, read_resolved
from pipeline.records import from_dict
from pipeline.redaction import has_hidden, say
from pipeline.scores import Scores
from pipeline.settings import ScoreSettings
from pipeline.storage import Folder

if TYPE_CHECKING:
    from pipeline.quality.scoring import Scorer

LOOKED_AT = ("status", "scores", "output")
ROWS_AT_ONCE = 256
"""Rows of results that are in memory."""


@dataclass
class Measured:
    """What a command did.

    Args:
        total: edits that lacked a score when it began; `before` are those that did not.
        edits: measured.
        failed: edits without a score that was asked for, which the next command tries again.
        unchosen: edits that lack a score and whose best candidate the job has still to choose.
        reason: why, of the first.
    """

    total: int = 0
    edits: int = 0
    before: int = 0
    failed: int = 0
    unchosen: int = 0
    reason: str = ""


def settings_of(
    frames: bool, clip: str | None, dino: str | None, judge: str | None, judge_model: str | None
) -> ScoreSettings:
    """What the options of the command ask for.

    Args:
        clip, dino: folders or names on the Hub.
        judge: the same, or the URL of a server.
    """
    from pipeline.quality.judge.endpoint import is_url

    return ScoreSettings(
        frames=frames,
        clip=model(clip) if clip else None,
        dino=model(dino) if dino else None,
        judge=model(judge) if judge and not is_url(judge) else judge,
        judge_model=judge_model,
    )


def measure_results(
    output_uri: str,
    asked: ScoreSettings,
    device: str = "auto",
    on_progress: Callable[[Measured], None] = lambda measured: None,
    *,
    wait: bool = False,
) -> Measured:
    """Measure the edits of an output folder, as the only one that writes to it.

    Args:
        asked: what is measured; by default what the job of the folder asks for.
        device: a torch device; `auto` is a GPU where there is one.
        on_progress: called after each edit.
        wait: for a run that writes to the folder; else it is an error.

    Raises:
        WrongOption: nothing is to be measured.
        CannotRun: a run writes to the folder, or storage does not take the results.
        JobError: a model cannot be opened, or the folder holds no results.
    """
    output = Folder(absolute(output_uri))
    if not part_names(output):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; run the job first, with the same folder"
        )
    scorer = _load(_wanted(output, asked), device)
    measured = Measured()
    with held(output, "", wait=wait, on_wait=say, command="retake metrics") as lease:
        pending = _pending(output, scorer.fingerprints(), measured)
        stage = ScoreEdits(output.uri, scorer.settings, _rules(output), scorer=scorer)
        if pending:
            _measure(output, pending, stage, lease, measured, on_progress)
    return measured


def _wanted(output: Folder, asked: ScoreSettings) -> ScoreSettings:
    if not any((asked.frames, asked.clip, asked.dino, asked.judge)):
        asked = _of_the_job(output)
    if not any((asked.frames, asked.clip, asked.dino, asked.judge)):
        raise WrongOption(
            "nothing to measure: give --frames, --clip PATH, --dino PATH or --judge PATH; the job "
            "of this folder has no `score` either"
        )
    return asked


def _of_the_job(output: Folder) -> ScoreSettings:
    values = read_resolved(output).get("score") or {}
    try:
        asked = ScoreSettings(**values)
    except (TypeError, ValueError) as error:
        raise JobError(
            f"{output.uri}/job.yaml: score: {error}; name what to measure with options instead"
        ) from error
    if asked.judge and has_hidden(asked.judge):
        raise JobError(
            f"{output.uri}/job.yaml: score.judge is {asked.judge}: a run leaves secrets out of "
            "what it writes; give the whole URL with --judge"
        )
    return asked


def _rules(output: Folder) -> Rules:
    """What `accepted` was last decided by."""
    texts = rules_in(output)
    if not texts:
        return Rules()
    try:
        more = whole_reading(lambda damaged: numbers_of(output, damaged))
        return Rules.parse(texts, more=more)
    except WrongRule as error:
        raise JobError(
            f"{output.uri}: {error}; decide by other rules with `retake accept`"
        ) from error


def _pending(output: Folder, wanted: Mapping[str, str], measured: Measured) -> Unscored:
    """The newest rows of edits that lack a score.

    One whose candidates wait to be compared is left to the job: with scores of its own it would
    look as if the best had been chosen.
    """
    rows: dict[str, np.ndarray] = {}
    for name, numbers in find_current(output).items():
        lacking = []
        for table in read_current(output, {name: numbers}, lambda field: field.name in LOOKED_AT):
            lacks_some = lacks(table, wanted)
            made = pc.sum(pc.equal(table["status"], "ok")).as_py() or 0
            measured.before += made - int(lacks_some.sum())
            is_candidate = pc.fill_null(pc.starts_with(table["output"], f"{CANDIDATES}/"), False)
            unchosen = lacks_some & is_candidate.to_numpy(zero_copy_only=False)
            measured.unchosen += int(unchosen.sum())
            lacking.append(lacks_some & ~unchosen)
        chosen = numbers[np.concatenate([*lacking, np.zeros(0, bool)])]
        if len(chosen):
            rows[name] = chosen
    pending = Unscored(output, rows)
    measured.total = len(pending)
    return pending


def _measure(
    output: Folder,
    pending: Unscored,
    stage: ScoreEdits,
    lease: Lease,
    measured: Measured,
    on_progress: Callable[[Measured], None],
) -> None:
    """Measure row by row; what was measured is stored within seconds."""
    run = after(run_name(), runs_with_results(output))
    patience_s = ClusterSettings().storage_patience_s
    writer = ResultWriter(output, run, patience_s, before=lease.check)
    on_progress(measured)
    try:
        while (rows := pending.take(ROWS_AT_ONCE)) is not None:
            for place in range(rows.num_rows):
                found = stage(rows.slice(place, 1))
                _count(found, stage, measured)
                if found[GIVEN_BACK][0].as_py() is None:
                    writer.add(found.drop_columns([GIVEN_BACK, SECONDS]))
                writer.check()
                on_progress(measured)
    finally:
        writer.close()
    compact(output, run)


def _count(found: pa.Table, stage: ScoreEdits, measured: Measured) -> None:
    """Count a row that the stage gave back: as failed where the next command tries it again."""
    assert stage.scorer
    (row,) = plain_rows(found.select(["scores", GIVEN_BACK]))
    scores = row["scores"] or {}
    lacking = stage.scorer.lacking(from_dict(Scores, scores))
    reasons = [row[GIVEN_BACK], *((scores.get(kind) or {}).get("error") for kind in lacking)]
    if why := next(filter(None, reasons), None):
        measured.failed += 1
        measured.reason = measured.reason or why
    else:
        measured.edits += 1


def _load(asked: ScoreSettings, device: str) -> Scorer:
    import torch
    from transformers.utils import logging

    from pipeline.quality.fingerprints import WrongModel
    from pipeline.quality.scoring import Scorer

    logging.disable_progress_bar()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise JobError(f"--device {device}: {error}") from error
    try:
        scorer = Scorer.load(asked, device)
        if scorer.judge:
            scorer.judge.fingerprint()  # where its server is away nothing is begun
        return scorer
    except WrongModel as error:
        raise JobError(_by_option(str(error), asked)) from error


def _by_option(text: str, asked: ScoreSettings) -> str:
    """What is wrong with a model, after the option that named it."""
    for kind in ("clip", "dino", "judge"):
        place = getattr(asked, kind)
        if text.startswith(f"score.{kind}"):
            return f"--{kind}{text.removeprefix(f'score.{kind}')}"
        if place and text.startswith(place):
            return f"--{kind} {text}"
    return text
