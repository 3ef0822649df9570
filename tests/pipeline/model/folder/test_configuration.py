"""The configuration files: whole, of a CogVideoX model, and of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.checkpoint import open_checkpoint
from pipeline.model.folder.configuration import FILES, read_configuration
from tests.small_models import change_json, write_json

TRANSFORMER = "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


def refused(folder: Path, answer: str) -> str:
    with pytest.raises(UnsupportedCheckpoint, match=answer) as error:
        open_checkpoint(str(folder))
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "is no JSON .*copy the file again"),
        ('{"_class_name": "Cog', "is no JSON .*copy the file again"),
        ("<!doctype html><title>Sign in</title>", "is no JSON .*copy the file again"),
        ("[]", "holds a list; expected a JSON object"),
        ("null", "holds a NoneType; expected a JSON object"),
    ],
)
def test_a_file_that_is_no_object_is_named(copy: Path, name: str, text: str, answer: str) -> None:
    (copy / name).write_text(text)
    refused(copy, f"{name} {answer}")


def test_a_file_that_is_no_text_is_named(copy: Path) -> None:
    (copy / TRANSFORMER).write_bytes(b"\xff\xfe\x00{}")
    refused(copy, f"{TRANSFORMER} is no JSON")


def test_all_missing_files_are_named_at_once(copy: Path) -> None:
    for name in ("vae/config.json", SCHEDULER):
        (copy / name).unlink()
    refused(copy, f"lacks vae/config.json, {SCHEDULER}; expected a CogVideoX folder")


def test_all_pointers_are_named_at_once(copy: Path) -> None:
    names = (
        TRANSFORMER,
        "tokenizer/spiece.model",
        "vae/diffusion_pytorch_model.safetensors",
    )
    for name in names:
        (copy / name).write_text(POINTER)
    text = refused(copy, "each is a pointer of Git LFS, not the file; .* `git lfs pull`")
    assert all(name in text for name in names)


def test_a_pointer_that_nothing_loads_does_not_matter(copy: Path) -> None:
    (copy / "original").mkdir()
    (copy / "original/weights.safetensors").write_text(POINTER)
    assert open_checkpoint(str(copy)).family == "5b"


def test_a_download_that_broke_off_is_seen(copy: Path) -> None:
    (copy / "vae/config.json").unlink()
    parts = copy / ".cache/huggingface/download/vae"
    parts.mkdir(parents=True)
    (parts / "x8Jq.4d7a.incomplete").touch()
    refused(copy, r"a download did not finish \(x8Jq.4d7a.incomplete\): start it again")


@pytest.mark.parametrize(
    ("name", "values", "answer"),
    [
        (
            "text_encoder/config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"its weights are quantised \(bitsandbytes\).*give the checkpoint that was quantised",
        ),
        (TRANSFORMER, {"quantization_config": {"quant_method": "torchao"}}, "quantised .torchao."),
        (TRANSFORMER, {"_class_name": "WanTransformer3DModel"}, "expected 'CogVideoXTransformer3D"),
        ("vae/config.json", {"_class_name": "AutoencoderKLWan"}, "expected 'AutoencoderKLCog"),
        ("text_encoder/config.json", {"transformers_weights": "b.safetensors"}, "'b.safetensors'"),
        ("text_encoder/config.json", {"model_type": "umt5"}, "'umt5'; expected 't5'"),
    ],
)
def test_weights_of_another_kind_are_refused_by_name(
    copy: Path, name: str, values: dict[str, Any], answer: str
) -> None:
    change_json(copy / name, **values)
    assert name in refused(copy, answer)


@pytest.mark.parametrize(
    "name",
    ["pytorch_lora_weights.safetensors", "transformer/adapter_config.json"],
)
def test_a_lora_in_a_checkpoint_is_not_left_out_silently(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    refused(copy, f"{name} is a LoRA, which is not loaded.*fuse_lora")


def test_a_scheduler_without_fields_is_refused(copy: Path) -> None:
    write_json(copy / SCHEDULER, {})
    refused(copy, "prediction_type 'epsilon'.*Check scheduler/scheduler_config.json")
    write_json(copy / SCHEDULER, {"prediction_type": "v_prediction"})
    text = refused(copy, f"{SCHEDULER} lacks num_train_timesteps, beta_start")
    assert "snr_shift_scale" in text


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        (SCHEDULER, "snr_shift_scale", "1", "a number above 0"),
        (SCHEDULER, "beta_schedule", "cosine", "one of linear, scaled_linear"),
        (SCHEDULER, "timestep_spacing", "last", "one of linspace, leading, trailing"),
        (SCHEDULER, "rescale_betas_zero_snr", 1, "true or false"),
        (SCHEDULER, "num_train_timesteps", 0, "a whole number of at least 1"),
        (TRANSFORMER, "num_layers", "2", "a whole number of at least 1"),
        (TRANSFORMER, "sample_frames", 2.5, "a whole number of at least 1"),
        (TRANSFORMER, "patch_size", True, "a whole number of at least 1"),
        ("vae/config.json", "block_out_channels", [], "a list of whole numbers"),
        ("vae/config.json", "scaling_factor", 0, "a number above 0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    copy: Path, name: str, key: str, value: Any, expected: str
) -> None:
    change_json(copy / name, **{key: value})
    text = refused(copy, f"{name}: {key} is ")
    assert f"{key} is {value!r}; expected {expected}" in text


@pytest.mark.parametrize("key", ["num_layers", "sample_height", "max_text_seq_length"])
def test_a_setting_that_is_missing_is_named(copy: Path, key: str) -> None:
    change_json(copy / TRANSFORMER, **{key: None})
    refused(copy, f"{TRANSFORMER} lacks {key}; expected all settings")


@pytest.mark.parametrize(
    ("name", "key", "value", "answer"),
    [
        ("text_encoder/config.json", "d_model", 4096, "d_model 4096 .* text_embed_dim 32"),
        ("vae/config.json", "latent_channels", 4, "latent_channels 4 .* in_channels 16"),
        ("tokenizer/tokenizer_config.json", "model_max_length", 19, "19 .*max_text_seq_length 20"),
    ],
)
def test_parts_of_two_models_are_refused(
    copy: Path, name: str, key: str, value: int, answer: str
) -> None:
    change_json(copy / name, **{key: value})
    refused(copy, answer)


def test_a_longer_tokenizer_and_a_whole_number_with_a_point_are_fine(copy: Path) -> None:
    change_json(copy / "tokenizer/tokenizer_config.json", model_max_length=10**30)
    change_json(copy / "vae/config.json", temporal_compression_ratio=4.0)
    assert read_configuration(copy).vae["temporal_compression_ratio"] == 4
