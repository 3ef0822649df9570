"""A rank makes the candidates of edits: files of their own, each what it is alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.candidates.made import gathered
from cluster.ranks.channel import whole
from cluster.ranks.edit_video import edit_video
from cluster.ranks.editing import RankEditor
from cluster.ranks.invert_video import invert_video
from cluster.stages.blocks import EditWork, VideoWork
from cluster.stages.invert import inversion_of
from pipeline.errors import ErrorCode
from pipeline.media.encoding import write_clip
from pipeline.records import EditResult, VideoSpec
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    Variation,
    VideoSettings,
)
from tests.cluster.ranks.test_editing import BLUE, RED, a_rank, spoil
from tests.drawn_videos import waves

CANDIDATES = (Variation(noise=0.5), Variation(start=1.0, guidance_scale=1.0))


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> EditingSettings:
    return EditingSettings(
        checkpoint=str(checkpoint),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=4),
        reconstruction=Reconstruction(start=0.5, guidance_scale=2.0, candidates=CANDIDATES),
    )


@pytest.fixture
def request_(tmp_path: Path) -> Iterator[VideoSpec]:
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(10, 40, 60)), fps=8)
    yield VideoSpec(str(tmp_path / "clip.mp4"), "clip", edits=(RED, BLUE))


def made_by(rank: RankEditor, video: VideoSpec, number: int = 0) -> list[EditResult]:
    edits = tuple(EditWork(**vars(edit)) for edit in video.edits)
    asked = inversion_of(VideoWork(**vars(video) | {"edits": edits}))
    answers = edit_video(rank, video, invert_video(rank, asked.video), number)
    return gathered(whole(answers, rank.overlap.begun()), rank.settings.reconstruction)


def a_mask(folder: Path) -> str:
    """A mask of the clip, whose first third is white."""
    pixels = torch.zeros(9, 40, 60, 3, dtype=torch.uint8)
    pixels[:, :, :20] = 255
    with (folder / "mask.mp4").open("wb") as file:
        write_clip(file, pixels, fps=8)
    return str(folder / "mask.mp4")


def test_each_candidate_is_a_file_of_its_own_and_the_edit_is_what_it_is_alone(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path
) -> None:
    rank = a_rank(settings)
    red, blue = made_by(rank, request_)
    assert rank.highest(request_) == 4  # of the candidate that starts at the top
    out = tmp_path / "out"
    for row in (red, blue):
        names = [f"candidates/clip/{row.edit_id}/{number}.mp4" for number in range(3)]
        assert [one.output for one in row.candidates] == names
        assert (row.output, row.candidate, row.round) == (names[0], 0, 0)
        assert [one.size_bytes for one in row.candidates] == [
            (out / name).stat().st_size for name in names
        ]
        assert len({(out / name).read_bytes() for name in names}) == 3
    # 4 levels for the reference; each edit: 1 guided and 1 plain step twice, 4 plain steps once
    assert 2 * red.forwards.plain == 4
    assert 2 * red.forwards.injected == 2 * (2 * 3 + 4)
    alone = replace(settings.reconstruction, candidates=())
    single = a_rank(replace(settings, output=str(tmp_path / "alone"), reconstruction=alone))
    for row, candidate in zip(made_by(single, request_), (red, blue), strict=True):
        assert row.output == f"edits/clip/{row.edit_id}.mp4"
        made = (tmp_path / "alone" / row.output).read_bytes()
        assert made == (out / str(candidate.output)).read_bytes()


def test_an_edit_whose_candidates_all_fail_has_failed_and_the_others_have_not(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    spoil(rank, RED.prompt)
    red, blue = made_by(rank, request_)
    assert red.error_code == ErrorCode.NOT_FINITE
    assert [one.error_code for one in red.candidates] == [ErrorCode.NOT_FINITE] * 3
    assert blue.error_code is None


def test_a_refused_mask_costs_its_edit_alone_and_each_candidate_has_a_mask_of_its_own(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path
) -> None:
    how = replace(
        settings.reconstruction, candidates=(Variation(noise=0.5), Variation(mask="none"))
    )
    rank = a_rank(replace(settings, reconstruction=how))
    gone = replace(RED, mask=str(tmp_path / "gone.mp4"))
    video = replace(request_, edits=(gone, replace(BLUE, mask=a_mask(tmp_path))))
    red, blue = made_by(rank, video)
    assert (red.edit_id, red.error_code, red.output) == ("red", ErrorCode.BAD_MASK, None)
    names = [f"candidates/clip/blue/{number}.mask.mp4" for number in range(2)]
    assert [one.mask for one in blue.candidates] == [*names, None]
    assert [one.error_code for one in blue.candidates] == [None] * 3
    out = tmp_path / "out"
    assert (out / names[0]).read_bytes() == (out / names[1]).read_bytes()
    alone = replace(settings.reconstruction, candidates=())
    single = a_rank(replace(settings, output=str(tmp_path / "alone"), reconstruction=alone))
    _, edit = made_by(single, video)
    assert (edit.output, edit.mask) == ("edits/clip/blue.mp4", "masks/clip/blue.mp4")
    for made, candidate in ((edit.output, blue.output), (edit.mask, blue.mask)):
        assert (tmp_path / "alone" / str(made)).read_bytes() == (out / str(candidate)).read_bytes()
    red, blue = made_by(rank, video, 1)
    assert [one.number for one in blue.candidates] == [4], "what no other seed changes is not made"
    assert [one.number for one in red.candidates] == [3], "a number of the first round again"
    assert (red.round, blue.round) == (1, 1)


def test_a_damaged_trajectory_is_made_again_and_the_edit_with_its_mask_is_the_same(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path
) -> None:
    rank, mask = a_rank(settings), a_mask(tmp_path)
    edits = replace(RED, mask=mask), replace(BLUE, mask="auto")
    video = replace(request_, edits=edits)
    first = made_by(rank, video)
    out = tmp_path / "out"

    def files(rows: list[EditResult]) -> list[bytes]:
        each = [one for row in rows for one in row.candidates]
        names = [name for one in each for name in (one.output, one.mask) if name]
        return [(out / name).read_bytes() for name in names]

    before = files(first)
    assert len(before) == 6 + 6, "a candidate with noise of its own has a mask, too"
    inversion = invert_video(rank, replace(video, edits=()))
    (shard,) = (out / "trajectories" / inversion.trajectory).glob("shard-*")
    data = bytearray(shard.read_bytes())
    data[9 * len(data) // 10] ^= 1
    shard.write_bytes(data)
    rows = gathered(
        whole(edit_video(rank, video, inversion), rank.overlap.begun()),
        rank.settings.reconstruction,
    )
    assert all("is altered" in str(row.trajectory_damage) for row in rows)
    assert files(rows) == before


@pytest.mark.parametrize("mask", [None, "given"])
def test_an_edit_from_noise_reads_more_levels_where_it_has_a_mask(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path, mask: str | None
) -> None:
    how = Reconstruction(start="noise", inject_steps=(0.8, 1.0), composite=True)
    rank = a_rank(replace(settings, reconstruction=how))
    edit = replace(RED, mask=mask and a_mask(tmp_path))
    (made,) = made_by(rank, replace(request_, edits=(edit,)))
    assert (made.error_code, made.trajectory_damage) == (None, None)
    assert made.mask == (mask and "masks/clip/red.mp4")
    assert rank.highest(replace(request_, edits=(edit,))) == (3 if mask else 0)
