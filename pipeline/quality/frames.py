"""What frames alone say of an edit: is all else as it was, and did anything change at all?

No model is asked, so these cost seconds on one core. All is computed in chunks of frames: beside
the two clips, memory holds one byte a pixel and the floats of a few frames.

**Outside and inside.** With a mask, outside is where it is below `OUTSIDE`, inside where it is
above `INSIDE`; what lies between belongs to neither, since a feathered mask is blended there.
Without one they are told apart by the difference of edit and source: the difference is smoothed
over 5x5 pixels, its largest channel is taken, and a place belongs to the inside where that is above
the threshold of Otsu ("A Threshold Selection Method from Gray-Level Histograms", 1979), but never
where it is below `VISIBLE`; the 2 pixels around it belong to neither, as far as it was smoothed. So
where nothing changed visibly, all is outside and the change is 0;
and where all changed, what is called outside is what changed least, and its PSNR says so. A moved
background counts as inside then, so read the PSNR with `changed_fraction`, or give a mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.algorithm.masks import otsu
from pipeline.quality.metrics import blur, luma

OUTSIDE, INSIDE = 0.1, 0.5
"""Of a mask. A mask that was stored as a video is not exactly black beside its edges."""
VISIBLE = 0.08
"""A smoothed difference of a channel, 0 to 1, from which a pixel differs visibly: 20 of 255."""
MOST_DB = 100.0
"""PSNR of places that are the same; 8 bits that differ by 1 in one value of 10^4 have 88 dB."""
LEAST_PART = 0.001
"""Of all pixels: with fewer outside or inside of the mask, nothing is said of them."""
SMOOTH = 5
FRAMES_AT_ONCE = 4
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def measure(source: Tensor, edit: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """The numbers of `FrameScores`, with `error` where some are missing.

    Args:
        source, edit: uint8 [F, H, W, 3].
        mask: float32 [F, H, W], 0 to 1, or None.
    """
    if why := _unlike(source, edit, mask):
        return {"error": why}
    place = _place(source, edit, mask)
    sums = _Sums()
    for chunk in _chunks(len(source)):
        sums.add(source[chunk], edit[chunk], place.outside(chunk), place.inside(chunk))
        before = min(2, chunk.start)
        longer = slice(chunk.start - before, chunk.stop)
        sums.add_motion(source[longer], edit[longer], before)
    return _numbers(sums, place)


def _unlike(source: Tensor, edit: Tensor, mask: Tensor | None) -> str | None:
    """Why a pair cannot be measured."""
    shown = {"the edit": edit, "the mask": mask}
    for name, other in shown.items():
        if other is not None and other.shape[:3] != source.shape[:3]:
            there, here = (
                f"{x.shape[0]} frames of {x.shape[1]}x{x.shape[2]}" for x in (other, source)
            )
            return f"{name} has {there}, the source {here}; expected the same"
    return None if source.numel() else "the clips have no frames"


def _chunks(frames: int) -> Iterator[slice]:
    for start in range(0, frames, FRAMES_AT_ONCE):
        yield slice(start, start + FRAMES_AT_ONCE)


# --- where is outside? -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Outside and inside of a pair.

    Args:
        levels: uint8 [F, H, W], of the mask or of the smoothed difference.
        below, above: outside is where a level is below the one, inside where it is above the other.
        given: whether it is of a mask.
        visible: the part of all pixels that differ visibly.
    """

    levels: Tensor
    below: int
    above: int
    given: bool
    visible: float

    def outside(self, chunk: slice) -> Tensor:
        levels = self.levels[chunk]
        if not self.given:
            levels = F.max_pool2d(levels.float()[:, None], SMOOTH, 1, SMOOTH // 2)[:, 0]
        return levels < self.below

    def inside(self, chunk: slice) -> Tensor:
        return self.levels[chunk] > self.above


def _place(source: Tensor, edit: Tensor, mask: Tensor | None) -> _Place:
    levels = torch.empty(source.shape[:3], dtype=torch.uint8)
    for chunk in _chunks(len(source)):
        levels[chunk] = _difference(source[chunk], edit[chunk])
    counts = torch.bincount(levels.flatten(), minlength=256).double()
    visible = round(VISIBLE * 255)
    part = counts[visible + 1 :].sum().item() / levels.numel()
    if mask is None:
        levels_of = torch.arange(len(counts), dtype=torch.float64)
        threshold = max(visible, int(otsu(levels_of, counts)))
        return _Place(levels, threshold + 1, threshold, given=False, visible=part)
    levels = torch.empty(source.shape[:3], dtype=torch.uint8)
    for chunk in _chunks(len(source)):
        levels[chunk] = (mask[chunk] * 255).round().clamp(0, 255).byte()
    return _Place(levels, round(OUTSIDE * 255), round(INSIDE * 255), given=True, visible=part)


def _difference(source: Tensor, edit: Tensor) -> Tensor:
    """The smoothed difference, uint8 [F, H, W]: its sign cancels noise, and fine texture."""
    change = (edit.short() - source.short()).float().movedim(3, 1)
    smooth = F.avg_pool2d(change, SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
    return smooth.abs().amax(1).round().byte()


# --- sums over chunks of frames ----------------------------------------------------------------


@dataclass
class _Sums:
    """What is added up over the chunks of a clip; each list is of a mean: sum and count."""

    background: list[float] = field(default_factory=lambda: [0.0, 0])
    ssim: list[float] = field(default_factory=lambda: [0.0, 0])
    change: list[float] = field(default_factory=lambda: [0.0, 0])
    sharp: list[float] = field(default_factory=lambda: [0.0, 0.0])
    flicker: list[float] = field(default_factory=lambda: [0.0, 0.0, 0])
    motion: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    most_motion: float = 0.0

    def add(self, source: Tensor, edit: Tensor, outside: Tensor, inside: Tensor) -> None:
        """Take whole frames, uint8 [F, H, W, 3], and where they are outside and inside."""
        change = (edit.short() - source.short()).float()
        squares, sizes = change.square().sum(3), change.abs().sum(3)
        self.background[0] += (squares * outside).sum(dtype=torch.float64).item()
        self.background[1] += 3 * int(outside.sum())
        self.change[0] += (sizes * inside).sum(dtype=torch.float64).item()
        self.change[1] += 3 * int(inside.sum())
        one, other = luma(source) / 255, luma(edit) / 255
        for at, frames in enumerate((one, other)):
            self.sharp[at] += _laplacian(frames).square().sum(dtype=torch.float64).item()
        if min(one.shape[1:]) >= WINDOW:
            whole = _windows_within(outside)
            if whole.any():
                self.ssim[0] += (ssim_map(one, other) * whole).sum(dtype=torch.float64).item()
                self.ssim[1] += int(whole.sum())

    def add_motion(self, source: Tensor, edit: Tensor, before: int) -> None:
        """Take whole frames, of which the first `before`, up to two, were taken already."""
        one, other = luma(source) / 255, luma(edit) / 255
        if len(one) > 2:
            for at, x in enumerate((other, one)):
                second = x[2:] - 2 * x[1:-1] + x[:-2]
                self.flicker[at] += second.abs().sum(dtype=torch.float64).item()
            self.flicker[2] += second.numel()
        steps = slice(max(0, before - 1), None)
        a, b = (blur(x[steps].diff(dim=0).abs()).double() for x in (other, one))
        if a.numel():
            terms = (torch.ones_like(a), a, b, a * a, b * b, a * b)
            self.motion += torch.stack([term.sum() for term in terms])
            self.most_motion = max(self.most_motion, a.max().item(), b.max().item())


def _numbers(sums: _Sums, place: _Place) -> dict[str, Any]:
    found: dict[str, Any] = {"changed_fraction": place.visible}
    least = 3 * LEAST_PART * place.levels.numel()
    lacks = []
    if sums.background[1] >= least:
        error = sums.background[0] / sums.background[1] / 255**2
        db = -10 * math.log10(error) if error else math.inf
        found["background_psnr_db"] = min(MOST_DB, db)
        if sums.ssim[1]:
            found["background_ssim"] = sums.ssim[0] / sums.ssim[1]
        else:
            lacks.append(f"no window of {WINDOW}x{WINDOW} pixels lies outside, for the SSIM")
    else:
        lacks.append(
            "the mask is full: nothing lies outside of it"
            if place.given
            else "the edit differs from its source everywhere: give a mask"
        )
    if sums.change[1] >= (least if place.given else 1):
        found["change"] = sums.change[0] / sums.change[1] / 255
    elif place.given:
        lacks.append("the mask is empty: nothing lies inside of it")
    else:
        found["change"] = 0.0
    flicker = [total / max(1, sums.flicker[2]) for total in sums.flicker[:2]]
    source, edit = sums.sharp
    tiny = 1e-6 * place.levels.numel()
    found |= {
        "flicker": flicker[0] - flicker[1],
        "motion_agreement": _agreement(sums),
        "sharpness": (edit + tiny) / (source + tiny),
    }
    return found | ({"error": "; ".join(lacks)} if lacks else {})


def _agreement(sums: _Sums) -> float:
    """As `metrics.motion_agreement`, from sums."""
    n, a, b, aa, bb, ab = sums.motion.tolist()
    if not n:
        return 1.0
    scale = math.sqrt(max(0.0, aa / n - (a / n) ** 2) * max(0.0, bb / n - (b / n) ** 2))
    if scale < 1e-12:
        return 1.0 if sums.most_motion < 1e-6 else 0.0
    return (ab / n - a * b / n**2) / scale


# --- structural similarity ---------------------------------------------------------------------


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """SSIM of luma [F, H, W], 0 to 1, at each whole 11x11 window: [F, H - 10, W - 10].

    As in Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    2004: a Gaussian window of 1.5 pixels, K1 0.01, K2 0.03, weighted variances that are not
    corrected for the number of samples.
    """
    both = _smoothed(torch.stack([one, other, one * one + other * other, one * other]))
    mean, mean_other, squares, product = both
    c1, c2 = K1**2, K2**2
    means, powers = mean * mean_other, mean * mean + mean_other * mean_other
    return (
        (2 * means + c1) * (2 * (product - means) + c2) / ((powers + c1) * (squares - powers + c2))
    )


def _smoothed(x: Tensor) -> Tensor:
    """[..., H, W] under the Gaussian window, where it is whole: [..., H - 10, W - 10]."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-(at**2) / (2 * SIGMA**2))
    weights: list[float] = (bell / bell.sum()).tolist()
    for dim in (-1, -2):
        size = x.shape[dim] - WINDOW + 1
        total = x.narrow(dim, WINDOW // 2, size) * weights[WINDOW // 2]
        for k in range(WINDOW // 2):  # the window is symmetric
            pair = x.narrow(dim, k, size) + x.narrow(dim, WINDOW - 1 - k, size)
            total.add_(pair, alpha=weights[k])
        x = total
    return x


def _windows_within(outside: Tensor) -> Tensor:
    """Whether the window lies wholly outside, bool [F, H - 10, W - 10]."""
    inside = F.max_pool2d((~outside).float()[:, None], (1, WINDOW), stride=1)
    return F.max_pool2d(inside, (WINDOW, 1), stride=1)[:, 0] == 0


def _laplacian(x: Tensor) -> Tensor:
    """Of frames [F, H, W], at the pixels with four neighbours."""
    middle = x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return around - 4 * middle
