"""The parts of a loaded checkpoint: on which device they work, and files as they take them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pipeline import inputs
from pipeline.inputs.masks import read_mask
from pipeline.media.decoding import Clip
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import CheckpointInfo
from pipeline.model.text_encoder import Embeddings
from pipeline.model.transformer import VelocityModel
from pipeline.model.vae import Codec
from pipeline.settings import Limits, VideoSettings


@dataclass
class Parts:
    """What an `Editor` is made of."""

    info: CheckpointInfo
    model: VelocityModel
    codec: Codec
    text: Embeddings
    progress_bar: dict[str, Any] = field(default_factory=dict, repr=False)
    _offload_to: torch.device | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model works."""
        return self._offload_to or self.model.device

    def to(self, device: str | torch.device) -> Self:
        """Move the transformer and the VAE. Raises ValueError where there is no such device."""
        place = inputs.usable_device(device)
        self._offload_to = None
        self.model.transformer.to(place)
        self.codec.vae.to(place)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep each part on the CPU but while it works, so that the GPU holds one at a time.

        Load before with `device="cpu"` and the GPU's dtype, such as `torch_dtype=torch.bfloat16`.
        Weights in fp8 save memory so, but no time: these are for products in the model's dtype.
        """
        self._offload_to = inputs.usable_device(device)
        self.model.transformer.to("cpu")
        self.codec.vae.to("cpu")

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options of tqdm's bar, such as `disable=True`."""
        self.progress_bar = config

    def read(
        self,
        location: str | Path,
        settings: VideoSettings | None = None,
        *,
        start_frame: int = 0,
        num_frames: int | None = None,
        fps: float | None = None,
        limits: Limits | None = None,
    ) -> Clip:
        """The clip of a video file, as the checkpoint takes it.

        Args:
            location: a path or any fsspec URI.
            start_frame: frames of the source to leave out.
            num_frames, fps: at most so many frames; frames a second. Over what `settings` say.
            limits: what the file may take before it is refused.

        Raises:
            RowError: the file is not there, no video, cut off, too short, or too large.
            ValueError: the model cannot take the size that `settings` ask for.
        """
        return inputs.read_video(
            str(location),
            settings or VideoSettings(),
            self.info,
            start_frame=start_frame,
            num_frames=num_frames,
            fps=fps,
            limits=limits,
        )

    def read_mask(
        self,
        location: str | Path,
        clip: Clip,
        settings: VideoSettings | None = None,
        *,
        start_frame: int = 0,
        fps: float | None = None,
    ) -> Tensor:
        """A mask of a clip, bool [F, H, W], from a video or an image that is white where edits may
        change the clip; its settings, `start_frame` and `fps` are those that `read` got.

        Raises:
            RowError: it cannot be read or is too short, its proportions are not the clip's, or
                nothing or all of it is white.
        """
        how = settings or VideoSettings()
        return read_mask(str(location), clip, how, self.info, start_frame=start_frame, fps=fps)

    def write(self, path: str | Path, frames: Tensor | np.ndarray, *, fps: float) -> None:
        """Write frames, uint8 [F, H, W, 3], as an MP4; its folder is made."""
        inputs.check_ending(path)
        pixels = inputs.as_frames(frames)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            write_clip(file, pixels, fps=fps)

    def _bar(self, total: int, _: str) -> Any:
        return tqdm(total=total, **self.progress_bar)

    @contextmanager
    def _at_work(self, part: Any) -> Iterator[None]:
        """Bring a part to the GPU for as long as it works, where parts are offloaded."""
        if self._offload_to is None:
            yield
            return
        part.to(self._offload_to)
        try:
            yield
        finally:
            part.to("cpu")
