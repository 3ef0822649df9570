"""A rank's whole work on a small checkpoint of each family: invert, store, edit, write, certify."""

import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.ranks.channel import whole
from cluster.ranks.edit_video import edit_video
from cluster.ranks.editing import ALGORITHM, RankEditor, prompt_store
from cluster.ranks.invert_video import invert_video
from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip, read_clip
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.text_encoder import encode_prompt
from pipeline.quality.metrics import noise_statistics, signal_to_error_db
from pipeline.records import (
    EditResult,
    EditSpec,
    Forwards,
    InversionResult,
    Metrics,
    VideoSpec,
)
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    Speed,
    TrajectorySettings,
    VideoSettings,
)
from pipeline.trajectories.index import read_index
from pipeline.trajectories.reader import TrajectoryReader
from tests.drawn_videos import waves

RED, BLUE = EditSpec("a red fox", edit_id="red"), EditSpec("a blue fox", edit_id="blue")
PROMPTS = ("", RED.prompt, BLUE.prompt)


@pytest.fixture
def settings(checkpoint: Path, tmp_path: Path) -> EditingSettings:
    return EditingSettings(
        checkpoint=str(checkpoint),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=4),
        reconstruction=Reconstruction(start=0.5, guidance_scale=2.0),
    )


@pytest.fixture
def request_(tmp_path: Path) -> Iterator[VideoSpec]:
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(10, 40, 60)), fps=8)
    yield VideoSpec(str(tmp_path / "clip.mp4"), "clip")


def a_rank(settings: EditingSettings) -> RankEditor:
    info = open_checkpoint(settings.checkpoint)
    store = prompt_store(settings, info)
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    for prompt in PROMPTS:
        store.write(prompt, encode_prompt(tokenizer, encoder, prompt, info.text_tokens))
    return RankEditor.load(settings, torch.device("cpu"))


def test_a_kernel_that_does_not_work_here_stops_a_rank_before_its_first_video(
    settings: EditingSettings,
) -> None:
    settings = replace(settings, speed=Speed(attention="cudnn"))
    with pytest.raises(ValueError, match=r"speed.attention is cudnn.*on cpu.*make it auto"):
        RankEditor.load(settings, torch.device("cpu"))


def edited(
    rank: RankEditor, video: VideoSpec, inversion: InversionResult, edits: Sequence[EditSpec]
) -> list[EditResult]:
    video = replace(video, edits=tuple(edits))
    return whole(edit_video(rank, video, inversion), rank.overlap.begun())


def known(metrics: Metrics) -> dict[str, float]:
    """The metrics that are there, by name."""
    return {name: value for name, value in asdict(metrics).items() if value is not None}


def spoil(rank: RankEditor, prompt: str) -> None:
    """Make the stored embedding of a prompt not finite."""
    store = prompt_store(rank.settings, rank.editor.info)
    store.write(prompt, torch.full_like(store.embedding(prompt), torch.nan))


def test_a_video_is_inverted_stored_edited_and_certified(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(replace(settings, inversion=Inversion(steps=4, round_trip=True)))
    inverted = invert_video(rank, request_)
    assert (inverted.frames, inverted.height, inverted.width, inverted.fps) == (9, 32, 48, 8.0)
    # Edits start at half of the levels: two of them, one evaluation each and one to start, and
    # two more for the round trip.
    assert inverted.forwards == 3 + 2
    assert set(known(inverted.metrics)) == {
        "noise_level", "noise_mean", "noise_std", "noise_kurtosis", "vae_psnr_db", "round_trip_db",
    }  # fmt: skip
    assert inverted.metrics.noise_level == 0.5
    made = edited(rank, request_, inverted, [RED, BLUE])
    for edit in made:
        assert edit.error_code is None
        with (Path(settings.output) / str(edit.output)).open("rb") as file:
            clip = read_clip(file, name="edit", height=32, width=48, frames=9)
        assert len(clip.frames) == 9
        # The first of two steps is guided.
        assert edit.forwards == Forwards(plain=1.0, injected=3.0)
        for name in ("flicker", "motion_agreement", "clipped_fraction", "largest_residual"):
            assert math.isfinite(known(edit.metrics)[name])


def test_a_stored_trajectory_is_reused_and_a_higher_start_extends_it(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    first = invert_video(a_rank(settings), request_)
    again = invert_video(a_rank(settings), request_)
    assert (again.trajectory, again.forwards) == (first.trajectory, 0)
    higher = replace(settings, reconstruction=Reconstruction(start="inverted"))
    extended = invert_video(a_rank(higher), request_)
    assert extended.trajectory == first.trajectory
    # Two velocities at the stored top are asked again, then one for each of the two new levels.
    assert extended.forwards == 4
    assert edited(a_rank(higher), request_, extended, [RED])[0].error_code is None


def test_a_certificate_is_of_the_whole_way_also_after_an_extension(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    exact = TrajectorySettings(dtype="fp32")
    low = replace(settings, inversion=Inversion(steps=4, round_trip=True), trajectory=exact)
    high = replace(low, reconstruction=Reconstruction(start="inverted"))
    for asked, level in ((low, 2), (high, 4)):
        rank = a_rank(asked)
        inverted = invert_video(rank, request_)
        assert inverted.metrics.noise_level == level / 4
        assert inverted.metrics.round_trip_db == pytest.approx(
            denoised_db(rank, inverted.trajectory, level), abs=1e-3
        )


def test_a_round_trip_is_measured_again_after_an_extension_that_did_not_ask_for_it(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    low = replace(settings, inversion=Inversion(steps=4, round_trip=True))
    high = replace(low, reconstruction=Reconstruction(start="inverted"))
    invert_video(a_rank(low), request_)
    extended = invert_video(a_rank(replace(high, inversion=Inversion(steps=4))), request_)
    assert extended.metrics.round_trip_db is None
    rank = a_rank(high)
    measured = invert_video(rank, request_)
    assert measured.forwards == 4
    assert measured.metrics.round_trip_db == pytest.approx(
        denoised_db(rank, measured.trajectory, 4), abs=1e-3
    )


def test_a_trajectory_that_its_dtype_cannot_hold_is_refused_with_the_way_out(
    settings: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = a_rank(settings)
    encode = rank.editor.codec.encode
    monkeypatch.setattr(
        rank.editor.codec, "encode", lambda *how: torch.full_like(encode(*how), 7e4)
    )
    with pytest.raises(RowError, match="fp16 holds; run the job with trajectory.dtype: bf16") as no:
        invert_video(rank, request_)
    assert no.value.code == ErrorCode.NOT_FINITE


def denoised_db(rank: RankEditor, key: str, level: int) -> float:
    """The round trip's dB, from what is stored."""
    folder = rank.trajectory_folder(key)
    index = read_index(folder, key)
    assert index is not None
    with TrajectoryReader(folder, index) as reader:
        x, clean = reader.entry(level), reader.entry(0)
    for at in range(level, 0, -1):
        timestep = rank.schedule.levels[at].timestep
        x = rank.schedule.descend(
            x, rank.editor.model.velocity(rank.editor.prompt(""))(x, timestep), at
        )
    return signal_to_error_db(clean, x)


def test_a_metric_that_is_asked_for_later_is_computed_from_what_is_stored(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path
) -> None:
    asked = replace(settings, inversion=Inversion(steps=4, round_trip=True))
    bare = replace(settings, inversion=Inversion(steps=4, vae_psnr=False))
    assert invert_video(a_rank(bare), request_).metrics.vae_psnr_db is None
    later = invert_video(a_rank(asked), request_)
    assert later.forwards == 2, "more than the round trip was computed"
    fresh = invert_video(a_rank(replace(asked, output=str(tmp_path / "new"))), request_)
    assert known(later.metrics) == pytest.approx(known(fresh.metrics), rel=1e-2, abs=1e-3)
    assert invert_video(a_rank(asked), request_).forwards == 0


def test_the_key_of_a_trajectory_is_the_one_of_older_versions(tmp_path: Path) -> None:
    """Another key for the same trajectory would invert every video of every job once more."""
    rank = a_rank(
        EditingSettings(
            checkpoint="embedded", output=str(tmp_path / "out"), inversion=Inversion(steps=4)
        )
    )
    rank.editor.info = replace(rank.editor.info, fingerprint="f" * 16)
    clip = Clip(torch.zeros(9, 32, 48, 3, dtype=torch.uint8), 8.0, 8.0, 9, 32, 48, "c" * 64)
    assert (
        rank.trajectory_key(VideoSpec("clip.mp4", "clip"), clip)
        == "ca4068731a06fe60507ec5adf6aba512"
    )
    asked = VideoSpec("clip.mp4", "clip", start_frame=1, fps=4.0, seed=3)
    assert rank.trajectory_key(asked, clip) == "3b1a91e7a456b45d5fabe81bd0f58610"
    sampled = replace(rank.settings, inversion=Inversion(steps=4, posterior="sample"))
    rank.settings = sampled
    assert rank.trajectory_key(asked, clip) == "41aec3b97d0ba63a2e00f4e899f78a26"


def test_frames_that_older_versions_read_otherwise_have_a_key_of_their_own(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    clip = rank.read(request_)
    assert not clip.variant
    other = rank.trajectory_key(request_, replace(clip, variant="stream 1"))
    assert other != rank.trajectory_key(request_, clip)


def test_what_determines_a_trajectory_changes_its_key_and_nothing_else_does(
    settings: EditingSettings, request_: VideoSpec, tmp_path: Path
) -> None:
    def key(request: VideoSpec = request_, **changes: Any) -> str:
        rank = a_rank(replace(settings, **changes))
        return rank.trajectory_key(request, rank.read(request))

    copied = tmp_path / "copy.mp4"
    copied.write_bytes((tmp_path / "clip.mp4").read_bytes())
    same = {
        key(),
        key(reconstruction=Reconstruction(guidance_scale=9.0)),
        key(seed=7),
        key(replace(request_, video_id="other", video=str(copied))),
        key(replace(request_, start_frame=0, num_frames=9)),
    }
    assert len(same) == 1
    # Deleted with its video's edits, a trajectory is that video's alone.
    alone = TrajectorySettings(keep="never")
    assert key(trajectory=TrajectorySettings(keep="until_done")) in same
    assert key(trajectory=alone) not in same
    assert key(replace(request_, video_id="other"), trajectory=alone) != key(trajectory=alone)
    different = [
        key(inversion=Inversion(steps=5)),
        key(inversion=Inversion(steps=4, method="ddim")),
        key(video=VideoSettings(height=48, width=48, frames=9)),
        key(video=VideoSettings(height=32, width=48, frames=9, fit="pad")),
        # The source's own rate: the frames are the same here, and need not be elsewhere.
        key(video=VideoSettings(height=32, width=48, frames=9, fps=8.0)),
        key(trajectory=TrajectorySettings(dtype="fp32")),
        key(replace(request_, start_frame=1)),
        key(replace(request_, num_frames=5)),
        key(replace(request_, num_frames=5, start_frame=1)),
        key(replace(request_, num_frames=5, start_frame=2)),
        key(inversion=Inversion(steps=4, posterior="sample")),
        key(inversion=Inversion(steps=4, posterior="sample"), seed=1),
    ]
    assert len({*same, *different}) == 1 + len(different)


OF_A_TRAJECTORY: dict[str, dict[str, Any]] = {
    "steps": {"inversion": Inversion(steps=5)},
    "method": {"inversion": Inversion(steps=4, method="ddim")},
    "iterations": {"inversion": Inversion(steps=4, method="fixed_point", iterations=2)},
    "posterior": {"inversion": Inversion(steps=4, posterior="sample")},
    "height": {"video": VideoSettings(height=48, width=48, frames=9)},
    "width": {"video": VideoSettings(height=32, width=32, frames=9)},
    "height and width": {"video": VideoSettings(height=48, width=32, frames=9)},
    "frames": {"video": VideoSettings(height=32, width=48, frames=5)},
    "fps": {"video": VideoSettings(height=32, width=48, frames=9, fps=8.0)},
    "fit": {"video": VideoSettings(height=32, width=48, frames=9, fit="pad")},
    "dtype": {"trajectory": TrajectorySettings(dtype="fp32")},
    "precision": {"precision": "bf16"},
    "start_frame": {"of_row": {"start_frame": 1}},
    "num_frames": {"of_row": {"num_frames": 5}},
    "fps of the row": {"of_row": {"fps": 8.0}},
    "content": {"pixel": 9},
    "weights": {"weight": 2.0},
    "algorithm": {"algorithm": 99},
}


@pytest.mark.parametrize("what", OF_A_TRAJECTORY)
def test_a_trajectorys_key_changes_with(
    what: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_point = Inversion(steps=4, method="fixed_point")
    settings = EditingSettings(
        checkpoint=shutil.copytree(checkpoints["2b"], tmp_path / "checkpoint"),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=fixed_point if what == "iterations" else Inversion(steps=4),
    )
    frames = torch.from_numpy(waves(10, 40, 60))
    request = VideoSpec(str(tmp_path / "clip.mp4"), "clip")

    def key() -> str:
        with open(request.video, "wb") as file:
            write_clip(file, frames, fps=8)
        rank = RankEditor.load(settings, torch.device("cpu"))
        return rank.trajectory_key(request, rank.read(request))

    before = key()
    assert before == key()
    assert re.fullmatch("[0-9a-f]{32}", before)
    changes = dict(OF_A_TRAJECTORY[what])
    request = replace(request, **changes.pop("of_row", {}))
    frames[0] = frames[0] * changes.pop("pixel", 1)
    monkeypatch.setattr("cluster.ranks.editing.ALGORITHM", changes.pop("algorithm", ALGORITHM))
    if scale := changes.pop("weight", None):
        file = tmp_path / "checkpoint/transformer/diffusion_pytorch_model.safetensors"
        save_file({n: scale * w for n, w in load_file(file).items()}, file, {"format": "pt"})
    settings = replace(settings, **changes)
    assert key() != before


@pytest.mark.parametrize("when", ["before the inversion", "before the edits"])
def test_a_damaged_trajectory_is_inverted_anew_and_reported(
    settings: EditingSettings, request_: VideoSpec, when: str
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    expected = edited(rank, request_, inverted, [RED])[0]
    output = Path(settings.output) / str(expected.output)
    made = output.read_bytes()
    output.unlink()
    folder = Path(settings.output) / "trajectories" / inverted.trajectory
    shard = next(folder.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    if when == "before the inversion":
        shard.write_bytes(data[:-1])
        again = invert_video(rank, request_)
        assert again.forwards == inverted.forwards
        assert "bytes; its index says" in str(again.trajectory_damage)
    else:
        shard.write_bytes(data)
        before = rank.editor.model.forwards.total
        repaired = edited(rank, request_, inverted, [RED])[0]
        assert (repaired.error_code, expected.trajectory_damage) == (None, None)
        assert f"{shard.name}, level 2: chunk 47 is altered" in str(repaired.trajectory_damage)
        assert rank.editor.model.forwards.total - before > inverted.forwards
        assert repaired.timings.encode > 0
        assert repaired.timings.invert > expected.timings.invert, "the inversion's seconds are lost"
        assert output.read_bytes() == made


def a_cut_shard(settings: EditingSettings, key: str) -> None:
    """Damage a stored trajectory."""
    for shard in (Path(settings.output) / "trajectories" / key).glob("shard-*"):
        shard.write_bytes(shard.read_bytes()[:-1])


def test_a_trajectory_that_another_group_makes_again_too_is_read_once_more(
    settings: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    index = Path(settings.output) / "trajectories" / inverted.trajectory / "index.json"
    asked = []

    def beside_another(rank: RankEditor, request: VideoSpec, **how: Any) -> InversionResult:
        assert index.exists(), "it may be the other group's new one"
        asked.append(how["damaged"])
        again = invert_video(rank, request, **how)
        if len(asked) == 1:
            a_cut_shard(settings, inverted.trajectory)
        return again

    monkeypatch.setattr("cluster.ranks.edit_video.invert_video", beside_another)
    a_cut_shard(settings, inverted.trajectory)
    made = edited(rank, request_, inverted, [RED])[0]
    assert (made.error_code, made.trajectory_damage) == (None, asked[1])
    assert len(asked) == 2


def test_a_trajectory_that_is_damaged_whenever_it_is_made_is_a_failed_row_of_storage(
    settings: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)

    def in_vain(*_: object, **how: Any) -> InversionResult:
        return replace(inverted, trajectory_damage=how["damaged"])

    monkeypatch.setattr("cluster.ranks.edit_video.invert_video", in_vain)
    a_cut_shard(settings, inverted.trajectory)
    with pytest.raises(RowError, match="again 2 times and is damaged still: .* bytes") as caught:
        edited(rank, request_, inverted, [RED])
    assert caught.value.code == ErrorCode.STORAGE


def test_an_edit_that_is_not_finite_fails_alone(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    spoil(rank, RED.prompt)
    red, blue = edited(rank, request_, inverted, [RED, BLUE])
    assert (red.error_code, red.output) == (ErrorCode.NOT_FINITE, None)
    assert "edit 'red'" in str(red.error)
    assert blue.error_code is None
    assert not (Path(settings.output) / "edits/clip/red.mp4").exists()


def test_an_inversion_that_is_not_finite_is_a_failed_row_and_stores_nothing(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    spoil(rank, "")
    with pytest.raises(RowError, match="not finite") as caught:
        invert_video(rank, request_)
    assert caught.value.code == ErrorCode.NOT_FINITE
    assert not (Path(settings.output) / "trajectories").exists()


def test_a_prompt_that_was_never_encoded_is_named(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    with pytest.raises(RowError, match="'a green fox' is not in"):
        edited(rank, request_, inverted, [EditSpec("a green fox", edit_id="green")])


def test_edits_from_noise_depend_on_their_seed_and_not_on_what_is_beside_them(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    noise = replace(settings, reconstruction=Reconstruction(start="noise", guidance_scale=2.0))

    def edit(rank: RankEditor, *edits: EditSpec) -> dict[str, bytes]:
        inverted = invert_video(rank, request_)
        made = edited(rank, request_, inverted, edits)
        return {str(e.edit_id): (Path(noise.output) / str(e.output)).read_bytes() for e in made}

    rank = a_rank(noise)
    both = edit(rank, RED, BLUE)
    assert edit(rank, BLUE)["blue"] == both["blue"]
    assert edit(rank, replace(RED, seed=5))["red"] != both["red"]
    assert edit(a_rank(replace(noise, seed=1)), RED)["red"] != both["red"]


@pytest.fixture
def small(checkpoints: dict[str, Path], tmp_path: Path) -> EditingSettings:
    """The settings of the others, with one family."""
    return EditingSettings(
        checkpoint=str(checkpoints["2b"]),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=4),
        reconstruction=Reconstruction(start="noise", guidance_scale=2.0, negative_prompt="blur"),
    )


def test_an_edit_has_a_seed_of_its_own_wherever_and_beside_whatever_it_is_made(
    small: EditingSettings, request_: VideoSpec
) -> None:
    def seeds(request: VideoSpec, settings: EditingSettings = small) -> list[int]:
        rank = RankEditor.load(settings, torch.device("cpu"))
        return [rank.seed(request, use) for use in ("red", "blue", "posterior")]

    made = [
        *seeds(request_),
        *seeds(replace(request_, video_id="other")),
        *seeds(replace(request_, seed=5)),
        *seeds(request_, replace(small, seed=1)),
    ]
    assert len(set(made)) == len(made)
    assert all(0 <= seed < 2**63 for seed in made)
    assert seeds(request_) == made[:3]
    assert seeds(replace(request_, seed=0), replace(small, seed=1)) == made[:3]
    assert seeds(replace(request_, seed=5), replace(small, seed=1)) == seeds(
        replace(request_, seed=5)
    )
    assert seeds(replace(request_, video="elsewhere.mp4")) == made[:3]


def test_what_an_edit_leaves_out_is_the_jobs_own(
    small: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.ranks.test_editing.PROMPTS", (*PROMPTS, "blur", "noise"))
    rank = a_rank(small)
    inverted = invert_video(rank, request_)
    own = rank.seed(request_, "red")
    full = replace(RED, negative_prompt="blur", guidance_scale=2.0, seed=own)

    def made(edit: EditSpec) -> tuple[Any, ...]:
        (one,) = edited(rank, request_, inverted, [edit])
        data = (Path(small.output) / str(one.output)).read_bytes()
        return data, one.guidance_scale, one.seed

    assert made(RED) == made(full)
    assert made(RED)[1:] == (2.0, own)
    assert made(replace(full, guidance_scale=0.0))[1:] == (0.0, own)
    assert made(replace(full, seed=0))[1:] == (2.0, 0)
    changed = [
        replace(full, negative_prompt="noise"),
        replace(full, guidance_scale=0.0),
        replace(full, seed=0),
    ]
    assert len({made(edit)[0] for edit in (full, *changed)}) == 4


def test_an_index_and_a_certificate_tell_of_the_trajectory_that_is_stored(
    small: EditingSettings, request_: VideoSpec
) -> None:
    exact = replace(
        small,
        reconstruction=Reconstruction(start=0.5),
        trajectory=TrajectorySettings(dtype="fp32"),
    )
    rank = a_rank(exact)
    inverted = invert_video(rank, request_)
    folder = rank.trajectory_folder(inverted.trajectory)
    index = read_index(folder, inverted.trajectory)
    assert index is not None
    assert index.highest == 2
    assert index.timesteps == tuple(level.timestep for level in rank.schedule.levels)
    assert index.alphas == tuple(level.alpha for level in rank.schedule.levels)
    assert dict(index.about) == known(inverted.metrics)
    assert (index.frames, index.fps, index.method) == (9, 8.0, "pec")
    with TrajectoryReader(folder, index) as reader:
        noise = noise_statistics(reader.entry(2))
    named = [known(inverted.metrics)[f"noise_{name}"] for name in ("mean", "std", "kurtosis")]
    assert named == pytest.approx([noise.mean, noise.std, noise.kurtosis], rel=1e-4, abs=1e-5)
    red, blue = (edited(rank, request_, inverted, [edit])[0] for edit in (RED, BLUE))
    assert red.metrics.flicker_source == blue.metrics.flicker_source
    assert red.metrics.flicker != blue.metrics.flicker


def test_the_public_api_edits_one_video(checkpoint: Path, tmp_path: Path) -> None:
    from pipeline import Editor

    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(9, 40, 60)), fps=8)
    editor = Editor.from_pretrained(str(checkpoint), device="cpu")
    clip = editor.read(tmp_path / "clip.mp4", VideoSettings(height=32, width=48, frames=9))
    trajectory = editor.invert(clip.frames, Inversion(steps=3), highest=0.6)
    assert trajectory.latents.shape[0] == 3
    settings = Reconstruction(start=0.6, guidance_scale=2.0)
    videos = editor.reconstruct(trajectory, ["a red fox", EditSpec("a blue fox")], settings)
    assert [(v.shape, v.dtype) for v in videos] == [((9, 32, 48, 3), torch.uint8)] * 2
    assert not _equal(videos)
    editor.write(tmp_path / "red.mp4", videos[0], fps=clip.fps)
    assert (tmp_path / "red.mp4").stat().st_size > 0
    with pytest.raises(ValueError, match="needs level 3 of .*; the trajectory reaches level 2"):
        editor.reconstruct(trajectory, ["a red fox"], Reconstruction(start="inverted"))


def _equal(videos: list[Tensor]) -> bool:
    return torch.equal(videos[0], videos[1])


def test_a_rank_reports_each_step_and_each_file(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(replace(settings, inversion=Inversion(steps=4, vae_psnr=True)))
    did: list[str] = []
    pulses: list[None] = []
    rank.report_to(did.append, lambda: pulses.append(None))
    inverted = invert_video(rank, request_)
    whole(None, rank.overlap.begun())
    assert did[:4] == [
        f"the reading of {request_.video}",
        "the encoding of a clip",
        "inversion step 1 of 2",
        "inversion step 2 of 2",
    ]
    assert {
        "the storing of a trajectory",
        "the decoding of a clip",
        "the writing of sources/clip.mp4",
    } <= set(did[4:])
    did.clear()
    edited(rank, request_, inverted, [RED])
    assert did[1:] == [
        "denoising step 1 of 2",
        "denoising step 2 of 2",
        "the decoding of a clip",
        "the writing of edits/clip/red.mp4",
    ]
    assert len(pulses) > 20


def test_a_rank_says_that_it_reads_while_it_reads(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    """A long video behind a slow line is no stall."""
    rank, heard = a_rank(settings), list[str]()
    rank.report_to(heard.append, lambda: heard.append("goes on"))
    rank.read(request_)
    assert heard[-1] == f"the reading of {request_.video}"
    assert heard[:-1] == ["goes on"] * (len(heard) - 1)
    assert len(heard) > 2


def test_no_error_is_held_while_a_damaged_trajectory_is_made_again(
    settings: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback would hold the latents of the edits beside the inversion's."""
    rank, held = a_rank(settings), list[Any]()
    inverted = invert_video(rank, request_)
    (shard,) = Path(rank.trajectory_folder(inverted.trajectory).uri).glob("*.safetensors")
    shard.unlink()

    def watched(*how: Any, **named: Any) -> InversionResult:
        held.append(sys.exc_info()[1])
        return invert_video(*how, **named)

    monkeypatch.setattr("cluster.ranks.edit_video.invert_video", watched)
    (made,) = edited(rank, request_, inverted, [RED])
    assert made.error_code is None
    assert held == [None]


def test_an_edit_that_cannot_be_written_fails_alone(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    (Path(settings.output) / "edits/clip/blue.mp4/in the way").mkdir(parents=True)
    red, blue = edited(rank, request_, inverted, [RED, BLUE])
    assert (red.error_code, blue.error_code, blue.output) == (None, "storage", None)
    assert "blue.mp4" in str(blue.error)
    assert blue.timings.decode > 0
    assert (Path(settings.output) / str(red.output)).exists()


def test_metrics_that_cannot_be_had_are_null_and_the_edit_stays(
    settings: EditingSettings, request_: VideoSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no luma")

    monkeypatch.setattr("cluster.ranks.edit_video.edit_metrics", fail)
    (red,) = edited(rank, request_, inverted, [RED])
    assert (red.error_code, red.metrics.flicker) == (None, None)
    assert red.metrics.unmeasured == "the metrics of the edit: ZeroDivisionError: no luma"
    assert red.metrics.noise_level == 0.5
    assert (Path(settings.output) / str(red.output)).exists()


def test_an_edit_for_whose_decoding_memory_is_too_small_fails_alone(
    settings: EditingSettings, request_: VideoSpec
) -> None:
    rank = a_rank(settings)
    inverted = invert_video(rank, request_)
    decode, calls = rank.editor.decode, []

    def full_once(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 1:
            raise RowError(ErrorCode.OUT_OF_MEMORY, "no room for the smallest tiles")
        return decode(*arguments)

    rank.editor.decode = full_once  # type: ignore[method-assign]
    red, blue = edited(rank, request_, inverted, [RED, BLUE])
    assert (red.error_code, red.error) == ("out_of_memory", "no room for the smallest tiles")
    assert blue.error_code is None
