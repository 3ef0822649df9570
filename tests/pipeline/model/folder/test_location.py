"""Where a checkpoint may lie, and what the answer is where none does."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
from huggingface_hub.utils import filter_repo_objects

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.checkpoint import open_checkpoint
from pipeline.model.folder.hub import HUB_FILES
from tests.checkpoint_stores import in_memory
from tests.small_models import change_json

LOADED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
NOT_LOADED = (
    "README.md",
    "assets/demo.mp4",
    "CogVideoX_5b_fp8.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.bin",
    "vae/diffusion_pytorch_model.onnx",
    "text_encoder/flax_model.msgpack",
)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def placed(folder: Path, place: str) -> str:
    """How a folder is named; in storage lies a copy of it."""
    if place == "storage":
        return in_memory(folder, f"{folder.parent.name}/{folder.name}")
    return str(folder) if place == "local" else f"file://{folder}"


def test_from_the_hub_comes_what_is_loaded() -> None:
    found = filter_repo_objects([*LOADED, *NOT_LOADED], allow_patterns=list(HUB_FILES))
    assert list(found) == list(LOADED)


def test_another_model_in_storage_is_refused_before_its_weights_are_copied(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(copy / "transformer/config.json", in_channels=32)
    uri, fs, copied = in_memory(copy, tmp_path.name), fsspec.filesystem("memory"), []
    get_file = fs.get_file
    monkeypatch.setattr(fs, "get_file", lambda a, b: (copied.append(a), get_file(a, b)))
    with pytest.raises(UnsupportedCheckpoint, match="image-to-video"):
        open_checkpoint(uri, cache=tmp_path / "cache")
    assert copied
    assert not [name for name in copied if name.endswith(".safetensors")]


def test_a_tilde_is_the_home_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    assert open_checkpoint("~/copy").path == copy
    with pytest.raises(UnsupportedCheckpoint, match="there is no such folder"):
        open_checkpoint("~/other")
    with pytest.raises(UnsupportedCheckpoint, match="there is no such folder"):
        open_checkpoint("~nobody-of-this-name/copy")


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("CogVideoX-5b", "zai-org/CogVideoX-5b"),
        ("cogvideox-2B", "zai-org/CogVideoX-2b"),
        ("/models/CogVideoX-1.5-5B", "zai-org/CogVideoX1.5-5B"),
    ],
)
def test_a_bare_name_gets_its_owner(uri: str, meant: str) -> None:
    with pytest.raises(
        UnsupportedCheckpoint, match=f"did you mean {meant} on the Hugging"
    ) as error:
        open_checkpoint(uri)
    assert "a local folder in diffusers format" in str(error.value)
    assert "s3://bucket/CogVideoX-5b" in str(error.value)


@pytest.mark.parametrize("uri", ["", "nowhere", "./no/such", "pkg://jobs.demo/no_folder"])
def test_nothing_is_refused_without_a_guess(uri: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="no such folder|has no folder") as error:
        open_checkpoint(uri)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("model.safetensors", "without the rest of a checkpoint; give the folder in diffusers"),
        ("cogvideox.ckpt", "without the rest of a checkpoint; give the folder in diffusers"),
        ("cogvideox-Q4.gguf", "GGUF.*give the checkpoint that was quantised"),
        ("CogVideoX-5b.zip", "an archive; unpack it"),
        ("pytorch_lora_weights.safetensors", "holds a LoRA .*fuse_lora"),
        ("model_index.json", "give the folder that it lies in"),
        ("notes.txt", "it is a file; `checkpoint` may be"),
    ],
)
@pytest.mark.parametrize("place", ["local", "URI of a local file", "storage"])
def test_a_file_is_named_for_what_it_is(name: str, answer: str, place: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", name)
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(f"{placed(folder, place)}/{name}")


OTHER_FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "the output of a job": (
        ("job.yaml", "results/part-0.parquet", "trajectories/0f/index.json"),
        "it is the output folder of a job; `checkpoint` is the model",
    ),
    "a LoRA of diffusers": (("pytorch_lora_weights.safetensors",), "holds a LoRA .*fuse_lora"),
    "a LoRA of peft": (
        ("adapter_config.json", "adapter_model.safetensors"),
        r"holds a LoRA \(adapter_config.json\)",
    ),
    "the original layout": (
        ("latest", "1000/mp_rank_00_model_states.pt"),
        r"original SAT layout \(1000/mp_rank_00_model_states.pt\); give the folder in diffusers",
    ),
    "the original layout, all of it": (
        ("transformer/1/mp_rank_00_model_states.pt", "vae/3d-vae.pt"),
        "original SAT layout",
    ),
    "files for llama.cpp": (("cogvideox-Q4_K_M.gguf", "README.md"), "quantised weights in GGUF"),
    "one file of weights": (("CogVideoX_5b_fp8.safetensors",), "without the rest of a checkpoint"),
    "one level too high": (
        ("5b/model_index.json", "5b/vae/config.json"),
        "one lies in it; give .*/5b$",
    ),
    "the Hub's own cache": (
        ("refs/main", "snapshots/8d6ea3f/model_index.json"),
        "one lies in it; give .*/snapshots/8d6ea3f$",
    ),
    "pictures": (("a.png", "b.png"), "lacks model_index.json; expected .*Found a.png, b.png"),
}


@pytest.mark.parametrize("what", OTHER_FOLDERS)
@pytest.mark.parametrize("place", ["local", "URI of a local file", "storage"])
def test_a_folder_of_something_else_is_named_for_what_it_is(
    what: str, place: str, tmp_path: Path
) -> None:
    names, answer = OTHER_FOLDERS[what]
    folder, cache = write(tmp_path / "folder", *names), tmp_path / "cache"
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(placed(folder, place), cache=cache)
    assert not cache.exists(), "nothing was copied"


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="lacks model_index.json; .*It is empty"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("place", ["local", "URI of a local file", "storage"])
def test_a_part_of_a_checkpoint_leads_to_the_checkpoint(copy: Path, place: str) -> None:
    uri = placed(copy, place)
    with pytest.raises(UnsupportedCheckpoint, match="the folder transformer of a") as error:
        open_checkpoint(f"{uri}/transformer/")
    assert str(error.value).endswith(f"give the checkpoint's folder: {uri}")


@pytest.mark.parametrize(
    ("uri", "answer"),
    [
        ("https://huggingface.co/zai-org/CogVideoX-5b", "give its name: zai-org/CogVideoX-5b$"),
        ("https://hf.co/zai-org/CogVideoX-5b/tree/main", "give its name: zai-org/CogVideoX-5b$"),
        ("s4://bucket/CogVideoX-5b", "the protocol s4:// is not known"),
    ],
)
def test_a_uri_of_another_kind_is_answered_without_a_network(uri: str, answer: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        open_checkpoint(uri)


def test_a_copy_from_storage_leaves_out_what_is_never_loaded(copy: Path, tmp_path: Path) -> None:
    write(copy, "README.md", "vae/diffusion_pytorch_model.bin", "assets/demo.mp4")
    place = f"{tmp_path.name}/extra"
    fsspec.filesystem("memory").put(str(copy), f"/{place}", recursive=True)
    info = open_checkpoint(f"memory://{place}", cache=tmp_path / "cache")
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
    copied = {p.relative_to(info.path).as_posix() for p in info.path.rglob("*") if p.is_file()}
    whole = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert whole - copied == {"README.md", "vae/diffusion_pytorch_model.bin", "assets/demo.mp4"}


def test_a_link_in_the_place_of_a_part_is_loaded_and_hashed(
    copy: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    whole = open_checkpoint(str(copy)).fingerprint
    shutil.move(copy / "transformer", tmp_path / "fine_tuned")
    (copy / "transformer").symlink_to(tmp_path / "fine_tuned")
    assert open_checkpoint(str(copy)).fingerprint == whole
    weights = tmp_path / "fine_tuned" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    assert open_checkpoint(str(copy)).fingerprint != whole
