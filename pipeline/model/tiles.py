"""How the VAE's frames may be cut into tiles: plain arithmetic, without torch.

`Codec` (`pipeline/model/vae.py`) tries these ways on a device; a plan reads the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.model.footprint import TILE_OVERLAP, largest_whole_area


@dataclass(frozen=True)
class Tiles:
    """Tiles of equal strides that cover a frame; all lengths in latents.

    Args:
        height, width: of a tile.
        overlap: rows and columns that the next tile repeats.
        area: of the largest tile within the frame.
        work: the area of all tiles.
    """

    height: int
    width: int
    overlap: tuple[int, int]
    area: int
    work: int

    def pixels(self, scale: int) -> tuple[int, int]:
        """Height and width of a tile in pixels, of which a latent has `scale` along each."""
        return self.height * scale, self.width * scale


def tile_plan(
    frame: tuple[int, int], largest_last: tuple[int, int], overlap: tuple[int, int]
) -> list[Tiles | None]:
    """The ways to cut a frame worth trying: whole (None), then ever smaller tiles.

    Each way has tiles smaller by a quarter, for the least work that gives such: with less between
    them the second would run out of memory where the first did.

    Args:
        frame: height and width in latents.
        largest_last: the last tiles are at most so large.
        overlap: of the tiles, in latents.
    """
    counts = []
    for side, own, shared in zip(frame, largest_last, overlap, strict=True):
        most = 1
        while side > own and most < side and -(-side // most) + shared > own:
            most += 1
        counts.append(range(1, most + 1))
    ways = sorted(
        (_tiles(frame, rows, columns, overlap) for rows, columns in product(*counts)),
        key=lambda tiles: (tiles.work, tiles.area),
    )
    last = min(ways, key=lambda tiles: (tiles.area, tiles.work))
    whole, *others = ways
    plan: list[Tiles | None] = [None]
    smallest = whole.area
    for tiles in others:
        if tiles.area <= smallest * 0.75 or (tiles == last and tiles.area < smallest):
            plan.append(tiles)
            smallest = tiles.area
    return plan


def _tiles(frame: tuple[int, int], rows: int, columns: int, overlap: tuple[int, int]) -> Tiles:
    strides = [-(-side // count) for side, count in zip(frame, (rows, columns), strict=True)]
    # A side that is not cut is one stride long: with less the VAE would begin another tile there.
    sides = [stride + shared for stride, shared in zip(strides, overlap, strict=True)]
    area, work = 1, 1
    for side, tile, stride in zip(frame, sides, strides, strict=True):
        area *= min(side, tile)
        work *= sum(min(tile, side - start) for start in range(0, side, stride))
    return Tiles(sides[0], sides[1], overlap, area, work)


def tiles_of(
    vae: Mapping[str, Any], height: int, width: int, *, decode: bool
) -> list[Tiles | None]:
    """The ways that `Codec` has with a VAE of this configuration, the first whole if any is.

    Args:
        height, width: of a frame in pixels.
    """
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    # diffusers' tiles are half of the size that the VAE was trained for.
    sides = (int(vae.get("sample_height", 480)), int(vae.get("sample_width", 720)))
    own = sides[0] // 2 // scale, sides[1] // 2 // scale
    overlap = _overlap(own[0], TILE_OVERLAP[0]), _overlap(own[1], TILE_OVERLAP[1])
    return allowed_tiles(vae, (height // scale, width // scale), own, overlap, decode=decode)


def _overlap(side: int, factor: float) -> int:
    return max(1, round(side * factor))


def allowed_tiles(
    vae: Mapping[str, Any],
    frame: tuple[int, int],
    own: tuple[int, int],
    overlap: tuple[int, int],
    *,
    decode: bool,
    tiling: bool | None = None,
) -> list[Tiles | None]:
    """The ways of `tile_plan` that diffusers' convolutions take.

    Args:
        vae: its configuration.
        tiling: force the smallest tiles, or none.
    """
    plan = tile_plan(frame, own, overlap)
    if tiling is not None:
        return plan[-1:] if tiling else [None]
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    most = largest_whole_area(vae, decode=decode) // scale**2
    areas = [frame[0] * frame[1] if t is None else t.area for t in plan]
    return [t for t, area in zip(plan, areas, strict=True) if area <= most] or plan[-1:]
