"""The file of a mask has the mask that was used: it is read back from one half on."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.ranks.edit_video import decided
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import MASK_CRF, write_clip
from pipeline.media.masks import grey


def moving() -> Tensor:
    """A square that moves, and single pixels, [F, H, W]."""
    mask = torch.zeros(13, 64, 96)
    for frame in range(len(mask)):
        mask[frame, 10 + frame : 40 + frame, 20 + 2 * frame : 50 + 2 * frame] = 1
    mask[:, 5, ::3] = 1
    return mask


def feathered() -> Tensor:
    return F.avg_pool2d(moving()[:, None], 9, 1, 4)[:, 0]


def noise() -> Tensor:
    return torch.rand(13, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", [moving(), feathered(), noise()], ids=["hard", "soft", "noise"])
def test_a_stored_mask_read_from_one_half_on_is_the_mask(mask: Tensor) -> None:
    file = io.BytesIO()
    write_clip(file, grey(decided(mask)), fps=8, crf=MASK_CRF)
    file.seek(0)
    frames = read_clip(file, name="mask", height=64, width=96, frames=13).frames
    back = torch.as_tensor(np.asarray(frames)).float() / 255
    assert torch.equal(back.mean(-1) >= 0.5, mask >= 0.5)
    assert (back.mean(-1) - mask).abs().max() < 0.06
