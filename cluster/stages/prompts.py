"""The stage that has prompts encoded, before any video that needs them is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

import pyarrow as pa

from cluster.job import Job
from cluster.ranks.messages import Answer
from cluster.ranks.messages import EncodePrompts as EncodeRequest
from cluster.settings import GroupSettings
from cluster.stages.blocks import VideoWork, rebuilt, work_of
from cluster.stages.group import GivenBack, GroupStage, Report
from pipeline.model.prompts import PromptStore

PROMPTS_AT_ONCE = 16
"""Of one request. T5-XXL takes up to a minute for a prompt on a single core."""


class EncodePrompts(GroupStage):
    """Has every distinct prompt of a block encoded, where storage does not hold it yet.

    The group starts at the first prompt that is missing: where storage holds all, no T5 takes
    memory.

    Args:
        at_once: prompts are known to be missing: the group starts beside the others, without
            waiting for the first rows.
    """

    name = "prompts"

    def __init__(
        self,
        job: Job,
        report: Report,
        settings: GroupSettings,
        device: str,
        threads: int,
        at_once: bool = False,
    ) -> None:
        self.started, self.idle, self.starting_once = False, False, Lock()
        self.at_once = at_once
        super().__init__("prompts", job, report, settings, device, threads)
        self.store = store_of(self.job)
        self.encoded: set[str] = set()

    def __call__(self, table: pa.Table) -> pa.Table:
        videos = work_of(table)
        try:
            failed = self.encode(prompts_of(self.job, videos))
        except GivenBack:
            return self._encoded_part(table, videos)
        for place, video in enumerate(videos):
            texts = prompts_of(self.job, [video]) if failed else ()
            if answer := next((failed[text] for text in texts if text in failed), None):
                videos[place] = video.failed(answer)
        return rebuilt(table, videos, range(len(videos)))

    def _encoded_part(self, table: pa.Table, videos: Sequence[VideoWork]) -> pa.Table:
        """The rows of a block that need no prompt beyond those that were encoded."""
        places = [
            place
            for place, video in enumerate(videos)
            if self.encoded.issuperset(prompts_of(self.job, [video]))
        ]
        return rebuilt(table, [videos[place] for place in places], places)

    def encode(self, prompts: Iterable[str]) -> dict[str, Answer]:
        """Have prompts encoded; returns the answers for those that could not be.

        Raises:
            GivenBack: the driver takes no new work.
        """
        new = [prompt for prompt in prompts if prompt not in self.encoded]
        missing = self._missing(new)
        if found := len(new) - len(missing):
            self.report.happened("prompt encoded", found)
        self.encoded.update(set(new) - set(missing))
        self._begin(needed=bool(missing))
        failed: dict[str, Answer] = {}
        for first in range(0, len(missing), PROMPTS_AT_ONCE):
            some = missing[first : first + PROMPTS_AT_ONCE]
            answer, _ = self.ask(EncodeRequest(some))
            if answer.error_code:
                failed |= dict.fromkeys(some, answer)
            else:
                self.report.happened("prompt encoded", len(some))
                self.encoded.update(some)
        return failed

    def close(self) -> None:
        """End the group: its memory is free when this returns."""
        self.group.close()
        self.note.close()

    def begin(self) -> None:
        """Start the group where it is known to be needed; else see `_begin`."""
        if self.at_once:
            self._begin(needed=True)

    def _begin(self, *, needed: bool) -> None:
        """Start the group where it is needed; where it is not yet, this stage is ready as it is."""
        with self.starting_once:
            if needed and not self.started:
                self.started = True
                super().begin()
            elif not self.started and not self.idle:
                self.idle = True
                self.report.happened("prompts ready")

    def _missing(self, prompts: Sequence[str]) -> list[str]:
        try:
            return self.store.missing(prompts)
        except Exception:  # each storage has its own kinds of failure; the rank reports them
            return list(prompts)


def store_of(job: Job) -> PromptStore:
    """Where a job keeps the embeddings of its prompts."""
    return PromptStore.of(job.editing.output, job.checkpoint_fingerprint)


def prompts_of(job: Job, videos: Iterable[VideoWork]) -> list[str]:
    """The prompts, each once, that the pending edits of videos need."""
    wanted: dict[str, None] = {}
    for video in videos:
        if not video.pending:
            continue
        texts = ["", job.editing.reconstruction.negative_prompt, video.source_prompt]
        for edit in video.edits:
            texts += [edit.prompt, edit.negative_prompt] if edit.pending else []
        wanted |= dict.fromkeys(text or "" for text in texts)
    return list(wanted)
