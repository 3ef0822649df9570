"""What frames alone say: known values of other implementations, and what each number must tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.algorithm.masks import otsu
from pipeline.quality import frames, metrics
from pipeline.quality.frames import measure, ssim_map


def waves() -> tuple[Tensor, Tensor]:
    """Two grey clips, uint8 [3, 40, 56], that any library draws alike."""
    f, y, x = torch.meshgrid(*map(torch.arange, (3, 40, 56)), indexing="ij")
    one = 127 + 100 * torch.sin(x / 3 + f) * torch.cos(y / 5)
    wrinkles = 10 * torch.sin((x * y).double())
    other = 127 + 90 * torch.sin(x / 3 + f + 0.3) * torch.cos(y / 5) + wrinkles
    return one.round().byte(), other.round().byte()


def in_grey(clip: Tensor) -> Tensor:
    return clip[..., None].expand(*clip.shape, 3)


def scene(frames: int = 9, colour: tuple[int, int, int] = (200, 40, 40), shift: int = 0) -> Tensor:
    """A square that moves over a pattern, uint8 [F, 48, 48, 3]; `shift` moves the pattern."""
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    pattern = (120 + 60 * torch.sin((x + shift) / 2.5) * torch.cos(y / 4)).round().byte()
    clip = in_grey(pattern).repeat(frames, 1, 1, 1)
    for at in range(frames):
        clip[at, 16:32, 6 + 2 * at : 22 + 2 * at] = torch.tensor(colour, dtype=torch.uint8)
    return clip


def mask_of(frames: int = 9) -> Tensor:
    mask = torch.zeros(frames, 48, 48)
    for at in range(frames):
        mask[at, 14:34, 4 + 2 * at : 24 + 2 * at] = 1
    return mask


def noisy(clip: Tensor, size: float) -> Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)) * size
    return (clip + noise).round().clamp(0, 255).byte()


def test_ssim_is_that_of_scikit_image() -> None:
    """`structural_similarity(one, other, data_range=1, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)` of scikit-image 0.26.0."""
    one, other = (clip / 255 for clip in waves())
    by_frame = ssim_map(one, other).mean((1, 2)).tolist()
    assert by_frame == pytest.approx([0.8954208, 0.8944274, 0.8936040], abs=1e-5)


def test_outside_of_a_mask_only_pixels_and_windows_that_lie_there_count() -> None:
    """The PSNR and the mean of the map of scikit-image 0.26.0 over the columns from 24 on."""
    one, other = map(in_grey, waves())
    mask = torch.zeros(3, 40, 56)
    mask[:, :, :24] = 1
    found = measure(one, other, mask)
    assert found["background_psnr_db"] == pytest.approx(23.8536398, abs=1e-4)
    assert found["background_ssim"] == pytest.approx(0.8958499, abs=1e-5)
    spoilt = other.clone()
    spoilt[:, :, :24] = 0
    again = measure(one, spoilt, mask)
    assert again["background_ssim"] == pytest.approx(found["background_ssim"], abs=1e-9)
    assert again["background_psnr_db"] == found["background_psnr_db"]
    assert again["change"] == pytest.approx(one[:, :, :24].float().mean().item() / 255, abs=1e-6)


def test_otsu_is_that_of_scikit_image() -> None:
    """`threshold_otsu` of scikit-image 0.26.0."""
    one, other = waves()
    apart = (one.short() - other.short()).abs().long()
    levels = torch.arange(256, dtype=torch.float64)
    assert otsu(levels, torch.bincount(apart.flatten(), minlength=256)) == 15
    assert otsu(apart.double()) == 15
    assert otsu(levels, torch.eye(256)[7]) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 9, 17])
def test_motion_and_flicker_are_those_of_the_certificate_however_long_the_clip(length: int) -> None:
    source, edit = scene(length), noisy(scene(length, (40, 200, 40)), 12)
    found = measure(source, edit, None)
    one, other = source / 255, edit / 255
    assert found["motion_agreement"] == pytest.approx(
        metrics.motion_agreement(other, one), abs=1e-5
    )
    apart = metrics.flicker(other) - metrics.flicker(one)
    assert found["flicker"] == pytest.approx(apart, abs=1e-6)


def test_the_number_of_frames_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, edit = scene(), noisy(scene(colour=(40, 200, 40)), 12)
    whole = [measure(source, edit, mask) for mask in (None, mask_of())]
    for at_once in (1, 2, 3):
        monkeypatch.setattr("pipeline.quality.frames.FRAMES_AT_ONCE", at_once)
        for mask, before in zip((None, mask_of()), whole, strict=True):
            assert measure(source, edit, mask) == pytest.approx(before, abs=1e-7)


def test_another_colour_changes_inside_and_leaves_the_background() -> None:
    source, edit = scene(), scene(colour=(40, 200, 40))
    for mask in (None, mask_of()):
        found = measure(source, edit, mask)
        assert found["background_psnr_db"] >= 60
        assert found["background_ssim"] > 0.999
        assert 16**2 <= found["changed_fraction"] * 48**2 <= 20**2  # smoothed over 2 pixels
        assert "error" not in found
    inside = measure(source, edit, (mask_of() > 0).float())["change"]
    assert inside == pytest.approx(
        2 / 3 * 160 / 255 * 256 / 400, abs=1e-6
    )  # red, green; 16² of 20²


def test_a_copy_has_the_highest_psnr_and_no_change() -> None:
    found = measure(scene(), scene(), None)
    assert found == pytest.approx(
        {
            "background_psnr_db": frames.MOST_DB,
            "background_ssim": 1.0,
            "change": 0.0,
            "changed_fraction": 0.0,
            "flicker": 0.0,
            "motion_agreement": 1.0,
            "sharpness": 1.0,
        }
    )


def test_noise_that_nobody_sees_is_no_change_without_a_mask() -> None:
    """Otsu alone would call the noisier half changed, and the rest better than it is."""
    edit = noisy(scene(), 6)
    found = measure(scene(), edit, None)
    assert (found["change"], found["changed_fraction"]) == (0, 0)
    whole = metrics.psnr_db(scene() / 255, edit / 255)
    assert found["background_psnr_db"] == pytest.approx(whole, abs=1e-4)


def test_a_change_of_all_is_said_to_have_no_background() -> None:
    found = measure(scene(), 255 - scene(colour=(0, 0, 0)) // 4, None)
    assert found.get("background_psnr_db", 0) < 12
    found = measure(torch.zeros_like(scene()), torch.full_like(scene(), 200), None)
    assert "background_psnr_db" not in found
    assert found["error"].startswith("the edit differs from its source everywhere: give a mask")
    assert (found["changed_fraction"], found["change"]) == (1, pytest.approx(200 / 255))


def test_a_background_that_moved_is_seen_with_a_mask_and_without_one_by_the_fraction() -> None:
    source, edit = scene(), scene(colour=(40, 200, 40), shift=2)
    assert measure(source, edit, mask_of())["background_psnr_db"] < 24
    assert measure(source, edit, mask_of())["background_ssim"] < 0.8
    assert measure(source, edit, None)["changed_fraction"] > 0.4


def test_a_blurred_edit_is_less_sharp_and_a_noisy_one_flickers() -> None:
    source = scene()
    columns = source.float().movedim(3, 1)
    smooth = torch.nn.functional.avg_pool2d(columns, (1, 3), 1).movedim(1, 3).byte()
    assert measure(source[:, :, 1:-1], smooth, None)["sharpness"] < 0.7
    assert measure(source, noisy(source, 12), None)["flicker"] > 0.03


@pytest.mark.parametrize(
    ("value", "missing", "there", "why"),
    [
        (0.0, "change", "background_psnr_db", "the mask is empty: nothing lies inside of it"),
        (1.0, "background_psnr_db", "change", "the mask is full: nothing lies outside of it"),
    ],
)
def test_a_mask_that_is_empty_or_full_says_why_a_number_is_missing(
    value: float, missing: str, there: str, why: str
) -> None:
    found = measure(scene(), scene(colour=(40, 200, 40)), torch.full((9, 48, 48), value))
    assert missing not in found
    assert there in found
    assert why in found["error"]


def test_the_feathered_rim_of_a_mask_is_neither_outside_nor_inside() -> None:
    mask = mask_of()
    mask[:, :14] = 0.3
    source, edit = scene(), scene()
    edit[:, :14] = 0
    assert measure(source, edit, mask)["background_psnr_db"] == frames.MOST_DB
    assert measure(source, edit, mask)["change"] == 0


def test_clips_of_other_sizes_or_lengths_are_named_in_the_error() -> None:
    assert measure(scene(9), scene(5), None) == {
        "error": "the edit has 5 frames of 48x48, the source 9 frames of 48x48; expected the same"
    }
    error = measure(scene(9), scene(9), torch.ones(9, 24, 48))["error"]
    assert error.startswith("the mask has 9 frames of 24x48, the source 9 frames of 48x48")


def test_a_clip_smaller_than_the_window_has_no_ssim() -> None:
    tiny = scene()[:, :8, :8]
    found = measure(tiny, tiny, None)
    assert found["background_psnr_db"] == frames.MOST_DB
    assert found["error"] == "no window of 11x11 pixels lies outside, for the SSIM"
