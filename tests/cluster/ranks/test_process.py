"""Two ranks with a small model, as an actor starts them."""

import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cluster.candidates.made import gathered
from cluster.ranks.channel import Channel
from cluster.ranks.editing import prompt_store
from cluster.ranks.messages import EditVideo, InvertVideo, Start, joined
from cluster.ranks.owner import RankGroup, rank_command
from cluster.ranks.process import _reported_by
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.text_encoder import encode_prompt
from pipeline.records import EditResult, EditSpec, InversionResult, VideoSpec, from_dict
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    Variation,
    VideoSettings,
)
from tests.drawn_videos import waves

pytestmark = pytest.mark.distributed
DEADLINE_S = 240


@pytest.fixture
def settings(checkpoints: dict[str, Path], tmp_path: Path) -> EditingSettings:
    settings = EditingSettings(
        checkpoint=str(checkpoints["2b"]),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=2, vae_psnr=False),
        reconstruction=Reconstruction(start="inverted", guidance_scale=2.0),
    )
    info = open_checkpoint(settings.checkpoint)
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    for prompt in ("", "a red fox"):
        embedding = encode_prompt(tokenizer, encoder, prompt, info.text_tokens)
        prompt_store(settings, info).write(prompt, embedding)
    return settings


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the group's owner and of its ranks."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def group(settings: EditingSettings, temporary: Path) -> Iterator[RankGroup]:
    start = Start("edits", asdict(settings), "cpu", ulysses=2)
    group = RankGroup(
        rank_command(), 2, start, start_deadline_s=DEADLINE_S, stall_deadline_s=DEADLINE_S
    )
    yield group
    group.close()


@pytest.fixture
def video(tmp_path: Path) -> VideoSpec:
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(9, 40, 60)), fps=8)
    return VideoSpec(str(tmp_path / "clip.mp4"), "clip")


def test_a_group_leaves_no_temporary_file_and_reports_which_ranks_slice_was_damaged(
    group: RankGroup, settings: EditingSettings, temporary: Path, video: VideoSpec
) -> None:
    group.start()
    assert not list(temporary.iterdir()), "a group that is killed now leaves it for ever"
    result = group.request(InvertVideo(video))[0].result
    inversion = from_dict(InversionResult, result)
    folder = Path(settings.output) / "trajectories" / inversion.trajectory
    (shard,) = folder.glob("shard-00001-of-00002-*")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    video = replace(video, edits=(EditSpec("a red fox", edit_id="red"),))
    answers = group.request(EditVideo(video, inversion))
    made = from_dict(EditResult, joined(answers).result[0])
    assert made.error_code is None
    assert f"{shard.name}, level 2: chunk 47 is altered" in str(made.trajectory_damage)
    assert group.starts == 1
    assert not list(temporary.iterdir())


@pytest.mark.soak
def test_two_ranks_share_candidates_with_masks_and_refuse_the_same_edit(
    settings: EditingSettings, temporary: Path, video: VideoSpec, tmp_path: Path
) -> None:
    how = replace(settings.reconstruction, start=0.5, candidates=(Variation(noise=0.5),))
    settings = replace(settings, reconstruction=how)
    mask = torch.zeros(9, 40, 60, 3, dtype=torch.uint8)
    mask[:, :, :20] = 255
    with (tmp_path / "mask.mp4").open("wb") as file:
        write_clip(file, mask, fps=8)
    asked = {"own": str(tmp_path / "mask.mp4"), "gone": str(tmp_path / "gone"), "found": "auto"}
    edits = [EditSpec("a red fox", edit_id=name, mask=mask) for name, mask in asked.items()]
    start = Start("edits", asdict(settings), "cpu", ulysses=2)
    group = RankGroup(
        rank_command(), 2, start, start_deadline_s=DEADLINE_S, stall_deadline_s=DEADLINE_S
    )
    try:
        group.start()
        inversion = from_dict(InversionResult, group.request(InvertVideo(video))[0].result)
        answers = group.request(EditVideo(replace(video, edits=tuple(edits)), inversion))
    finally:
        group.close()
    rows = gathered([from_dict(EditResult, one) for one in joined(answers).result], how)
    own, gone, found = rows
    assert [row.edit_id for row in rows] == list(asked)
    assert (gone.error_code, gone.output) == ("bad_mask", None)
    for row in (own, found):
        masks = [f"candidates/clip/{row.edit_id}/{number}.mask.mp4" for number in range(2)]
        assert [one.mask for one in row.candidates] == masks
    for one in (*own.candidates, *found.candidates):
        assert one.error_code is None
        for name in filter(None, (one.output, one.mask)):
            assert (Path(settings.output) / name).stat().st_size


def test_a_wait_for_storage_is_reported_each_time_and_logged_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        report = _reported_by(Channel(ours))
        for text in ("the wait for a", "the wait for a", "the wait for b"):
            report(text)
        assert theirs.recv(1 << 16).count(b"the wait for") == 3
    assert capsys.readouterr().err == "the wait for a\nthe wait for b\n"
