"""What a plan must know of a manifest: how many videos there are of each length and edit count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class VideoGroup:
    """Videos that cost the same.

    Args:
        videos: how many.
        edits: of each, those that are to be made.
        frames: that each gives before it is cut to what the job and the checkpoint take; None where
            nobody looked: the job's own number is taken.
        guidance_scale: of the edits; None for the job's.
        inverted: whether their trajectories are stored already.
    """

    videos: int
    edits: int
    frames: int | None = None
    guidance_scale: float | None = None
    inverted: bool = False

    def __post_init__(self) -> None:
        if self.videos < 1 or self.edits < 1:
            raise ValueError(
                f"a group has {self.videos} videos with {self.edits} edits each; expected at least "
                "1 of both: leave out videos without edits"
            )


@dataclass(frozen=True)
class Dataset:
    """A manifest, or a sample of it, as a histogram: a million rows are some dozen groups.

    Args:
        groups: of equal videos.
        prompts: different texts to encode, the empty one and negative ones included.
    """

    groups: tuple[VideoGroup, ...]
    prompts: int

    @classmethod
    def counted(
        cls,
        rows: Iterable[tuple[int | None, int]] | Mapping[tuple[int | None, int], int],
        prompts: int,
    ) -> Dataset:
        """Of (frames, edits) of each video, or of how many videos have each such pair."""
        counts = Counter(rows)
        groups = (VideoGroup(n, edits, frames) for (frames, edits), n in counts.items())
        return cls(tuple(groups), prompts)

    @property
    def videos(self) -> int:
        return sum(group.videos for group in self.groups)

    @property
    def edits(self) -> int:
        return sum(group.videos * group.edits for group in self.groups)
