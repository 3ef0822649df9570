"""What a plan counts of a manifest's columns."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from cluster.manifest import ManifestFiles
from cluster.pending.done import DONE, PENDING, QUARANTINED, Answered
from cluster.selection.entries import Selection
from jobs.plan.count import Counted, Kind, Wanted, count
from pipeline.media.counts import FrameRule
from pipeline.settings import Reconstruction
from tests.pending_rows import TableFiles, table_of


def counted(rows: list[dict[str, Any]], **wanted: Any) -> Counted:
    files = cast(ManifestFiles, TableFiles(table_of(rows)))
    return count(files, Wanted(49, FrameRule(), **{"how": Reconstruction(), **wanted}))


def a_row(video: str, *prompts: str, **values: Any) -> dict[str, Any]:
    edits = [{"edit_id": prompt, "prompt": prompt} for prompt in prompts]
    return {"video": f"{video}.mp4", "video_id": video, "edits": edits, "num_frames": None} | values


def answered(*kinds: list[int]) -> Answered:
    ends = np.cumsum([len(row) for row in kinds])
    return Answered(np.array([kind for row in kinds for kind in row], np.uint8), ends)


def test_videos_that_cost_the_same_are_counted_together() -> None:
    rows = [
        a_row("a", "x", "y"),
        a_row("b", "x", "z", num_frames=200),
        a_row("c", "x", num_frames=20),
        a_row("d", "w", num_frames=17),
    ]
    found = counted(rows)
    assert found.kinds == {Kind(17, 1): 2, Kind(49, 2): 2}
    assert (found.videos, found.edits) == (4, 6)
    assert found.prompts == 5, "x, y, z, w and the empty one of the inversion"


def test_rows_without_edits_and_clips_that_are_too_short_are_no_work() -> None:
    found = counted([a_row("a"), a_row("b", "x", num_frames=4), a_row("c", "x")])
    assert found.kinds == {Kind(49, 1): 1}
    assert found.too_short == 1


def test_negative_and_source_prompts_are_encoded_where_they_are_needed() -> None:
    rows = [a_row("a", "x", source_prompt="s"), a_row("b", "x", source_prompt="t")]
    for row in rows:
        row["edits"][0]["negative_prompt"] = "n"
    assert counted(rows).prompts == 3
    assert counted(rows, how=Reconstruction(reference="source")).prompts == 5
    assert counted(rows, how=Reconstruction(negative_prompt="m")).prompts == 4
    assert counted(rows, how=Reconstruction(negative_prompt="x")).prompts == 3


def test_a_guidance_scale_of_its_own_makes_a_video_another_kind() -> None:
    rows = [a_row("a", "x", "y"), a_row("b", "x", "y"), a_row("c", "x", "y"), a_row("d", "x", "y")]
    for row, scales in zip(rows, ([1.0, 1.0], [1.0, 3.0], [1.0, None], [None, None]), strict=True):
        for edit, scale in zip(row["edits"], scales, strict=True):
            edit["guidance_scale"] = scale
    found = counted(rows)
    assert found.kinds == {Kind(49, 2): 3, Kind(49, 2, 1.0): 1}
    assert found.mixed_guidance == 2


def test_what_is_answered_is_left_out_and_its_trajectory_is_kept() -> None:
    rows = [a_row("a", "x", "y"), a_row("b", "x", "y"), a_row("c", "x", "y")]
    said = answered([DONE, PENDING], [DONE, DONE], [QUARANTINED, PENDING])
    found = counted(rows, answered=said)
    assert found.kinds == {Kind(49, 1, None, True): 1, Kind(49, 1): 1}
    assert found.prompts == 2
    assert counted(rows, answered=said, kept=False).kinds == {Kind(49, 1): 2}


def test_the_first_videos_with_something_pending_are_a_trial() -> None:
    rows = [a_row("a", "x", "y"), a_row("b", "x"), a_row("c", "z"), a_row("d", "w")]
    said = answered([DONE, DONE], [PENDING], [PENDING], [PENDING])
    found = counted(rows, answered=said, limit=2)
    assert (found.videos, found.edits, found.prompts) == (2, 2, 3)
    assert counted(rows, limit=9).videos == 4


def test_a_selection_takes_edits_by_their_ids() -> None:
    rows = [a_row("a", "x", "y"), a_row("b", "x"), a_row("c", "x")]
    assert counted(rows, selection=Selection([("a", "y"), ("b*", None)])).kinds == {Kind(49, 1): 2}
    assert counted(rows, selection=Selection([("nobody", None)])).videos == 0


def test_the_sample_is_the_seeds_and_of_pending_rows_alone() -> None:
    rows = [a_row(f"v{n}", "x", start_frame=n, fps=None) for n in range(40)]
    said = answered(*[[DONE if n % 2 else PENDING] for n in range(40)])
    first, again, other = (
        counted(rows, answered=said, sample=5, seed=s).sources for s in (1, 1, 2)
    )
    assert first == again != other
    assert len({source.video for source in first}) == 5
    assert all(source.start_frame % 2 == 0 for source in first)
    assert counted(rows, sample=0).sources == ()


@pytest.mark.parametrize("videos", [1, 3])
def test_a_sample_is_never_more_than_there_is(videos: int) -> None:
    assert len(counted([a_row(f"v{n}", "x") for n in range(videos)], sample=9).sources) == videos
