"""What a job asks of its checkpoint, checked before anything runs: clip size, blocks and steps."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.checkpoint import CheckpointInfo
from pipeline.settings import Inversion, Reconstruction, VideoSettings


@dataclass(frozen=True)
class ClipSize:
    """Height and width in pixels, and the largest number of frames."""

    height: int
    width: int
    frames: int


def clip_size(video: VideoSettings, info: CheckpointInfo) -> ClipSize:
    """The size of a job's clips: its own, or else the checkpoint's.

    Raises:
        ValueError: if the model cannot take such a size.
    """
    size = ClipSize(
        video.height or info.height, video.width or info.width, video.frames or info.frames
    )
    for name, value in (("height", size.height), ("width", size.width)):
        if value % info.size_multiple:
            nearest = max(1, round(value / info.size_multiple)) * info.size_multiple
            raise ValueError(
                f"video.{name} is {value}; this checkpoint needs a multiple of "
                f"{info.size_multiple}: {nearest} is the nearest"
            )
    return size


def check_blocks(reconstruction: Reconstruction, info: CheckpointInfo) -> None:
    """Whether the checkpoint has the blocks that reference attention is to happen in.

    Raises:
        ValueError: if the window ends above its last block.
    """
    layers, window = int(info.transformer["num_layers"]), reconstruction.inject_blocks
    if window and window[1] > layers:
        raise ValueError(
            f"reconstruction.inject_blocks is {list(window)}; this checkpoint has {layers} layers: "
            f"its blocks lie within [0, {layers}]"
        )


def check_steps(inversion: Inversion, info: CheckpointInfo) -> None:
    """Whether the checkpoint was trained at so many noise levels.

    Raises:
        ValueError: there are fewer training timesteps than steps.
    """
    trained = int(info.scheduler["num_train_timesteps"])
    if inversion.steps > trained:
        raise ValueError(
            f"inversion.steps is {inversion.steps}; this checkpoint has {trained} training "
            f"timesteps: take {trained} or fewer"
        )
