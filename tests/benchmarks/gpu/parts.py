"""Sections: the kernels of attention, the VAE and the text encoder, each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import RowError
from pipeline.model import footprint
from pipeline.model.attention.kernels import kernels_for, pick_kernel
from tests.benchmarks.gpu.card import GB, Bench, first_line, gigabytes

CARD = 24 * GB
"""The card that memory is limited to in one section."""


@torch.no_grad()
def kernels(bench: Bench) -> Iterator[list[str]]:
    """Attention at the real shape, without the logsumexp and with it, which ring needs."""
    yield ["dtype", "kernel", "logsumexp", "seconds", "speed"]
    config, tokens = bench.sizes.info.transformer, bench.tokens
    heads, width = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    others = [d for d in (torch.bfloat16, torch.float16, torch.float32) if d != bench.dtype]
    for dtype in (bench.dtype, *others):
        # Heads stand inside of tokens, as the projections of a block leave them.
        like = torch.randn(1, tokens, heads, width, device=bench.device, dtype=dtype)
        like = like.transpose(1, 2)
        for logsumexp in (False, True):
            for name, kernel in kernels_for(bench.device, logsumexp=logsumexp).items():
                row = [str(dtype).removeprefix("torch."), name, "yes" if logsumexp else "no"]
                try:
                    pick_kernel({name: kernel}, like, logsumexp=logsumexp)
                    seconds, _ = bench.measured(partial(kernel, like, like, like))
                    flops = 4 * tokens**2 * heads * width
                    yield [*row, f"{seconds:.4f}", bench.speed(flops, seconds)]
                except Exception as error:  # each package raises its own kind
                    yield [*row, first_line(error), ""]


@torch.no_grad()
def vae(bench: Bench) -> Iterator[list[str]]:
    """Encoding and decoding, whole and in the smallest tiles, at each size."""
    yield from _vae(bench, (False, True))


@torch.no_grad()
def small_card(bench: Bench) -> Iterator[list[str]]:
    """The same on a card of 24 GB that holds the transformer too: the codec chooses."""
    left = CARD - footprint.weight_bytes(bench.sizes.info, "transformer", bench.dtype.itemsize)
    with bench.limited(left):
        yield from _vae(bench, (None,))


def _vae(bench: Bench, ways: Sequence[bool | None]) -> Iterator[list[str]]:
    yield ["clip", "", "tiles", "seconds", "speed", "peak", "counted"]
    flops = took = 0.0
    for frames, height, width in bench.sizes.vae_clips:
        shape = bench.sizes.info.latent_shape(frames, height, width)
        latent = torch.randn(shape, device=bench.device)
        video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
        for decode in (False, True):
            for tiling in ways:
                codec = bench.codec(tiling)
                work = (
                    partial(codec.decode, latent, frames)
                    if decode
                    else partial(codec.encode, video)
                )
                row = [f"{frames}x{height}x{width}", "decode" if decode else "encode"]
                try:
                    with FlopCounterMode(display=False) as counter:
                        work()
                    seconds, peak = bench.measured(work, repeats=1, warm=False)
                except (RuntimeError, RowError) as error:
                    yield [
                        *row,
                        "whole" if tiling is False else "tiles",
                        first_line(error),
                        "",
                        "",
                        "",
                    ]
                    continue
                finally:
                    bench.free()
                part = codec.vae
                tile = (part.tile_sample_min_height, part.tile_sample_min_width)
                tile_or_none = tile if part.use_tiling else None
                counted = footprint.vae_bytes(
                    part.config, frames, height, width, bench.dtype.itemsize,
                    decode=decode, tile=tile_or_none,
                )  # fmt: skip
                cut = "x".join(map(str, tile)) if part.use_tiling else "whole"
                count = counter.get_total_flops()
                flops, took = flops + count, took + seconds
                speed = bench.speed(count, seconds)
                yield [*row, cut, f"{seconds:.2f}", speed, gigabytes(peak), gigabytes(counted / GB)]
                if share := bench.mfu(flops, took):
                    bench.found.shares["vae_mfu"] = share


@torch.no_grad()
def text_encoder(bench: Bench) -> Iterator[list[str]]:
    """T5 with random weights: seconds for a prompt, and its memory."""
    from transformers import T5Config, T5EncoderModel

    yield ["weights", "seconds for a prompt", "activations"]
    half = torch.bfloat16 if bench.on_gpu else torch.float32
    model = bench.build(lambda: T5EncoderModel(T5Config(**bench.sizes.t5)), half)
    tokens = torch.zeros(1, bench.sizes.info.text_tokens, dtype=torch.long, device=bench.device)
    seconds, peak = bench.measured(partial(model, tokens))
    weights = sum(p.nbytes for p in model.parameters())
    yield [gigabytes(weights / GB), f"{seconds:.4f}", gigabytes(peak)]
