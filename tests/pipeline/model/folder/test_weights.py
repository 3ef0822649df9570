"""The weights: all files there and whole, all tensors there and of the configured sizes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.checkpoint import (
    load_text_encoder,
    load_transformer,
    open_checkpoint,
)
from pipeline.model.folder.weights import STEMS
from tests.published_models import TRANSFORMERS
from tests.small_models import FAMILIES, change_json, write_json

PARTS = tuple(STEMS)


def weights(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors"


def refused(folder: Path, answer: str) -> str:
    with pytest.raises(UnsupportedCheckpoint, match=answer) as error:
        open_checkpoint(str(folder))
    return str(error.value)


def shard(folder: Path, part: str) -> list[Path]:
    """Write a part's weights anew as two shards with an index, as `save_pretrained` does."""
    whole = weights(folder, part)
    tensors = load_file(whole)
    names, shards, places = sorted(tensors), [], {}
    for i, held in enumerate((names[::2], names[1::2])):
        shards.append(whole.with_name(f"{STEMS[part]}-0000{i + 1}-of-00002.safetensors"))
        save_file({name: tensors[name] for name in held}, shards[-1], metadata={"format": "pt"})
        places |= dict.fromkeys(held, shards[-1].name)
    write_json(index(folder, part), {"metadata": {"total_size": 1}, "weight_map": places})
    whole.unlink()
    return shards


def index(folder: Path, part: str) -> Path:
    return folder / part / f"{STEMS[part]}.safetensors.index.json"


def rewrite(
    folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
) -> None:
    """Write a part's weights anew, changed."""
    file = weights(folder, part)
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(dict(change(tensors)), file, metadata={"format": "pt"})


# Whole files


@pytest.mark.parametrize("which", [*FAMILIES, "embedded"])
def test_a_whole_checkpoint_fits_its_configuration(
    checkpoints: dict[str, Path], which: str
) -> None:
    assert open_checkpoint(str(checkpoints.get(which, which))).family in FAMILIES


@pytest.mark.parametrize("part", PARTS)
def test_a_part_in_shards_is_the_same_part(copy: Path, part: str) -> None:
    before = open_checkpoint(str(copy))
    shard(copy, part)
    after = open_checkpoint(str(copy))
    assert after.fingerprint != before.fingerprint
    assert after.transformer == before.transformer


def test_shards_load(copy: Path) -> None:
    expected = load_file(weights(copy, "transformer"))
    shard(copy, "transformer")
    shard(copy, "text_encoder")
    info = open_checkpoint(str(copy))
    loaded = load_transformer(info, torch.float32, "cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    load_text_encoder(info, torch.float32, "cpu")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_shard_is_named(copy: Path, part: str) -> None:
    second = shard(copy, part)[1]
    second.unlink()
    refused(copy, f"{part} lacks 1 of its 2 files of weights: {second.name}, which {part}/")


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_breaks_off_is_named_with_its_length(copy: Path, part: str) -> None:
    file = weights(copy, part)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    refused(copy, f"{part}/{file.name} is not whole: it has {size - 100:,} bytes; .* {size:,}")


@pytest.mark.parametrize("kept", [0, 5, 200])
def test_a_file_that_breaks_off_in_its_header_is_named(copy: Path, kept: int) -> None:
    file = weights(copy, "vae")
    file.write_bytes(file.read_bytes()[:kept])
    refused(copy, rf"vae/{file.name} \({kept} bytes\) is no safetensors file: .*Fetch it again")


def test_a_shard_that_breaks_off_is_named(copy: Path) -> None:
    first = shard(copy, "text_encoder")[0]
    first.write_bytes(first.read_bytes()[:-1])
    refused(copy, f"text_encoder/{first.name} is not whole")


def test_a_file_that_goes_on_after_its_end_is_named(copy: Path) -> None:
    with weights(copy, "vae").open("ab") as file:
        file.write(b"more")
    refused(copy, "vae/diffusion_pytorch_model.safetensors does not end where it should")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"metadata": {}}, "lacks weight_map or metadata"),
        ({"weight_map": {"a": "b.safetensors"}}, "lacks weight_map or metadata"),
        ({"metadata": {}, "weight_map": {"a": "../b.safetensors"}}, "expected plain names"),
        ({"metadata": {}, "weight_map": []}, "lacks weight_map or metadata"),
    ],
)
def test_an_index_that_is_none_is_named(copy: Path, content: dict[str, Any], answer: str) -> None:
    shard(copy, "transformer")
    write_json(index(copy, "transformer"), content)
    refused(copy, f"transformer/diffusion_pytorch_model.safetensors.index.json .*{answer}")


def test_an_index_of_other_files_is_refused(copy: Path) -> None:
    shard(copy, "transformer")
    content = json.loads(index(copy, "transformer").read_text())
    content["weight_map"]["extra.weight"] = "diffusion_pytorch_model-00001-of-00002.safetensors"
    write_json(index(copy, "transformer"), content)
    refused(copy, "index and files are of different models|not in its files: extra.weight")


def test_what_the_libraries_look_for_first_is_what_is_checked(copy: Path) -> None:
    """diffusers takes the index where there are both, transformers the one file."""
    for part, first in (("transformer", "index"), ("text_encoder", "file")):
        data = weights(copy, part).read_bytes()
        shards = shard(copy, part)
        weights(copy, part).write_bytes(data)
        spoilt = weights(copy, part) if first == "index" else shards[0]
        spoilt.write_bytes(b"")
    info = open_checkpoint(str(copy))
    load_transformer(info, torch.float32, "cpu")
    load_text_encoder(info, torch.float32, "cpu")


# Weights that are not loaded


@pytest.mark.parametrize("part", PARTS)
def test_a_variant_alone_is_refused_with_the_name_that_it_needs(copy: Path, part: str) -> None:
    file = weights(copy, part)
    variant = file.rename(file.with_name(f"{STEMS[part]}.fp16.safetensors"))
    text = refused(copy, f"{part} has only the variant 'fp16' of its weights .{variant.name}.")
    assert f"`mv {variant} {file}`" in text
    variant.rename(file)
    open_checkpoint(str(copy))


def test_a_variant_in_shards_needs_only_its_index_renamed(copy: Path) -> None:
    shards, places = shard(copy, "transformer"), {}
    content = json.loads(index(copy, "transformer").read_text())
    for file in shards:
        name = file.name.replace("model-", "model.fp16-")
        file.rename(file.with_name(name))
        places |= {t: name for t, f in content["weight_map"].items() if f == file.name}
    right = index(copy, "transformer")
    right.unlink()
    variant = right.with_name("diffusion_pytorch_model.safetensors.index.fp16.json")
    write_json(variant, {"metadata": {}, "weight_map": places})
    assert f"`mv {variant} {right}`" in refused(copy, "the variant 'fp16'")
    variant.rename(right)
    load_transformer(open_checkpoint(str(copy)), torch.float32, "cpu")


def test_a_variant_beside_the_weights_does_not_matter(copy: Path) -> None:
    file = weights(copy, "vae")
    file.with_name(f"{STEMS['vae']}.fp16.safetensors").write_bytes(b"not even weights")
    for name in ("model.onnx", "flax_model.msgpack", "pytorch_model.bin"):
        (copy / "text_encoder" / name).touch()
    assert open_checkpoint(str(copy)).family == "5b"


PICKLES = {"text_encoder": "pytorch_model.bin"}


@pytest.mark.parametrize("part", PARTS)
def test_pickles_are_refused_with_the_command_that_converts_them(copy: Path, part: str) -> None:
    file = weights(copy, part)
    name = PICKLES.get(part, f"{STEMS[part]}.bin")
    torch.save(load_file(file), file.with_name(name))
    file.unlink()
    text = refused(copy, rf"{part} has its weights as pickles \({name}\).*are not loaded")
    assert (
        f'`python -c "import torch; from diffusers import CogVideoXPipeline as P; '
        f"P.from_pretrained('{copy}', torch_dtype=torch.bfloat16)"
        f".save_pretrained('{copy}-safetensors')\"`" in text
    )


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ((), "transformer has no weights; expected transformer/diffusion_pytorch_model.safe"),
        (("other.safetensors",), "found other.safetensors, which nothing loads"),
        (("cogvideox-Q4.gguf",), "quantised weights in GGUF format .cogvideox-Q4.gguf."),
    ],
)
def test_a_part_without_weights_is_named(copy: Path, found: tuple[str, ...], answer: str) -> None:
    weights(copy, "transformer").unlink()
    for name in found:
        (copy / "transformer" / name).touch()
    refused(copy, answer)


def test_weights_that_the_hub_has_in_another_form_are_explained(copy: Path, tmp_path: Path) -> None:
    for parent, explained in (("snapshots", True), ("a-folder", False), ("z-folder", False)):
        folder = Path(shutil.copytree(copy, tmp_path / parent / "8d6ea3f"))
        weights(folder, "vae").unlink()
        assert ("`hf download NAME" in refused(folder, "vae has no weights")) == explained


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_tensors_are_refused(copy: Path, dtype: torch.dtype) -> None:
    name = "transformer_blocks.1.attn1.to_q.weight"
    rewrite(copy, "transformer", lambda t: {**t, name: t[name].to(dtype)})
    refused(copy, rf"its weights are quantised \({name} is \w+\)\. Retake needs")


def test_a_lora_that_is_not_fused_is_refused(copy: Path) -> None:
    name = "transformer_blocks.1.attn1.to_q"
    change = {f"{name}.lora_A.default.weight": torch.zeros(4, 128)}
    rewrite(copy, "transformer", lambda t: {**t, **change})
    refused(copy, f"its weights hold a LoRA .{name}.lora_A.default.weight.*fuse_lora")


# Tensors


@pytest.mark.parametrize(
    ("file", "key", "value", "tensor"),
    [
        ("transformer/config.json", "attention_head_dim", 64, "patch_embed.proj.weight"),
        ("transformer/config.json", "time_embed_dim", 512, "time_embedding.linear_1.weight"),
        ("transformer/config.json", "patch_size_t", 2, "patch_embed.proj.weight"),
        ("transformer/config.json", "patch_size", 1, "patch_embed.proj.weight"),
        ("vae/config.json", "block_out_channels", [8, 8, 8, 16], "decoder.conv_in.conv.weight"),
        ("text_encoder/config.json", "vocab_size", 500, "shared.weight"),
        ("text_encoder/config.json", "d_kv", 16, "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ],
)
def test_weights_of_other_sizes_than_configured_are_refused(
    copy: Path, file: str, key: str, value: Any, tensor: str
) -> None:
    change_json(copy / file, **{key: value})
    text = refused(copy, "of different models: take both from one")
    assert f"the tensor {tensor} has the shape (" in text
    assert f"; {file} says (" in text


@pytest.mark.parametrize(
    ("file", "key", "value", "answer"),
    [
        ("transformer/config.json", "num_layers", 1, r"2 blocks transformer_blocks.\*; .* says 1"),
        ("transformer/config.json", "num_layers", 42, "says 42 .num_layers."),
        ("text_encoder/config.json", "num_layers", 24, r"1 blocks encoder.block.\*; .* says 24"),
        ("vae/config.json", "block_out_channels", [8, 8, 8], "4 blocks encoder.down_blocks"),
    ],
)
def test_more_or_fewer_blocks_than_configured_are_refused(
    copy: Path, file: str, key: str, value: Any, answer: str
) -> None:
    """diffusers would draw the missing ones at random, and leave out the others."""
    change_json(copy / file, **{key: value})
    refused(copy, answer)


@pytest.mark.parametrize(
    "name", ["transformer_blocks.1.ff.net.2.weight", "transformer_blocks.0.norm1.linear.bias"]
)
def test_a_tensor_that_one_block_lacks_is_named(copy: Path, name: str) -> None:
    rewrite(copy, "transformer", lambda t: {n: tensor for n, tensor in t.items() if n != name})
    refused(copy, f"transformer: its weights lack {name}, which other blocks have")


def test_a_tensor_that_no_block_has_is_missed_when_it_is_loaded(copy: Path) -> None:
    ending = "attn1.to_v.weight"
    rewrite(copy, "transformer", lambda t: {n: v for n, v in t.items() if not n.endswith(ending)})
    info = open_checkpoint(str(copy))
    with pytest.raises(UnsupportedCheckpoint, match=f"lack transformer_blocks.0.{ending}, "):
        load_transformer(info, torch.float32, "cpu")


# Time


def sparse(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 tensors whose values take no place on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def test_a_published_size_is_checked_in_two_seconds(copy: Path) -> None:
    """The transformer of 5b, 11 GB in two shards, in files without values."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**TRANSFORMERS["5b"])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights(copy, "transformer").unlink()
    stem, places, names = STEMS["transformer"], {}, list(shapes)
    for i, held in enumerate((names[:600], names[600:])):
        name = f"{stem}-0000{i + 1}-of-00002.safetensors"
        sparse(copy / "transformer" / name, {tensor: shapes[tensor] for tensor in held})
        places |= dict.fromkeys(held, name)
    write_json(index(copy, "transformer"), {"metadata": {}, "weight_map": places})
    change_json(copy / "transformer/config.json", **TRANSFORMERS["5b"])
    change_json(copy / "transformer/config.json", text_embed_dim=32, max_text_seq_length=20)
    proj = f"{stem}-00001-of-00002.safetensors"
    sparse(
        copy / "transformer" / proj,
        {n: shapes[n] for n in names[:600]} | {"patch_embed.text_proj.weight": (3072, 32)},
    )
    started = time.perf_counter()
    assert open_checkpoint(str(copy)).heads == 48
    taken_s = time.perf_counter() - started
    print(f"{1e3 * taken_s:.0f} ms")
    assert taken_s < 2
