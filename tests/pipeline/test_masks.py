"""Masks from files, arrays and names: what the `Editor` takes, and what it refuses."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import Editor, EditSpec, Inversion, Trajectory, VideoSettings
from pipeline.errors import ErrorCode, RowError
from pipeline.media.masks import grey
from pipeline.model.transformer import ForwardCounter
from pipeline.settings import Reconstruction, Variation
from tests.drawn_videos import draw, waves

HEIGHT, WIDTH, FRAMES = 32, 48, 9
VIDEO = VideoSettings(height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def editor(checkpoints: dict[str, Path]) -> Editor:
    editor = Editor.from_pretrained(str(checkpoints["5b"]), device="cpu")
    editor.set_progress_bar_config(disable=True)
    return editor


@pytest.fixture(scope="module")
def source() -> torch.Tensor:
    return torch.from_numpy(waves(FRAMES, HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def trajectory(editor: Editor, source: torch.Tensor) -> Trajectory:
    return editor.invert(source, Inversion(steps=3))


def left(frames: int = 12, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Frames that are white up to a column that moves with each frame, 2 pixels each."""
    pictures = []
    for number in range(frames):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : 2 * (number + 4)] = 255
        pictures.append(picture)
    return pictures


def png(picture: np.ndarray, pix_fmt: str = "rgb24") -> bytes:
    return draw([picture], container="image2pipe", codec="png", pix_fmt=pix_fmt)


def save(folder: Path, data: bytes, name: str = "mask") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def clip_of(editor: Editor, folder: Path, **changes: Any) -> Any:
    video = save(folder, draw(waves(20, HEIGHT, WIDTH)), "clip.mp4")
    return editor.read(video, VIDEO, num_frames=FRAMES, **changes)


def columns(mask: torch.Tensor) -> list[int]:
    """How many columns of each frame are white."""
    return mask.all(1).sum(1).tolist()


# Reading


def test_a_mask_video_is_read_at_the_frames_of_its_clip(editor: Editor, tmp_path: Path) -> None:
    mask = save(tmp_path, draw(left(20), options={"crf": "5"}))
    clip = clip_of(editor, tmp_path, start_frame=3)
    read = editor.read_mask(mask, clip, VIDEO, start_frame=3)
    assert read.dtype == torch.bool
    assert columns(read) == [2 * (number + 4) for number in range(3, 12)]
    slow = clip_of(editor, tmp_path, fps=4)
    assert columns(editor.read_mask(mask, slow, VIDEO, fps=4))[:3] == [8, 12, 16]


@pytest.mark.parametrize("pix_fmt", ["rgb24", "rgba", "gray"])
def test_an_image_counts_for_all_frames_wherever_the_clip_begins(
    editor: Editor, tmp_path: Path, pix_fmt: str
) -> None:
    clip = clip_of(editor, tmp_path, start_frame=5)
    mask = save(tmp_path, png(left(1, 2 * HEIGHT, 2 * WIDTH)[0], pix_fmt), "mask.png")
    read = editor.read_mask(mask, clip, VIDEO, start_frame=5)
    assert columns(read) == [4] * FRAMES


def test_a_mask_is_cropped_or_padded_as_its_clip(editor: Editor, tmp_path: Path) -> None:
    for fit, expected in (("crop", 16), ("pad", 8)):
        how = VideoSettings(height=HEIGHT, width=WIDTH, fit=fit)
        video = save(tmp_path, draw(waves(FRAMES, 64, 48)), "tall.mp4")
        clip = editor.read(video, how)
        picture = np.zeros((64, 48, 3), np.uint8)
        picture[:, :16] = 255
        read = editor.read_mask(save(tmp_path, png(picture)), clip, how)
        assert read[0, 16].sum() == expected


def test_a_mask_has_the_shape_that_its_video_is_shown_in(editor: Editor, tmp_path: Path) -> None:
    wide = draw(waves(FRAMES, HEIGHT, WIDTH), pixel_aspect=Fraction(2))
    clip = editor.read(save(tmp_path, wide, "wide.mp4"), VIDEO)
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, :34] = 255  # of which the crop leaves out the first 24
    read = editor.read_mask(save(tmp_path, png(picture)), clip, VIDEO)
    assert columns(read) == [10] * FRAMES
    with pytest.raises(RowError, match=r"is 48x32, shown 1.5 times as wide .* shown 3 times"):
        editor.read_mask(save(tmp_path, png(left(1)[0])), clip, VIDEO)


BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
WRONG: dict[str, tuple[Any, str]] = {
    "other proportions": (lambda: png(left(1, 32, 64)[0]), "expected the proportions of its video"),
    "too short": (lambda: draw(left(7)), "has 5 frames for the clip's 9; expected one for each"),
    "hardly any frames": (lambda: draw(left(2)), "has 2 frames.* at least 5"),
    "empty": (lambda: png(BLACK), "nothing white in the clip's 9 frames.*leave the mask out"),
    "full": (lambda: png(BLACK + 255), "is white in all of the clip's 9 frames.*paint black"),
    "no picture": (lambda: b"no picture at all", "not a video file"),
    "no bytes": (lambda: b"", "0 bytes; expected a mask"),
    "cut off": (lambda: draw(left(30))[:1500], "cut off"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_mask_is_refused_with_the_way_out(
    editor: Editor, tmp_path: Path, what: str
) -> None:
    make, message = WRONG[what]
    with pytest.raises(RowError, match=message) as caught:
        editor.read_mask(save(tmp_path, make()), clip_of(editor, tmp_path), VIDEO)
    assert caught.value.code == ErrorCode.BAD_MASK
    assert "mask" in caught.value.message


def test_a_mask_that_is_not_there_is_a_bad_mask(editor: Editor, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"the mask .*none\.mp4: there is no such file") as caught:
        editor.read_mask(tmp_path / "none.mp4", clip_of(editor, tmp_path), VIDEO)
    assert caught.value.code == ErrorCode.BAD_MASK


def test_a_mask_as_frames_is_grey(editor: Editor) -> None:
    frames = grey(torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert frames.tolist() == [[[[0, 0, 0], [128, 128, 128], [255, 255, 255]]]]


# Edits


def test_an_array_a_tensor_and_a_file_give_the_same_edit(
    editor: Editor, trajectory: Trajectory, source: torch.Tensor, tmp_path: Path
) -> None:
    picture = left(1)[0]
    mask = picture[..., 0] > 0
    options = {"output_type": "latent", "mask_grow": 0}
    forms = [
        mask,
        torch.from_numpy(mask),
        torch.from_numpy(mask).expand(FRAMES, -1, -1).float(),
        picture[..., 0],
        mask.astype(np.uint8),
        save(tmp_path, png(picture)),
        [tmp_path / "mask"],
    ]
    made = [editor.reconstruct(trajectory, "a", mask=one, **options)[0] for one in forms]
    own = editor.reconstruct(trajectory, EditSpec("a", mask=str(tmp_path / "mask")), **options)
    assert all(torch.equal(one, made[0]) for one in (*made, *own))
    clean = trajectory.latents[0]
    assert torch.equal(made[0][..., 1:], clean[..., 1:])
    assert (made[0][..., :1] != clean[..., :1]).any()


def test_each_prompt_may_have_a_mask_of_its_own_for_no_more_forwards(
    editor: Editor, trajectory: Trajectory
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :8] = True
    counts = []
    made = []
    for masks in ([None, mask, "auto"], None):
        editor.model.forwards = ForwardCounter()
        made.append(
            editor.reconstruct(trajectory, ["a", "b", "c"], mask=masks, output_type="latent")
        )
        counts.append(editor.model.forwards.total)
    assert counts[0] == counts[1]
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][1], made[1][1])
    by_settings = editor.reconstruct(trajectory, "c", mask_grow=0, output_type="latent")
    assert torch.equal(by_settings[0], made[1][2])


def test_a_composite_has_the_sources_pixels_outside_of_its_mask(
    editor: Editor, trajectory: Trajectory, source: torch.Tensor
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :8] = True
    made = editor.reconstruct(trajectory, "a", mask=mask, source=source, composite=True)[0]
    assert torch.equal(made[:, :, 10:], source[:, :, 10:])
    assert not torch.equal(made[:, :, :8], source[:, :, :8])


def test_what_is_no_mask_of_the_clip_is_refused(
    editor: Editor, trajectory: Trajectory, source: torch.Tensor
) -> None:
    def refused(**options: Any) -> Any:
        return editor.reconstruct(trajectory, ["a", "b"], **options)

    with pytest.raises(ValueError, match=r"the mask is \[4, 4\]; expected the clip's \[9, 32, 48"):
        refused(mask=np.ones((4, 4)))
    with pytest.raises(ValueError, match="there are 1 masks for 2 prompts"):
        refused(mask=["auto"])
    with pytest.raises(RowError, match="nothing white"):
        refused(mask=np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match="composite needs the source's frames; give source=clip"):
        refused(mask="auto", composite=True)
    with pytest.raises(ValueError, match="composite puts pixels together"):
        refused(mask="auto", composite=True, source=source, output_type="latent")
    for other in (source[:5], source[:, :16], source.float()):
        with pytest.raises(
            ValueError, match=r"expected those that were inverted, uint8 \[9, 32, 4"
        ):
            refused(mask="auto", composite=True, source=other)
    with pytest.raises(ValueError, match="mask is auto and start is noise"):
        refused(mask="auto", start="noise")


def test_edits_with_the_same_mask_have_it_once(editor: Editor, trajectory: Trajectory) -> None:
    mask = torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    mask[..., :8] = True
    settings = Reconstruction(candidates=(Variation(noise=0.5),))
    edits = [settings.filled(EditSpec(prompt), 0) for prompt in "ab"]
    used = editor.denoise(trajectory, edits, settings, masks=[mask, mask]).masks
    assert len(used) == 4 and all(one is used[0] for one in used)
