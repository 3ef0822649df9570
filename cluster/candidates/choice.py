"""Candidates: which of the tries at an edit becomes the edit, and what becomes of their files.

A rank writes each candidate to `candidates/<video_id>/<edit_id>/<number>.mp4`, and the row names
the first good one as the edit's `output`. Once all have their scores, the best is copied to
`edits/<video_id>/<edit_id>.mp4`, then the row is written that names it there, and only when that is
stored are the others deleted (`cluster/garbage.py`, as the run ends). So whatever moment a run is
killed at, the newest row names files that are there, and what was not chosen yet is chosen by the
next run.

Nothing here reads or writes a file, and it costs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.accept import Rule, Rules, WrongRule, measured_kinds, rules_of
from cluster.candidates.made import edit_output, mask_output
from cluster.job import Job
from pipeline.records import Candidate, EditResult
from pipeline.scores import Scores


@dataclass(frozen=True)
class Ranking:
    """What makes a candidate the best of its edit.

    First come those that the job's `accept` takes, then those that have the score of `rank_by`,
    then those that have most of it. Of equal ones the first is taken, so the edit itself stays
    where nothing is better.

    Args:
        score: that is compared.
        sign: 1 where more is better, -1 where less is.
        rules: the job's.
        keep: whether files of candidates that are not chosen are kept.
        rounds: that an edit gets at most.
    """

    score: Rule
    sign: int
    rules: Rules
    keep: bool = False
    rounds: int = 1

    @classmethod
    def of(cls, job: Job) -> Ranking | None:
        """That of a job; None where its edits have no candidates.

        Raises:
            WrongRule: there is no such score, or the job does not measure it.
        """
        how = job.editing.reconstruction
        if not how.candidates:
            if job.score.rank_by:
                raise WrongRule(
                    f"score.rank_by is {job.score.rank_by!r}, and reconstruction.candidates is "
                    "empty: add candidates, or leave rank_by out"
                )
            return None
        given = job.score.rank_by
        if not given:
            raise WrongRule(
                "reconstruction.candidates are ranked by a score, and score.rank_by names none: "
                "add one, such as `rank_by: clip.direction`"
            )
        name = given.removeprefix("-")
        try:
            (score,) = Rules.parse([f"{name} >= 0"], kinds=measured_kinds(job.score)).rules
        except WrongRule as error:
            why = str(error).partition(": ")[2]
            raise WrongRule(f"score.rank_by is {given!r}: {why}") from None
        if how.until_accepted > 1 and not job.accept:
            raise WrongRule(
                f"reconstruction.until_accepted is {how.until_accepted}, and there are no rules in "
                "accept: add one, or leave until_accepted out"
            )
        sign = -1 if given.startswith("-") else 1
        return cls(score, sign, rules_of(job), how.keep_candidates, how.until_accepted)

    @property
    def kinds(self) -> set[str]:
        """The kinds of score that the choice looks at."""
        columns = [rule.column.split(".") for rule in (self.score, *self.rules.rules)]
        return {parts[1] for parts in columns if parts[0] == "scores"}

    def is_measured(self, scores: Scores) -> bool:
        """Whether all that the choice looks at was measured, and stays as it is."""
        records = [getattr(scores, kind) for kind in self.kinds]
        return all(one is not None and one.fingerprint for one in records)

    def awaited(self, scores: Scores) -> dict[str, Any]:
        """Records by kind that lack what the choice looks at, and that a later try may fill: a
        judge's server was away, or memory was short."""
        records = ((kind, getattr(scores, kind)) for kind in sorted(self.kinds))
        return {kind: one for kind, one in records if one and one.error and not one.fingerprint}

    def key(self, row: EditResult, one: Candidate) -> tuple[bool, bool, float, int]:
        """Larger for a better candidate of a row."""
        values = vars(as_edit(row, one))
        accepted, _ = self.rules.verdict(values)
        score = self.score.value(values)
        return accepted is not False, score is not None, self.sign * (score or 0.0), -one.number


@dataclass(frozen=True)
class Choice:
    """What came of a choice.

    Args:
        row: with the best candidate as the edit, and what the rules say of it.
        copies: (from, to) of files that are to be copied before the row is stored.
    """

    row: EditResult
    copies: tuple[tuple[str, str], ...] = ()


def files_to_score(row: EditResult) -> dict[int, tuple[str, str | None]]:
    """(output, mask) by number of the candidates of a row that are there to be looked at.

    Where an edit has none, or all but the best were dropped, it is the edit itself.
    """
    found = {one.number: (one.output, one.mask) for one in row.candidates if one.output}
    if not found and row.output:
        found[row.candidate] = row.output, row.mask
    return found


def known_scores(row: EditResult) -> dict[int, Scores]:
    """The scores that the candidates of a row have, by number.

    Those of the edit may be newer; a record without a fingerprint may be another candidate's.
    """
    known = {one.number: one.scores for one in row.candidates}
    records = vars(row.scores).items()
    newer = {kind: one for kind, one in records if one and one.fingerprint}
    known[row.candidate] = replace(known.get(row.candidate, Scores()), **newer)
    return known


def with_scores(row: EditResult, scores: Mapping[int, Scores]) -> EditResult:
    """A row whose candidates have scores, by number; of one without candidates the edit has."""
    if not row.candidates:
        return replace(row, scores=scores.get(row.candidate, row.scores))
    candidates = tuple(
        replace(one, scores=scores.get(one.number, one.scores)) for one in row.candidates
    )
    return replace(row, candidates=candidates)


def choose(row: EditResult, ranking: Ranking) -> Choice:
    """The best of a row's candidates as the edit.

    An edit that is rejected and has a further round left keeps its best candidate where it lies:
    the file of an edit is written once, when it is sure. Where a score is awaited nothing is
    chosen, or what may be the best would be deleted: the edit stays and lacks that score, so that
    it is looked for again.
    """
    awaited: dict[str, Any] = {}
    for one in row.candidates:
        awaited |= ranking.awaited(one.scores) if one.output else {}
    if awaited:
        (edit,) = (one for one in row.candidates if one.number == row.candidate)
        return Choice(replace(row, scores=replace(edit.scores, **awaited)))
    there = [one for one in row.candidates if one.output]
    if there:
        best = max(there, key=lambda one: ranking.key(row, one))
    else:  # chosen before; it may have other scores today
        same = [one for one in row.candidates if one.number == row.candidate]
        best = replace(same[0], output=row.output, size_bytes=row.size_bytes, mask=row.mask)
    chosen = as_edit(row, best)
    accepted, rejected_for = ranking.rules.verdict(vars(chosen))
    chosen = replace(chosen, accepted=accepted, rejected_for=rejected_for)
    copies: list[tuple[str, str]] = []
    final = accepted is not False or row.round + 1 >= ranking.rounds
    if final:
        for name, target in (
            ("output", edit_output(row.video_id, row.edit_id)),
            ("mask", mask_output(row.video_id, row.edit_id)),
        ):
            lies = getattr(chosen, name)
            is_there = best.number == row.candidate and getattr(row, name) == target
            if lies and lies != target and not is_there:
                copies.append((lies, target))
            changed: dict[str, Any] = {name: lies and target}
            chosen = replace(chosen, **changed)
    kept = tuple(
        one if ranking.keep or (not final and one.number == best.number) else dropped(one)
        for one in row.candidates
    )
    return Choice(replace(chosen, candidates=kept), tuple(copies))


def joined(before: EditResult, made: EditResult) -> EditResult:
    """The row of a further round: the edit is as before until a better one is chosen.

    Args:
        before: the edit's row, with the best candidate of the rounds until then.
        made: what came of the round; it may have failed.
    """
    known = tuple(
        replace(one, output=before.output, size_bytes=before.size_bytes, mask=before.mask)
        if one.number == before.candidate and not one.output
        else one
        for one in before.candidates
    )
    best = next(one for one in known if one.number == before.candidate)
    row = as_edit(replace(made, status="ok", error_code=None, error=None), best)
    return replace(row, scores=Scores(), candidates=known + made.candidates)


def as_edit(row: EditResult, one: Candidate) -> EditResult:
    """A row with one of its candidates as the edit: made with its seed and guidance scale."""
    changes = json.loads(one.changes)
    return replace(
        row,
        seed=changes.get("seed", row.seed),
        guidance_scale=changes.get("guidance_scale", row.guidance_scale),
        candidate=one.number,
        output=one.output,
        size_bytes=one.size_bytes,
        mask=one.mask,
        metrics=one.metrics,
        scores=one.scores,
    )


def dropped(one: Candidate) -> Candidate:
    """A candidate whose files are deleted."""
    return replace(one, output=None, mask=None)
