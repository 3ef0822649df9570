"""What a checkpoint costs: bytes of its weights and activations, FLOPs of a forward.

Plain arithmetic on the configuration files, without torch, so that a driver can plan with it. The
constants were counted on the `meta` device with the storages that live at once
(`tests/pipeline/test_real_sizes.py` counts again and compares). 1 GB is 10^9 bytes here.

Not counted: what a CUDA context (about 0.5 GB), the workspaces of cuDNN and cuBLAS and the gaps
between blocks of the allocator take. Callers leave `pipeline.model.memory.HEADROOM` for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pipeline.settings import Weights

if TYPE_CHECKING:
    from pipeline.model.checkpoint import CheckpointInfo

Part = Literal["transformer", "vae", "text_encoder"]

BRANCH = 12.2
"""Activations at once of a branch inside a block, as multiples of its tokens' bytes
(`tokens * width * bytes_a_value`), where the feed-forward network is the peak: its input and its
output, the four times wider layer before and after GELU, the residual stream. Attention and the
turning of queries and keys take fewer: a flash kernel keeps no scores."""
WAITING = 1.15
"""Multiples of its tokens' bytes that each branch of a batch holds while it waits for its turn: its
tokens between two blocks, its latent in float32 and in the model's precision."""
REFERENCE = 2.0
"""Multiples of its tokens' bytes that each of several references leaves for the edits: its keys and
values."""
JOINED = 4.0
"""Multiples of its tokens' bytes of the buffers in which the keys and values of a single reference
wait beside those of an edit, for each edit that goes through a block at once."""
CACHED = 3.0
"""Multiples of its tokens' bytes that a step cache adds for each branch: two tensors from step to
step, and while these are compared or made anew a third one."""

TOKENS_AT_ONCE = {"cpu": 2048, "gpu": 16384}
"""As many tokens of a rank keep the device busy: more branches than that do not go through a block
at once, on a GPU fewer where its memory is short. At native sizes that is one branch, so that an
edit does not depend on what is beside it. On a CPU the pages for tensors above 32 MB took a quarter
of the time of 13 branches; the GPU's is untried."""
GROUP_MARGIN = 2
"""In a group the parts may take so many times less than in one process: memory that runs out in an
exchange costs the group a restart, in one process it costs a second try."""

TILE = (240, 360)
"""Height and width in pixels of diffusers' default tile."""
TILE_OVERLAP = (1 / 6, 1 / 5)
"""The part of a tile's height and width that the next tile repeats (diffusers' default)."""
_SPLIT_BYTES = 2 * 1024**3
"""diffusers' `CogVideoXSafeConv3d` convolves in parts inputs above this (16-bit values assumed)."""


def weight_bytes(
    info: CheckpointInfo, part: Part, bytes_a_value: int, weights: Weights = "native"
) -> int:
    """Bytes of a part's weights.

    For `text_encoder` its configuration file is read: `CheckpointInfo` does not hold it.

    Args:
        weights: of the transformer's blocks.
    """
    if part == "transformer":
        native = bytes_a_value * _transformer_values(info.transformer)
        return native if weights == "native" else native - _saved_by_fp8(info, bytes_a_value)
    if part == "vae":
        return bytes_a_value * _vae_values(info.vae)
    config = json.loads((info.path / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    return bytes_a_value * _t5_values(config)


def transformer_bytes(
    transformer: CheckpointInfo | Mapping[str, Any],
    tokens: int,
    branches: int,
    bytes_a_value: int,
    *,
    batch: int | None = None,
    references: int = 0,
    cached: int = 0,
) -> int:
    """Peak bytes of one rank's activations during a forward, without weights.

    Args:
        transformer: a checkpoint, or the transformer's configuration.
        tokens: of one branch on this rank, those of the text included.
        branches: so many go through a block at once.
        batch: all branches of the forward, references too; by default `branches`.
        references: how many of them leave keys and values for the others.
        cached: how many of them the step cache keeps.
    """
    config = transformer if isinstance(transformer, Mapping) else transformer.transformer
    unit = tokens * _width(config) * bytes_a_value
    every = max(batch or branches, branches)
    waiting = REFERENCE * references
    if references == 1:
        waiting = JOINED * min(branches, every - 1)
    waiting += WAITING * (every - branches) + CACHED * cached
    return int(unit * (BRANCH * branches + waiting))


def vae_bytes(
    vae: CheckpointInfo | Mapping[str, Any],
    frames: int,
    height: int,
    width: int,
    bytes_a_value: int,
    *,
    decode: bool,
    tile: tuple[int, int] | None = None,
) -> int:
    """Peak bytes of the VAE's activations, without weights, the clip's own pixels included.

    Counted for the published VAE (channels 128, 256, 256, 512). For other widths it scales with the
    channels at full size, where the peak is.

    Args:
        vae: a checkpoint, or the VAE's configuration.
        frames, height, width: of the clip, in pixels.
        decode: latents to frames, or else frames to latents.
        tile: height and width in pixels of the tiles; None for the whole frame at once.
    """
    config = vae if isinstance(vae, Mapping) else vae.vae
    wide, next_wide = (*config["block_out_channels"], 0)[:2]
    channels = max(wide, next_wide / 2)
    area = height * width
    clip = 3 * frames * area
    worked = area if tile is None else min(tile[0], height) * min(tile[1], width)
    if decode:
        values = min(28.5 + 11.8 * frames, 179)
    elif channels * 10 * worked * 2 > _SPLIT_BYTES:
        values = min(16 + 4.9 * frames, 90.5)
    else:
        values = min(16 + 4.9 * frames, 76)
    peak = values * channels * worked * bytes_a_value
    if not decode:
        return int(peak + clip * bytes_a_value)
    if tile is None:
        return int(peak)
    gathered = clip * bytes_a_value * tiled_pixels(height, width, tile) / area
    # While the last tile is decoded the others wait; after it they are joined by rows and whole.
    return int(max(peak + gathered, gathered + 2 * clip * bytes_a_value))


def tiled_pixels(height: int, width: int, tile: tuple[int, int]) -> int:
    """The area of all tiles of a frame, overlaps counted as often as they are computed."""
    sides = []
    for total, side, overlap in zip((height, width), tile, TILE_OVERLAP, strict=True):
        if total <= side:
            sides.append(total)
            continue
        starts = range(0, total, int(side * (1 - overlap)))
        sides.append(sum(min(side, total - start) for start in starts))
    return sides[0] * sides[1]


def largest_whole_area(vae: CheckpointInfo | Mapping[str, Any], *, decode: bool) -> int:
    """The largest frame, in pixels, that the VAE takes at once, whatever the memory.

    diffusers' `CogVideoXSafeConv3d` splits what it convolves in time, into parts of 2 GiB. Of
    larger frames a part has fewer frames than the kernel, and the convolution fails.
    """
    config = vae if isinstance(vae, Mapping) else vae.vae
    widths = (*config["block_out_channels"], 0)
    channels = max(widths[0], widths[1]) if decode else widths[0]
    # One frame with the two that the causal convolution puts before it: no split is allowed.
    return _SPLIT_BYTES // (channels * 3 * 2)


def forward_flops(
    info: CheckpointInfo,
    frames: int,
    height: int,
    width: int,
    *,
    injected: bool = False,
    blocks: tuple[int, int] | None = None,
) -> int:
    """FLOPs of one branch's forward; a multiplication and an addition are two.

    Args:
        frames, height, width: of the clip, in pixels.
        injected: whether it attends to a reference too. The reference's own forward is not in it.
        blocks: reference attention happens in blocks first <= i < last; None for all.
    """
    config = info.transformer
    width_, layers = _width(config), int(config["num_layers"])
    text = info.text_tokens
    video = info.video_tokens(frames, height, width)
    tokens = text + video
    first, last = blocks or (0, layers)
    seen = max(0, min(last, layers) - first) if injected else 0
    linear = 24 * tokens * width_**2 * layers
    attention = 4 * tokens**2 * width_ * (layers + seen)
    patch = int(config["patch_size"]) ** 2 * int(config.get("patch_size_t") or 1)
    ends = (int(config["in_channels"]) + int(config["out_channels"])) * patch * video
    return linear + attention + 2 * width_ * (ends + text * int(config["text_embed_dim"]))


def vae_flops(
    vae: CheckpointInfo | Mapping[str, Any], frames: int, height: int, width: int, *, decode: bool
) -> int:
    """FLOPs of the VAE's convolutions for a clip whole; tiles cost as their areas together.

    Args:
        vae: a checkpoint, or the VAE's configuration.
        frames, height, width: of the clip, in pixels.
        decode: latents to frames, or else frames to latents.
    """
    config = vae if isinstance(vae, Mapping) else vae.vae
    widths = [int(c) for c in config["block_out_channels"]]
    latent, top = int(config["latent_channels"]), widths[-1]
    pixels = int(config.get("out_channels" if decode else "in_channels") or 3)
    # Values of a channel at each block's size, the largest first: a block halves height and width.
    halvings = int(math.log2(int(config["temporal_compression_ratio"])))
    counts = _frames_of_blocks(frames, halvings, len(widths), decode)
    sizes = [n * (height >> i) * (width >> i) for i, n in enumerate(counts)]
    norm = 2 * latent if decode else 0  # a 1x1x1 convolution each for the scale and the shift

    def resnet(a: int, b: int) -> int:
        return 27 * a * b + 27 * b * b + norm * (a + b) + (a * b if a != b else 0)

    layers = int(config.get("layers_per_block") or 3) + decode
    total = (27 * top * (latent if decode else 2 * latent) + 2 * resnet(top, top)) * sizes[-1]
    total += (27 * pixels * widths[0] + (norm * widths[0] if decode else 0)) * sizes[0]
    for i, c in enumerate(widths):
        before = widths[min(i + 1, len(widths) - 1) if decode else max(i - 1, 0)]
        total += (resnet(before, c) + (layers - 1) * resnet(c, c)) * sizes[i]
        if i < len(widths) - 1:  # a block's 2D convolution after its halving or doubling
            scaled = widths[i + 1] if decode else c
            total += 9 * scaled * scaled * (sizes[i] if decode else sizes[i + 1])
    return 2 * total


def _frames_of_blocks(frames: int, halvings: int, blocks: int, decode: bool) -> list[int]:
    """The frames that each block of the VAE works on, that of full size first.

    The first blocks of either half change the number of frames: the encoder's at full size, the
    decoder's at the smallest.
    """
    counts = [frames]
    for _ in range(halvings):
        counts.append((counts[-1] + 1) // 2)
    if not decode:
        return counts + counts[-1:] * (blocks - len(counts))
    latents = counts[-1]
    if latents % 2 == 0:  # then the first latent, too, is doubled each time
        counts = [latents << (halvings - i) for i in range(halvings + 1)]
    return counts[:1] * (blocks - len(counts)) + counts


def text_flops(info: CheckpointInfo) -> int:
    """FLOPs of the text encoder for one prompt; its configuration file is read."""
    config = json.loads((info.path / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    d, inner = int(config["d_model"]), int(config["d_kv"]) * int(config["num_heads"])
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    feed_forward = (3 if gated else 2) * d * int(config.get("d_ff") or 4 * d)
    tokens, layers = info.text_tokens, int(config["num_layers"])
    return 2 * tokens * layers * (4 * d * inner + feed_forward + 2 * tokens * inner)


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def _transformer_values(config: Mapping[str, Any]) -> int:
    """Values of a `CogVideoXTransformer3DModel`, its table of positions included."""
    d, t, head = _width(config), int(config["time_embed_dim"]), int(config["attention_head_dim"])
    p, p_t = int(config["patch_size"]), int(config.get("patch_size_t") or 1)
    text = int(config["text_embed_dim"])
    patch = int(config["in_channels"]) * p * p * p_t * d
    # diffusers heeds `patch_bias` only where the patches do not reach over time.
    patch += d if config.get("patch_size_t") or config.get("patch_bias", True) else 0
    positions = 0
    if not config.get("use_rotary_positional_embeddings"):
        side = int(config["sample_height"]) // p * (int(config["sample_width"]) // p)
        ratio = int(config.get("temporal_compression_ratio") or 4)
        latent_frames = (int(config["sample_frames"]) - 1) // ratio + 1
        positions = (int(config["max_text_seq_length"]) + latent_frames * side) * d
    modulation = 2 * (_linear(t, 6 * d) + 2 * d)
    attention = 4 * _linear(d, d) + 4 * head
    feed_forward = _linear(d, 4 * d) + _linear(4 * d, d)
    block = modulation + attention + feed_forward
    ends = _linear(text, d) + _linear(d, t) + _linear(t, t)
    ends += 2 * d + _linear(t, 2 * d) + 2 * d
    ends += _linear(d, p * p * p_t * int(config["out_channels"]))
    return patch + positions + ends + int(config["num_layers"]) * block


def _saved_by_fp8(info: CheckpointInfo, bytes_a_value: int) -> int:
    """Bytes: a value of attention and feed-forward takes one, each row of a weight a float32."""
    d, layers = _width(info.transformer), int(info.transformer["num_layers"])
    return layers * (12 * d * d * (bytes_a_value - 1) - 9 * d * 4)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _vae_values(config: Mapping[str, Any]) -> int:
    """Values of an `AutoencoderKLCogVideoX`."""
    widths = [int(c) for c in config["block_out_channels"]]
    latent, layers = int(config["latent_channels"]), int(config.get("layers_per_block") or 3)
    pixels_in, pixels_out = (
        int(config.get("in_channels") or 3),
        int(config.get("out_channels") or 3),
    )
    top = widths[-1]

    def norm(c: int, decoder: bool) -> int:
        return 2 * c + (2 * _linear(latent, c) if decoder else 0)

    def resnet(a: int, b: int, decoder: bool) -> int:
        shortcut = _linear(a, b) if a != b else 0
        both = norm(a, decoder) + norm(b, decoder)
        return both + _linear(27 * a, b) + _linear(27 * b, b) + shortcut

    def side(order: list[int], count: int, decoder: bool) -> int:
        values, before = 2 * resnet(top, top, decoder), order[0]
        for i, c in enumerate(order):
            values += resnet(before, c, decoder) + (count - 1) * resnet(c, c, decoder)
            values += _linear(9 * c, c) if i < len(order) - 1 else 0
            before = c
        return values + norm(order[-1], decoder)

    encoder = _linear(27 * pixels_in, widths[0]) + side(widths, layers, False)
    decoder = _linear(27 * latent, top) + side(widths[::-1], layers + 1, True)
    ends = _linear(27 * top, 2 * latent) + _linear(27 * widths[0], pixels_out)
    return encoder + decoder + ends


def _t5_values(config: Mapping[str, Any]) -> int:
    """Values of a T5 encoder."""
    d, inner = int(config["d_model"]), int(config["d_kv"]) * int(config["num_heads"])
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    feed_forward = (3 if gated else 2) * d * int(config.get("d_ff") or 4 * d)
    layer = 4 * d * inner + feed_forward + 2 * d
    buckets = int(config.get("relative_attention_num_buckets") or 32) * int(config["num_heads"])
    return int(config["vocab_size"]) * d + int(config["num_layers"]) * layer + buckets + d
