"""One device under measurement: models of random weights on it, seconds, memory and limits."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Prompt
from pipeline.model.checkpoint import CheckpointInfo, Family
from pipeline.model.transformer import VelocityModel
from pipeline.model.transformer.quantized import check_fp8, quantize_blocks
from pipeline.model.vae import Codec
from pipeline.settings import Speed
from tests.benchmarks.gpu.kinds import Found, Kind
from tests.published_models import CLIPS, T5, published

GB = 1e9
NATIVE = Speed(compile=False)
"""What is measured where nothing else is said: nothing compiled, the kernels that are fastest."""


@dataclass(frozen=True)
class Sizes:
    """What runs, and how large.

    Args:
        info: the configurations of the transformer and the VAE.
        clip: frames, height and width in pixels.
        vae_clips: those that the VAE takes.
        t5: the text encoder's configuration.
        edits: how many edits are denoised in lockstep, the fewest first.
    """

    info: CheckpointInfo
    clip: tuple[int, int, int]
    vae_clips: Sequence[tuple[int, int, int]]
    t5: dict[str, Any]
    edits: tuple[int, ...] = (1, 2, 4, 8)


def real_sizes(family: Family) -> Sizes:
    return Sizes(published(family), CLIPS[family], [CLIPS["5b"], CLIPS["1.5-5b"]], T5)


@dataclass
class Bench:
    """One card, and what runs on it.

    Args:
        kind: of the card, with its peak; None where it is not known.
        found: the numbers that more than one section needs.
    """

    sizes: Sizes
    device: torch.device
    kind: Kind | None = None
    found: Found = field(default_factory=Found)

    @property
    def dtype(self) -> torch.dtype:
        return self.sizes.info.dtype("auto", self.device)

    @property
    def tokens(self) -> int:
        """Of one branch, those of the text included."""
        return self.sizes.info.text_tokens + self.sizes.info.video_tokens(*self.sizes.clip)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def measured(
        self, work: Callable[[], Any], repeats: int = 2, *, warm: bool = True
    ) -> tuple[float, float | None]:
        """Seconds of the fastest of several runs, and GB above the start.

        Args:
            warm: whether to run it once before, where it has to warm up.
        """
        if warm:
            work()
        self.wait()
        held = torch.cuda.memory_allocated() if self.on_gpu else 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        peak = (torch.cuda.max_memory_allocated() - held) / GB if self.on_gpu else None
        return min(seconds), peak

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def speed(self, flops: float, seconds: float) -> str:
        """TFLOP/s, and the share of the card's peak (MFU) where that is known."""
        share = self.mfu(flops, seconds)
        return f"{flops / seconds / 1e12:.3g} TFLOP/s" + (f", {share:.0%}" if share else "")

    def mfu(self, flops: float, seconds: float) -> float | None:
        """The share of the card's peak; None where that is not known."""
        return flops / seconds / (self.kind.tflops * 1e12) if self.kind else None

    @contextmanager
    def limited(self, size: float) -> Iterator[None]:
        """Only so many bytes of the card for this process; a CPU has no such limit."""
        if not self.on_gpu:
            yield
            return
        self.free()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def build(self, model: Callable[[], Any], dtype: torch.dtype | None = None) -> Any:
        """A module with random weights, made on the device in its dtype."""
        torch.set_default_dtype(dtype or self.dtype)
        try:
            with self.device:
                return model().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)

    def transformer(self, speed: Speed = NATIVE) -> VelocityModel:
        """A transformer; equal calls make equal weights."""
        from diffusers import CogVideoXTransformer3DModel

        torch.manual_seed(0)
        make = partial(CogVideoXTransformer3DModel, **self.sizes.info.transformer)
        if speed.weights == "fp8":
            check_fp8(self.dtype, self.device)
        transformer = self.build(make)
        if speed.weights == "fp8":  # as `load_transformer` does it for weights of a file
            quantize_blocks(transformer, self.device)
        return VelocityModel(transformer, speed=speed)

    def codec(self, tiling: bool | None) -> Codec:
        from diffusers import AutoencoderKLCogVideoX

        vae = self.build(partial(AutoencoderKLCogVideoX, **self.sizes.info.vae))
        return Codec(vae, self.sizes.info.latent_frames_multiple, tiling)

    def latent(self) -> Tensor:
        return torch.randn(self.sizes.info.latent_shape(*self.sizes.clip), device=self.device)

    def prompt(self, text: str) -> Prompt:
        config = self.sizes.info.transformer
        shape = (int(config["max_text_seq_length"]), int(config["text_embed_dim"]))
        return Prompt(text, torch.randn(shape, device=self.device, dtype=self.dtype))


def host_waits(bench: Bench, work: Callable[[], Any]) -> int | str:
    """How often the host waited for the GPU; unknown on a CPU."""
    if not bench.on_gpu:
        return "-"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(caught)


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def gigabytes(count: float | None) -> str:
    return "-" if count is None else f"{count:.2f} GB"


def first_line(error: Exception) -> str:
    """Of its text, for a cell of a table."""
    return (str(error).splitlines() or [type(error).__name__])[0].replace("|", "/")
