"""Masks: outside of its mask an edit is the source.

After each denoising step the latent outside of the mask is the trajectory's entry at that level
(blending as in Avrahami et al., "Blended Latent Diffusion", 2023, with the inverted source in the
place of a noised one): no forward is added. A mask is given in pixels, or found from what the model
predicts anyway, as the normalised difference to what the source's trajectory says (Couairon et al.,
"DiffEdit", 2022).

All of it is computed on whole latents, so each rank of a group comes to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.algorithm.schedule import Schedule


class Mask(Protocol):
    """Where one edit may differ from its source, during one reconstruction of it."""

    def watches(self, level: int) -> bool:
        """Whether `hold` needs the change of the step down from this level."""

    def hold(self, level: int, x: Tensor, source: Tensor, change: Tensor | None) -> Tensor:
        """The latent after a step, [F, C, h, w], with the source's outside of the mask.

        Args:
            level: that the step led down from.
            x: the edit's latent one level below it, [F, C, h, w], float32.
            source: the trajectory's entry there, the same shape.
            change: the clean latent that the edit's positive branch predicts, less the one that the
                trajectory points to, the same shape; None where the mask does not watch.
        """

    def weights(self) -> Tensor | None:
        """[F, 1, h, w], float32: 1 where the edit is kept; None while it is not known."""


@dataclass(frozen=True)
class GivenMask:
    """A mask that is known from the start.

    Args:
        kept: [F, 1, h, w], float32: 1 keeps the edit, 0 the source.
    """

    kept: Tensor

    def watches(self, level: int) -> bool:
        return False

    def hold(self, level: int, x: Tensor, source: Tensor, change: Tensor | None) -> Tensor:
        return blend(x, source, self.kept)

    def weights(self) -> Tensor | None:
        return self.kept


@dataclass
class AutoMask:
    """A mask that is found in the first steps, and holds from the last of these on.

    Args:
        levels: of the steps that are watched.
    """

    levels: frozenset[int]
    _seen: list[Tensor] = field(default_factory=list, repr=False)
    _kept: Tensor | None = field(default=None, repr=False)

    def watches(self, level: int) -> bool:
        return level in self.levels

    def hold(self, level: int, x: Tensor, source: Tensor, change: Tensor | None) -> Tensor:
        if change is not None:
            self._seen.append(change.abs().mean(1))
        if level == min(self.levels):
            self._kept = place_of_change(torch.stack(self._seen).mean(0)).to(x)
            self._seen.clear()
        return x if self._kept is None else blend(x, source, self._kept)

    def weights(self) -> Tensor | None:
        return self._kept


def hold(
    masks: Sequence[Mask | None],
    before: Tensor,
    x: Tensor,
    positive: Sequence[Tensor],
    trajectory: Callable[[int], Tensor],
    schedule: Schedule,
    level: int,
) -> Tensor:
    """The latents of edits after a step, [K, F, C, h, w], with the source outside of their masks.

    An edit without a mask is not touched.

    Args:
        masks: K of them.
        before, x: the latents at `level` and one level below it, [K, F, C, h, w], float32.
        positive: the velocity of each edit's positive branch at `level`, [F, C, h, w].
        trajectory: the stored latent [F, C, h, w], float32, of a level.
    """
    if not any(masks):
        return x
    own: Tensor | None = None
    if any(mask and mask.watches(level) for mask in masks):
        own = clean_of(trajectory, schedule, level)
    source = trajectory(level - 1)
    held = []
    for mask, start, one, v in zip(masks, before, x, positive, strict=True):
        change: Tensor | None = None
        if mask is not None and own is not None and mask.watches(level):
            change = schedule.clean(start, v, level) - own
        held.append(mask.hold(level, one, source, change) if mask else one)
    return torch.stack(held)


def clean_of(trajectory: Callable[[int], Tensor], schedule: Schedule, level: int) -> Tensor:
    """The clean latent that a trajectory points to at a level, [F, C, h, w].

    By the velocity that leads along it: the reference branch's own with the empty prompt, but known
    without a forward, in every step, for every setting of the reference, and with a step cache too.
    """
    above = trajectory(level)
    return schedule.clean(above, schedule.along(above, trajectory(level - 1), level), level)


def blend(x: Tensor, source: Tensor, kept: Tensor) -> Tensor:
    """The edit where `kept` is 1 and the source where it is 0, each to the bit."""
    return torch.where(kept == 1, x, kept * x + (1 - kept) * source)


def place_of_change(change: Tensor) -> Tensor:
    """The mask, [F, 1, h, w], of where an edit's prediction differs from its source's.

    Clean latents are compared rather than velocities: from the same latent one is a multiple of the
    other, and where an edit starts from other noise, that cancels.

    Args:
        change: the mean difference over steps and channels, [F, h, w].
    """
    # On the CPU in float64: sums on a GPU come in any order, and one bit moves the threshold.
    size = change.detach().cpu().double()[None, None]
    size = F.pad(size, (1, 1, 1, 1, 1, 1), mode="replicate")
    smooth = F.avg_pool3d(size, 3, stride=1)[0, 0]
    place = (smooth > otsu(smooth)).float()[:, None]
    # The same everywhere: there is no place that stands out.
    return place if place.any() else torch.ones_like(place)


def otsu(values: Tensor, counts: Tensor | None = None) -> float:
    """The threshold that parts values best into two kinds: those above it are the higher ones.

    Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979.

    Args:
        values: any shape, float64.
        counts: how often each of them is there, the same shape; once by default.
    """
    ordered, order = values.flatten().sort()
    weights = torch.ones_like(ordered) if counts is None else counts.double().flatten()[order]
    below, sums = weights.cumsum(0), (weights * ordered).cumsum(0)
    apart = (sums[-1] * below - sums * below[-1]).square()
    between = apart / (below * (below[-1] - below)).clamp_min(1e-9)
    return float(ordered[int(between[:-1].argmax()) if len(ordered) > 1 else 0])


def pooled(mask: Tensor, *, space: int, time: int, multiple: int = 1) -> Tensor:
    """A mask in pixels, [F, H, W], as the VAE sees it: [F', 1, H / space, W / space], 0 or 1.

    A latent is edited where the mask covers at least half of its pixels: the first frame is a
    latent frame of its own, then each group of `time` frames is one. (With one pixel of them being
    enough, the background within the edges' latents is lost; a part of each would be taken anew in
    each step, so that it depended on their number.) A latent frame in which none is half covered
    has those that are covered at all.

    Args:
        space, time: pixels and frames to a latent.
        multiple: latent frames are padded in front to a multiple of this, as the latents are.
    """
    rows = F.avg_pool2d(mask[:, None].float(), space)
    first, rest = rows[:1], rows[1:]
    parts = torch.cat([first, rest.unflatten(0, (-1, time)).mean(1)]) if len(rest) else first
    kept = parts > 0.4999  # means are rounded
    thin = ~kept.flatten(1).any(1)
    kept[thin] = parts[thin] > 0
    frames = kept.float()
    missing = -len(frames) % multiple
    return torch.cat([frames[:1]] * missing + [frames])


def in_pixels(kept: Tensor, frames: int, *, space: int, time: int) -> Tensor:
    """A mask in latents, [F', 1, h, w], as one in pixels, [F, h * space, w * space].

    Args:
        frames: F of the clip; what was padded in front is dropped.
        space, time: pixels and frames to a latent.
    """
    latents = kept[-((frames - 1) // time + 1) :, 0]
    large = latents.repeat_interleave(space, 1).repeat_interleave(space, 2)
    return torch.cat([large[:1], large[1:].repeat_interleave(time, 0)])


def softened(mask: Tensor, *, grow: int, feather: int) -> Tensor:
    """A mask grown, then with an edge that falls to nothing: [F, H, W], float32.

    Args:
        mask: bool, [F, H, W].
        grow: pixels, to each side and to the corners.
        feather: pixels outside of the grown mask over which it falls from 1 to 0, rounded up to an
            even number.
    """
    ramp = (feather + 1) // 2
    frames = []
    for frame in mask:  # one after the other: the sums of a whole clip take 8 bytes a pixel
        grown = _boxed(frame, grow + ramp) > 0
        frames.append(_boxed(grown, ramp).float() / (2 * ramp + 1) ** 2)
    return torch.stack(frames)


def _boxed(frame: Tensor, reach: int) -> Tensor:
    """The sum of each pixel's neighbours up to `reach` away, [H, W]; beyond the frame is its edge.

    By running sums: it takes as long for any reach.
    """
    total = frame.int()
    for _ in range(2):  # along each row, then, turned, along each column
        columns = total.shape[1]
        near = torch.arange(-reach, columns + reach).clamp(0, columns - 1)
        sums = F.pad(total[:, near].cumsum(1), (1, 0))
        total = (sums[:, 2 * reach + 1 :] - sums[:, :columns]).T
    return total


def composite(edit: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """An edit with the source's own pixels outside of its mask, like `edit`.

    Args:
        edit: float32 [F, H, W, 3], 0 to 1, or beyond where the decoder went there.
        source: uint8 [F, H, W, 3].
        mask: [F, H, W]: 1 for the edit, 0 for the source.
    """
    kept = mask[..., None].to(edit)
    return blend(edit, source.to(edit) / 255, kept)
