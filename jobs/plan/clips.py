"""How long clips really are: a few videos are opened, since manifests hold upper bounds only.

It informs, and must not hold a plan up: what does not come in time, or cannot be read, is a note.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.plan.count import Kind, Source
from pipeline.locations import resolve_uri
from pipeline.media.apart import clip_frames_apart
from pipeline.media.counts import FrameRule
from pipeline.settings import EditingSettings
from pipeline.storage import local_copy

BUDGET_S = 6.0
"""Seconds for all of them together."""
AT_ONCE = 4
MOST_BYTES = 1 << 30
"""No larger file is fetched to see how long it is."""


@dataclass(frozen=True)
class Seen:
    """What a few videos show.

    Args:
        asked: how many were to be opened.
        frames: of the clip that each gives that was read: at most those of the job, whatever the
            `num_frames` of its row.
        failed: those that could not be read.
        why: what was wrong with the first of them.
    """

    asked: int
    frames: tuple[int, ...] = ()
    failed: int = 0
    why: str = ""

    @property
    def late(self) -> int:
        """Those that were not read in time."""
        return self.asked - len(self.frames) - self.failed


def look_at(
    sources: Sequence[Source],
    base: str,
    editing: EditingSettings,
    rule: FrameRule,
    frames: int,
    budget_s: float = BUDGET_S,
) -> Seen:
    """Open videos and count the frames of their clips.

    Args:
        base: what relative videos are relative to.
        frames: the most that a clip of the job can have.
    """
    todo: queue.SimpleQueue[Source] = queue.SimpleQueue()
    answers: queue.SimpleQueue[int | str] = queue.SimpleQueue()
    for source in sources:
        todo.put(source)

    def work() -> None:
        while True:
            try:
                source = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put(_frames_of(source, base, editing, rule, frames))
            except Exception as error:  # each storage has its own kinds of failure
                message = getattr(error, "message", None)
                answers.put(str(message) if message else f"{source.video}: {error}")

    for _ in range(min(AT_ONCE, len(sources))):
        threading.Thread(target=work, daemon=True).start()  # storage may never answer
    found, until = list[int | str](), time.monotonic() + budget_s
    while len(found) < len(sources) and (left := until - time.monotonic()) > 0:
        try:
            found.append(answers.get(timeout=left))
        except queue.Empty:
            break
    wrong = sorted(one for one in found if isinstance(one, str))
    lengths = tuple(sorted(one for one in found if isinstance(one, int)))
    return Seen(len(sources), lengths, len(wrong), wrong[0] if wrong else "")


def _frames_of(
    source: Source, base: str, editing: EditingSettings, rule: FrameRule, frames: int
) -> int:
    video = resolve_uri(source.video, base)
    with local_copy(video, most_bytes=min(MOST_BYTES, int(editing.limits.file_gb * 1e9))) as (
        file,
        _,
    ):
        return clip_frames_apart(
            file,
            rule=rule,
            limits=editing.limits,
            name=video,
            frames=frames,
            start_frame=source.start_frame,
            fps=source.fps or editing.video.fps,
        )


def as_seen(kinds: Mapping[Kind, int], lengths: Sequence[int], rule: FrameRule) -> dict[Kind, int]:
    """The videos of a manifest, their clips as long as those that were seen.

    Videos of each kind have the lengths that were seen in their shares, cut at their bound. One at
    least stays as long as the longest may be: memory must be enough for it.

    Args:
        lengths: frames of clips that were seen; at least one.
    """
    spread: Counter[Kind] = Counter()
    for kind, videos in kinds.items():
        seen = Counter(rule.largest_at_most(min(kind.frames, one)) or one for one in lengths)
        for frames, number in _shares(seen, videos).items():
            spread[kind._replace(frames=frames)] += number
    longest = max(kinds, key=lambda kind: kind.frames, default=None)
    if longest and all(kind.frames < longest.frames for kind in +spread):
        alike = [kind for kind in spread if kind._replace(frames=longest.frames) == longest]
        spread[max(alike, key=lambda kind: spread[kind])] -= 1
        spread[longest] += 1
    return dict(+spread)


def _shares(weights: Mapping[int, int], total: int) -> dict[int, int]:
    """`total` divided by weights, in whole numbers: the largest remainders are rounded up."""
    whole = sum(weights.values())
    shares = {key: total * weight // whole for key, weight in sorted(weights.items())}
    rest = sorted(weights, key=lambda key: (-(total * weights[key] % whole), -key))
    for key in rest[: total - sum(shares.values())]:
        shares[key] += 1
    return shares
