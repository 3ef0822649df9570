"""The weights of a checkpoint, by the headers of their files: all there, whole, of these sizes.

Only headers are read: milliseconds for 20 GB.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.configuration import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    Configuration,
    download_hint,
    read_json,
)
from pipeline.model.folder.layout import FULL_WEIGHTS, FUSE_LORA, listed
from pipeline.settings import Precision
from pipeline.storage import from_json

STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The names of the files that diffusers and transformers load, without their ending."""
CONFIGS = {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": TEXT_ENCODER}
LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses more."""
ONLY_IN_FIRST = "relative_attention_bias"
"""What the first block of T5 has for all of them."""
WHOLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}
"""The dtypes of weights that are not quantised, and of the counters beside them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file, by its header; it lies in the bytes first <= i < last."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


def check_weights(
    folder: Path,
    config: Configuration,
    trained_in: Precision,
    parts: Collection[str] = tuple(STEMS),
) -> None:
    """Check that each part has all its weights, whole, and of the sizes in its configuration.

    Args:
        trained_in: the precision that the family was trained in.
        parts: those to check; one without weights of its own has nothing that is wrong.

    Raises:
        UnsupportedCheckpoint: with the file, what was found and what was expected.
    """
    for part in (part for part in STEMS if part in parts):
        tensors: dict[str, StoredTensor] = {}
        for name in _files(folder, part, trained_in):
            tensors |= read_header(folder, name)
        _refuse_quantised(part, tensors)
        _refuse_adapters(part, tensors)
        _check_blocks(part, tensors, config)
        for tensor, shape in _shapes(part, tensors, config):
            if tensor not in tensors:
                raise UnsupportedCheckpoint(
                    f"{part}: its weights lack the tensor {tensor}; expected one of shape {shape}, "
                    "as in the published models. Fetch the weights again"
                )
            if tensors[tensor].shape != shape:
                raise UnsupportedCheckpoint(
                    f"{part}: the tensor {tensor} has the shape {tensors[tensor].shape}; "
                    f"{CONFIGS[part]} says {shape}. Weights and configuration are of different "
                    "models: take both from one"
                )


def _files(folder: Path, part: str, trained_in: Precision) -> list[str]:
    """The weight files of a part that are loaded, by their names in the folder."""
    single, index = f"{STEMS[part]}.safetensors", f"{STEMS[part]}.safetensors.index.json"
    # transformers looks for the one file first, diffusers for the index.
    order = (single, index) if part == "text_encoder" else (index, single)
    found = next((name for name in order if (folder / part / name).is_file()), None)
    if found == single:
        return [f"{part}/{single}"]
    if found == index:
        return [f"{part}/{shard}" for shard in _shards(folder, f"{part}/{index}")]
    raise UnsupportedCheckpoint(_no_weights(folder, part, single, trained_in))


def _shards(folder: Path, index: str) -> list[str]:
    content, part = read_json(folder, index), index.partition("/")[0]
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(content.get("metadata"), dict):
        raise UnsupportedCheckpoint(
            f"{index} lacks weight_map or metadata; expected the index that `save_pretrained` "
            "writes. Copy the file again"
        )
    shards = sorted({str(shard) for shard in places.values()})
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise UnsupportedCheckpoint(
            f"{index} names {listed(outside)}; expected plain names of files beside it. Copy the "
            "file again"
        )
    if missing := [shard for shard in shards if not (folder / part / shard).is_file()]:
        raise UnsupportedCheckpoint(
            f"{part} lacks {len(missing)} of its {len(shards)} files of weights: "
            f"{listed(missing)}, which {index} names; fetch them{download_hint(folder)}"
        )
    held = {name: set(read_header(folder, f"{part}/{name}")) for name in shards}
    if lost := [tensor for tensor, shard in places.items() if tensor not in held[shard]]:
        raise UnsupportedCheckpoint(
            f"{part}: {index} names tensors that are not in its files: {listed(lost)}; index and "
            "files are of different models. Fetch both from one"
        )
    return shards


def _no_weights(folder: Path, part: str, single: str, trained_in: Precision) -> str:
    """Why a part has no weights that are loaded, and what to do."""
    names = [path.name for path in (folder / part).iterdir() if path.is_file()]
    stem = STEMS[part]
    variant = re.compile(
        rf"{stem}\.([\w-]+?)\.safetensors|{stem}\.safetensors\.index\.([\w-]+)\.json"
    )
    for name in sorted(names, key=lambda n: (".index." not in n, n)):
        if match := variant.fullmatch(name):
            kind = match[1] or match[2]
            right = name.replace(f".{kind}.", ".")
            return (
                f"{part} has only the variant {kind!r} of its weights ({name}); expected {single}. "
                f"To use that variant: `mv {folder / part / name} {folder / part / right}`"
            )
    dtype = "float16" if trained_in == "fp16" else "bfloat16"
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        return (
            f"{part} has its weights as pickles ({listed(pickles)}), which can run any code and "
            f"are not loaded; expected {single}. Convert them, if you trust their author: "
            '`python -c "import torch; from diffusers import CogVideoXPipeline as P; '
            f"P.from_pretrained('{folder}', torch_dtype=torch.{dtype})"
            f".save_pretrained('{folder}-safetensors')\"`, and give {folder}-safetensors; to keep "
            "weights in float32, write torch.float32 in the command"
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return f"{part} has quantised weights in GGUF format ({listed(gguf)}). {FULL_WEIGHTS}"
    other = [name for name in names if name.endswith(".safetensors")]
    found = f"; found {listed(other)}, which nothing loads" if other else ""
    from_hub = (
        ". From the Hub only these are fetched: where the repository has other weights, "
        "`hf download NAME --local-dir FOLDER` and give that folder: the message then says more"
        if folder.parent.name == "snapshots"
        else ""
    )
    return (
        f"{part} has no weights; expected {part}/{single}, or its shards with "
        f"{single}.index.json{found}. Fetch them{download_hint(folder)}{from_hub}"
    )


def read_header(folder: Path, name: str) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, whose length must be what its header says.

    Raises:
        UnsupportedCheckpoint: it is no safetensors file, or not all of it.
    """
    size = (folder / name).stat().st_size
    try:
        with (folder / name).open("rb") as stream:
            header = header_bytes(stream, size)
        entries = from_json(header)
        entries.pop("__metadata__", None)
        tensors = {
            key: StoredTensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpoint(
            f"{name} ({size:,} bytes) is no safetensors file: {error}. Fetch it again"
            f"{download_hint(folder)}"
        ) from error
    expected = 8 + len(header) + max((tensor.last for tensor in tensors.values()), default=0)
    if size != expected:
        state = "is not whole: it" if size < expected else "does not end where it should: it"
        raise UnsupportedCheckpoint(
            f"{name} {state} has {size:,} bytes; its header says {expected:,}. Fetch it again"
            f"{download_hint(folder)}"
        )
    return tensors


def header_bytes(stream: BinaryIO, size: int) -> bytes:
    """The header of a safetensors file of `size` bytes.

    Raises:
        ValueError: its first 8 bytes are not the length of a header.
    """
    return stream.read(header_length(stream, size))


def header_length(stream: BinaryIO, size: int) -> int:
    """The length of the header of a safetensors file, which stands before it.

    Raises:
        ValueError: its first 8 bytes are not the length of a header.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length < min(size, LARGEST_HEADER):
        raise ValueError("its first 8 bytes are not the length of a header")
    return length


def _refuse_quantised(part: str, tensors: Mapping[str, StoredTensor]) -> None:
    if odd := sorted({t.dtype for t in tensors.values()} - WHOLE):
        example = next(name for name, tensor in tensors.items() if tensor.dtype == odd[0])
        raise UnsupportedCheckpoint(
            f"{part}: its weights are quantised ({example} is {odd[0]}). {FULL_WEIGHTS}"
        )


def _refuse_adapters(part: str, tensors: Collection[str]) -> None:
    marks = (".lora_", ".base_layer.")
    if found := next((name for name in tensors if any(mark in name for mark in marks)), None):
        raise UnsupportedCheckpoint(f"{part}: its weights hold a LoRA ({found}). {FUSE_LORA}")


def _check_blocks(part: str, tensors: Collection[str], config: Configuration) -> None:
    """Each numbered block must be there, as many as configured, with all of its tensors."""
    for prefix, key, count in _blocks(part, config):
        blocks: dict[int, set[str]] = defaultdict(set)
        for name in tensors:
            if match := re.match(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name):
                blocks[int(match[1])].add(match[2])
        if set(blocks) != set(range(count)):
            raise UnsupportedCheckpoint(
                f"{part}: its weights have {len(blocks)} blocks {prefix}.*; {CONFIGS[part]} says "
                f"{count} ({key}). Weights and configuration are of different models, or files are "
                "missing: take all from one"
            )
        if part == "vae":  # whose blocks differ
            continue
        alike = {name for name in set().union(*blocks.values()) if ONLY_IN_FIRST not in name}
        if lost := [f"{prefix}.{i}.{n}" for i, names in blocks.items() for n in alike - names]:
            raise UnsupportedCheckpoint(
                f"{part}: its weights lack {listed(lost)}, which other blocks have. Fetch them "
                "again, all from one model"
            )


def _blocks(part: str, config: Configuration) -> Iterator[tuple[str, str, int]]:
    """The numbered blocks of a part: prefix, what says their number, their number."""
    if part == "transformer":
        yield "transformer_blocks", "num_layers", int(config.transformer["num_layers"])
    elif part == "text_encoder":
        yield "encoder.block", "num_layers", int(config.text_encoder["num_layers"])
    else:
        count = len(config.vae["block_out_channels"])
        yield "encoder.down_blocks", "block_out_channels", count
        yield "decoder.up_blocks", "block_out_channels", count


def _shapes(
    part: str, tensors: Collection[str], config: Configuration
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors whose shapes show the sizes of a part, with the shapes that are configured."""
    of = {"transformer": config.transformer, "vae": config.vae, "text_encoder": config.text_encoder}
    if part == "transformer":
        yield from _transformer_shapes(of[part])
    elif part == "vae":
        channels, latent = of[part]["block_out_channels"], int(of[part]["latent_channels"])
        colours = int(of[part].get("in_channels") or 3), int(of[part].get("out_channels") or 3)
        yield "encoder.conv_in.conv.weight", (channels[0], colours[0], 3, 3, 3)
        yield "decoder.conv_in.conv.weight", (channels[-1], latent, 3, 3, 3)
        yield "decoder.conv_out.conv.weight", (colours[1], channels[0], 3, 3, 3)
    else:
        t5 = of[part]
        words = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
        yield words, (t5["vocab_size"], t5["d_model"])
        query = "encoder.block.0.layer.0.SelfAttention.q.weight"
        yield query, (t5["num_heads"] * t5["d_kv"], t5["d_model"])


def _transformer_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    patch, channels = config["patch_size"], config["in_channels"]
    in_time = config.get("patch_size_t")
    if in_time:
        yield "patch_embed.proj.weight", (inner, channels * patch * patch * in_time)
    else:
        yield "patch_embed.proj.weight", (inner, channels, patch, patch)
    yield "patch_embed.text_proj.weight", (inner, config["text_embed_dim"])
    yield "time_embedding.linear_1.weight", (config["time_embed_dim"], inner)
    yield "transformer_blocks.0.attn1.to_q.weight", (inner, inner)
    yield "proj_out.weight", (patch * patch * (in_time or 1) * config["out_channels"], inner)
