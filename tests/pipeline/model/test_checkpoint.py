"""Checkpoints: which family a folder holds, what is refused, and what names its weights."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.errors import StorageFailed, UnsupportedCheckpoint
from pipeline.model.checkpoint import (
    Family,
    load_text_encoder,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from pipeline.model.folder.fingerprint import samples
from tests.checkpoint_stores import in_memory
from tests.published_models import CLIPS, LATENTS, VIDEO_TOKENS, published
from tests.small_models import FAMILIES, FRAMES, HEIGHT, WIDTH, scheduler, write_json
from tests.small_models import change_json as change

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A 5b checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoints["5b"], tmp_path / "copy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_tells_its_family_and_sizes(checkpoints: dict[str, Path], family: str) -> None:
    info = open_checkpoint(str(checkpoints[family]))
    assert info.family == family
    assert (info.frames, info.height, info.width) == (FRAMES, HEIGHT, WIDTH)
    assert info.size_multiple == 16
    assert info.latent_frames_multiple == (2 if family == "1.5-5b" else 1)
    assert info.heads == (6 if family == "2b" else 8)
    assert info.text_tokens == (18 if family == "1.5-5b" else 20)
    assert info.scheduler["snr_shift_scale"] == (3.0 if family == "2b" else 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_checkpoint_has_its_real_shape(family: str) -> None:
    info = published(family)
    assert (info.frames, info.height, info.width) == CLIPS[family]
    assert info.latent_shape(*CLIPS[family]) == LATENTS[family]
    assert info.video_tokens(*CLIPS[family]) == VIDEO_TOKENS[family]
    assert info.text_tokens == 226


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [
        (300, 300, (768, 1360)),
        (96, 170, (768, 1360)),
        (170, 96, (1360, 768)),
        (60, 90, (480, 720)),
        (95, 300, (760, 2400)),
    ],
)
def test_a_1_5_checkpoint_has_its_cards_size_unless_its_grid_is_smaller(
    rows: int, columns: int, size: tuple[int, int]
) -> None:
    """Its two sample sizes bound the rotary grid; 300x300 is no size that it was trained for."""
    info = published("1.5-5b", sample_height=rows, sample_width=columns)
    assert (info.height, info.width) == size


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_the_sample_size_of_the_other_families_is_the_one_they_were_trained_for(
    family: Family,
) -> None:
    info = published(family, sample_height=300, sample_width=300)
    assert (info.height, info.width) == (2400, 2400)


@given(
    family=st.sampled_from(FAMILIES),
    chunks=st.integers(1, 40),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
)
def test_tokens_fill_the_latent_of_any_clip(
    family: str, chunks: int, rows: int, columns: int
) -> None:
    info = published(family)
    height, width = rows * info.size_multiple, columns * info.size_multiple
    frames, channels, latent_rows, latent_columns = info.latent_shape(4 * chunks + 1, height, width)
    multiple = info.latent_frames_multiple
    assert frames % multiple == 0
    assert 0 <= frames - (chunks + 1) < multiple
    assert (channels, latent_rows, latent_columns) == (16, height // 8, width // 8)
    tokens = info.video_tokens(4 * chunks + 1, height, width)
    assert tokens * multiple * 2 * 2 == frames * latent_rows * latent_columns


def test_every_part_loads_in_the_dtype_that_is_asked_for(checkpoint: Path) -> None:
    info = open_checkpoint(str(checkpoint))
    _, encoder = load_text_encoder(info, torch.bfloat16, "cpu")
    parts = (
        load_transformer(info, torch.bfloat16, "cpu"),
        load_vae(info, torch.bfloat16, "cpu"),
        encoder,
    )
    for part in parts:
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    assert parts[0].proj_out.weight.dtype == torch.bfloat16
    assert next(parts[1].parameters()).dtype == torch.bfloat16
    assert next(parts[2].parameters()).dtype == torch.bfloat16


def test_the_dtype_of_a_family_is_the_one_it_was_trained_in() -> None:
    for family in FAMILIES:
        info = published(family)
        assert info.dtype("auto", "cpu") == torch.float32
        assert info.dtype("auto", "cuda") == (torch.float16 if family == "2b" else torch.bfloat16)
        assert info.dtype("fp32", "cuda") == torch.float32
        assert info.dtype("bf16", "cpu") == torch.bfloat16


# What is refused


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"_class_name": "CogVideoXImageToVideoPipeline"}),
        ("transformer/config.json", {"in_channels": 32}),
        ("transformer/config.json", {"use_learned_positional_embeddings": True}),
        ("transformer/config.json", {"ofs_embed_dim": 512}),
    ],
)
def test_an_image_to_video_checkpoint_is_refused_by_name(
    copy: Path, file: str, values: dict[str, Any]
) -> None:
    change(copy / file, **values)
    with pytest.raises(UnsupportedCheckpoint, match=r"image-to-video.*text-to-video model"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "CogVideoXFunControlPipeline", None])
def test_another_pipeline_is_refused_with_what_was_expected(copy: Path, kind: str | None) -> None:
    change(copy / "model_index.json", _class_name=kind)
    with pytest.raises(UnsupportedCheckpoint, match=f"{kind or 'unknown'}; expected a CogVideoX"):
        open_checkpoint(str(copy))


def test_a_model_that_predicts_noise_is_refused(copy: Path) -> None:
    change(copy / "scheduler/scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(UnsupportedCheckpoint, match="'epsilon'"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize(
    "name", ["vae/config.json", "model_index.json", "text_encoder/config.json"]
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UnsupportedCheckpoint, match=f"lacks {name}; expected"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("uri", ["nowhere", "/no/such/folder", "pkg://no_such_package/folder"])
def test_a_folder_that_is_not_there_is_refused(uri: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=uri):
        open_checkpoint(uri)


def test_a_pointer_in_the_place_of_weights_is_refused_with_the_way_out(copy: Path) -> None:
    (copy / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 123\n")
    with pytest.raises(UnsupportedCheckpoint, match="git lfs pull"):
        open_checkpoint(str(copy))


# What names it


def flip_a_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def tensors_by_size(path: Path) -> list[tuple[int, int]]:
    """The first and the last byte of each tensor in a safetensors file, the smallest first."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    spans = [entry["data_offsets"] for entry in header.values()]
    places = [(start + first, start + last - 1) for first, last in spans]
    return sorted(places, key=lambda place: place[1] - place[0])


def flip_a_weight(path: Path) -> None:
    """The first value of the smallest tensor."""
    flip_a_byte(path, tensors_by_size(path)[0][0])


def flip_the_middle_of_a_large_tensor(path: Path) -> None:
    first, last = tensors_by_size(path)[-1]
    assert last - first > 4 * 4096, "it is read whole"
    flip_a_byte(path, (first + last) // 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a setting": lambda path: change(path / "transformer/config.json", norm_eps=1e-4),
    "the schedule": lambda path: change(path / "scheduler/scheduler_config.json", beta_end=0.013),
    "a value of a small tensor": lambda path: flip_a_weight(path / WEIGHTS),
    "the middle of a large tensor": lambda path: flip_the_middle_of_a_large_tensor(path / WEIGHTS),
    "the last weight": lambda path: flip_a_byte(path / WEIGHTS, -1),
    "the VAE": lambda path: flip_a_weight(path / "vae/diffusion_pytorch_model.safetensors"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_changes_with(copy: Path, what: str) -> None:
    before = open_checkpoint(str(copy)).fingerprint
    CHANGES[what](copy)
    assert open_checkpoint(str(copy)).fingerprint != before


def test_the_fingerprint_is_that_of_the_contents_wherever_they_lie(
    copy: Path, checkpoints: dict[str, Path]
) -> None:
    original = open_checkpoint(str(checkpoints["5b"])).fingerprint
    (copy / "README.md").write_text("notes")
    (copy / WEIGHTS).touch()
    assert open_checkpoint(str(copy)).fingerprint == original
    assert len(original) == 16
    assert len({open_checkpoint(str(path)).fingerprint for path in checkpoints.values()}) == 3


def test_the_fingerprint_of_the_embedded_checkpoint_is_the_one_of_older_versions() -> None:
    """Another one would make every trajectory and edit stale. Training it anew changes it."""
    assert open_checkpoint("embedded").fingerprint == "fe1edeed46392b77"


def test_the_fingerprint_takes_small_tensors_whole_and_the_middle_of_large_ones() -> None:
    values = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(5, dtype=np.uint8)}
    values["c"] = np.arange(5000, dtype=np.int16).view(np.uint8)
    data = save(values)
    header, *found = samples(io.BytesIO(data), len(data))
    assert data[8:].startswith(header)
    middle = (10000 - 4096) // 2
    wanted = [values["a"], values["b"], values["c"][middle : middle + 4096]]
    assert found == [sample.tobytes() for sample in wanted]


# Where it lies


def test_a_checkpoint_in_storage_is_copied_once(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, cache = in_memory(copy, f"{tmp_path.name}/checkpoint"), tmp_path / "cache"
    info = open_checkpoint(uri, cache=cache)
    assert info.fingerprint == open_checkpoint(str(copy)).fingerprint
    assert info.path.is_relative_to(cache)
    monkeypatch.setattr(fsspec.filesystem("memory"), "get_file", None)
    again = open_checkpoint(uri, cache=cache)
    assert again.path == info.path
    assert [p.name for p in (cache / "checkpoints").iterdir()] == [info.path.name]


def test_a_folder_of_this_machine_is_not_copied(copy: Path, tmp_path: Path) -> None:
    info = open_checkpoint(f"file://{copy}", cache=tmp_path / "cache")
    assert info.path == copy
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_that_changed_in_storage_is_copied_anew(copy: Path, tmp_path: Path) -> None:
    uri, cache = in_memory(copy, f"{tmp_path.name}/checkpoint"), tmp_path / "cache"
    first = open_checkpoint(uri, cache=cache)
    write_json(copy / "scheduler/scheduler_config.json", scheduler(beta_end=0.0125))
    name = "scheduler/scheduler_config.json"
    fsspec.filesystem("memory").put_file(str(copy / name), f"/{tmp_path.name}/checkpoint/{name}")
    second = open_checkpoint(uri, cache=cache)
    assert second.scheduler["beta_end"] == 0.0125
    assert second.path != first.path
    assert open_checkpoint(str(first.path)).fingerprint == first.fingerprint


def test_a_copy_that_breaks_off_leaves_nothing_that_looks_whole(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, cache = in_memory(copy, f"{tmp_path.name}/checkpoint"), tmp_path / "cache"
    fs = fsspec.filesystem("memory")
    get_file = fs.get_file

    def breaks(source: str, target: str) -> None:
        if source.endswith(WEIGHTS):
            Path(target).write_bytes(b"half")
            raise ConnectionError("gone")
        get_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "get_file", breaks)
        with pytest.raises(StorageFailed, match="gone"):
            open_checkpoint(uri, cache=cache)
    (left,) = (cache / "checkpoints").iterdir()
    assert not (left / WEIGHTS).exists()
    with pytest.raises(UnsupportedCheckpoint, match="transformer has no weights"):
        open_checkpoint(str(left))
    assert open_checkpoint(uri, cache=cache).path == left


@pytest.mark.parametrize("uri", ["memory://nothing/here", "file:///no/such/folder"])
def test_nothing_in_storage_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="there is no such folder"):
        open_checkpoint(uri, cache=tmp_path)


# What it costs


def test_a_checkpoint_is_opened_without_torch() -> None:
    program = (
        "import sys; from pipeline.model.checkpoint import open_checkpoint\n"
        "info = open_checkpoint('embedded')\n"
        "from pipeline.model.sizes import clip_size\n"
        "from pipeline import VideoSettings\n"
        "clip_size(VideoSettings(), info)\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'huggingface_hub'}\n"
        "print(info.family, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "5b []", done.stderr
