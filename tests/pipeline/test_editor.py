"""The Python API: what it refuses, and that nothing broken comes out of it as a video.

A whole edit through it stands in `test_process.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import Editor, Inversion, Reconstruction, Trajectory, load
from pipeline.errors import ErrorCode, RowError

STEPS = 2
CLIP = torch.zeros(9, 32, 48, 3, dtype=torch.uint8)


@pytest.fixture(scope="module")
def editor(checkpoints: dict[str, Path]) -> Editor:
    return load(str(checkpoints["5b"]), device="cpu")


@pytest.fixture(scope="module")
def trajectory(editor: Editor) -> Trajectory:
    return editor.invert(CLIP, Inversion(steps=STEPS))


def test_a_precision_that_is_not_known_is_refused_with_those_that_are(
    checkpoints: dict[str, Path],
) -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'; known are auto, fp32, fp16, bf16"):
        load(str(checkpoints["5b"]), precision="fp8")  # type: ignore[arg-type]


# Frames


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (CLIP.float() / 255, r"frames are float32 \[9, 32, 48, 3\]; expected uint8 \[F, H, W, 3\]"),
        (CLIP[0], r"frames are uint8 \[32, 48, 3\]; expected"),
        (CLIP[..., :1], r"frames are uint8 \[9, 32, 48, 1\]; expected"),
        (CLIP.permute(0, 3, 1, 2), r"frames are uint8 \[9, 3, 32, 48\]; expected"),
        (CLIP[[*range(9), 0]], r"is 10; the model takes 4k \+ 1, at least 5: cut it to frames\[:9"),
        (CLIP[:1], r"is 1; the model takes 4k \+ 1, at least 5: take a longer one"),
        (CLIP[:, :24], "height is 24; this checkpoint needs a multiple of 16"),
        (CLIP[:, :, :40], "width is 40; this checkpoint needs a multiple of 16"),
    ],
)
def test_a_clip_that_the_checkpoint_does_not_take_is_refused(
    editor: Editor, frames: Tensor, said: str
) -> None:
    before = editor.model.forwards.total
    with pytest.raises(ValueError, match=said):
        editor.invert(frames, Inversion(steps=STEPS))
    assert editor.model.forwards.total == before


# Blocks


def test_blocks_above_the_last_are_refused_before_they_cost_anything(
    editor: Editor, trajectory: Trajectory
) -> None:
    before = editor.model.forwards.total
    for window in ((0, 3), (2, 3), (40, 42)):
        with pytest.raises(ValueError, match=rf"\[{window[0]}, {window[1]}\]; .* has 2 layers"):
            editor.reconstruct(trajectory, ["a fox"], Reconstruction(inject_blocks=window))
    assert editor.model.forwards.total == before
    assert editor.reconstruct(trajectory, ["a fox"], Reconstruction(inject_blocks=(0, 2)))


# Values that are not finite


def test_an_inversion_that_is_not_finite_is_an_error(
    editor: Editor, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = with_one(trajectory.latents[0], torch.inf)
    monkeypatch.setattr(editor.codec, "encode", lambda *_: broken)
    with pytest.raises(RowError, match="the inversion gave values that are not finite") as found:
        editor.invert(CLIP, Inversion(steps=STEPS))
    assert found.value.code == ErrorCode.NOT_FINITE


@pytest.mark.parametrize("where", ["latents", "frames"])
def test_an_edit_that_is_not_finite_is_an_error_and_no_black_video(
    editor: Editor, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    latents, frames = trajectory.latents, CLIP / 255
    if where == "latents":
        latents = torch.stack([with_one(entry, torch.nan) for entry in latents])
    else:
        frames = with_one(frames, torch.nan)
    monkeypatch.setattr(editor.codec, "decode", lambda *_: frames)
    with pytest.raises(RowError, match="edit 'a fox': values that are not finite") as found:
        editor.reconstruct(Trajectory(latents, trajectory.schedule, len(CLIP)), ["a fox"])
    assert found.value.code == ErrorCode.NOT_FINITE


def with_one(x: Tensor, value: float) -> Tensor:
    """A copy with one value replaced."""
    x = x.clone()
    x.view(-1)[-1] = value
    return x
