"""The configuration files of a checkpoint: read, and refused where they are another model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.layout import FULL_WEIGHTS, INDEX, listed, unfinished_downloads
from pipeline.storage import from_json

TEXT_TO_VIDEO = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline")
MODELS = "zai-org/CogVideoX-2b, CogVideoX-5b or CogVideoX1.5-5B"

TRANSFORMER = "transformer/config.json"
VAE = "vae/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
TEXT_ENCODER = "text_encoder/config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"
FILES = (INDEX, TRANSFORMER, VAE, SCHEDULER, TEXT_ENCODER, TOKENIZER)

CLASSES = {TRANSFORMER: "CogVideoXTransformer3DModel", VAE: "AutoencoderKLCogVideoX"}


@dataclass(frozen=True)
class Configuration:
    """The parsed configuration files."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    tokenizer: Mapping[str, Any]


def read_configuration(folder: Path) -> Configuration:
    """Read and check the configuration files of a checkpoint.

    Raises:
        UnsupportedCheckpoint: a file is missing or cannot be read, it is another model, or the
            parts do not fit each other.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UnsupportedCheckpoint(
            f"it lacks {', '.join(missing)}; expected a CogVideoX folder in diffusers format, as "
            f"written by `CogVideoXPipeline.save_pretrained`; fetch what is "
            f"missing{download_hint(folder)}"
        )
    index, transformer, vae, scheduler, text_encoder, tokenizer = (
        read_json(folder, name) for name in FILES
    )
    _refuse_other_models(index, transformer)
    configs = {TRANSFORMER: transformer, VAE: vae, TEXT_ENCODER: text_encoder}
    for name, config in configs.items():
        _refuse_quantised(name, config)
        _refuse_other_classes(name, config)
        _refuse_other_files(name, config)
    _refuse_other_predictions(scheduler)
    for name, config in {**configs, SCHEDULER: scheduler}.items():
        _check_fields(name, config)
    _check_parts_fit(transformer, vae, text_encoder, tokenizer)
    return Configuration(transformer, vae, scheduler, text_encoder, tokenizer)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UnsupportedCheckpoint: it holds none.
    """
    try:
        content = from_json((folder / name).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UnsupportedCheckpoint(
            f"{name} is no JSON ({error}); copy the file again{download_hint(folder)}"
        ) from error
    if not isinstance(content, dict):
        raise UnsupportedCheckpoint(
            f"{name} holds a {type(content).__name__}; expected a JSON object. Copy the file again"
        )
    return content


def download_hint(folder: Path) -> str:
    """`; ...` where a download into the folder broke off, else nothing."""
    parts = unfinished_downloads(folder)
    return f"; a download did not finish ({listed(parts)}): start it again" if parts else ""


def _refuse_other_models(index: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    kind = index.get("_class_name", "unknown")
    image = (
        transformer.get("use_learned_positional_embeddings")
        or transformer.get("ofs_embed_dim")
        or transformer.get("in_channels") != transformer.get("out_channels")
    )
    if kind == "CogVideoXImageToVideoPipeline" or (kind in TEXT_TO_VIDEO and image):
        raise UnsupportedCheckpoint(
            f"it is an image-to-video model ({kind}); inversion needs a text-to-video model such "
            f"as {MODELS}"
        )
    if kind not in TEXT_TO_VIDEO:
        raise UnsupportedCheckpoint(f"it holds a {kind}; expected a CogVideoXPipeline ({MODELS})")


def _refuse_quantised(name: str, config: Mapping[str, Any]) -> None:
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise UnsupportedCheckpoint(f"{name}: its weights are quantised ({method}). {FULL_WEIGHTS}")


def _refuse_other_files(name: str, config: Mapping[str, Any]) -> None:
    if other := config.get("transformers_weights"):
        raise UnsupportedCheckpoint(
            f"{name} has transformers_weights {other!r}, which loads other weights than those that "
            "are checked; remove it and give the file its usual name"
        )


def _refuse_other_classes(name: str, config: Mapping[str, Any]) -> None:
    expected, key = CLASSES.get(name, "t5"), "_class_name" if name in CLASSES else "model_type"
    if config.get(key, expected) != expected:
        raise UnsupportedCheckpoint(
            f"{name} has {key} {config[key]!r}; expected {expected!r}, as in {MODELS}"
        )


def _refuse_other_predictions(scheduler: Mapping[str, Any]) -> None:
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts != "v_prediction":
        raise UnsupportedCheckpoint(
            f"its scheduler has prediction_type {predicts!r}; CogVideoX models have "
            f"'v_prediction'. Check {SCHEDULER}"
        )


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class _Kind:
    words: str
    holds: Callable[[Any], bool]


_COUNT = _Kind("a whole number of at least 1", _is_count)
_COUNTS = _Kind(
    "a list of whole numbers", lambda v: isinstance(v, list) and bool(v) and all(map(_is_count, v))
)
_NUMBER = _Kind("a number above 0", _is_number)
_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SPACINGS = ("linspace", "leading", "trailing")

FIELDS: dict[str, dict[str, _Kind]] = {
    TRANSFORMER: dict.fromkeys(
        (
            "num_attention_heads",
            "attention_head_dim",
            "in_channels",
            "out_channels",
            "time_embed_dim",
            "text_embed_dim",
            "num_layers",
            "sample_width",
            "sample_height",
            "sample_frames",
            "patch_size",
            "max_text_seq_length",
        ),
        _COUNT,
    ),
    VAE: {
        "block_out_channels": _COUNTS,
        "latent_channels": _COUNT,
        "temporal_compression_ratio": _COUNT,
        "scaling_factor": _NUMBER,
    },
    TEXT_ENCODER: dict.fromkeys(
        ("d_model", "d_kv", "num_heads", "num_layers", "vocab_size"), _COUNT
    ),
    SCHEDULER: {
        "num_train_timesteps": _COUNT,
        "beta_start": _NUMBER,
        "beta_end": _NUMBER,
        "beta_schedule": _Kind(f"one of {', '.join(_BETAS)}", _BETAS.__contains__),
        "timestep_spacing": _Kind(f"one of {', '.join(_SPACINGS)}", _SPACINGS.__contains__),
        "snr_shift_scale": _NUMBER,
        "rescale_betas_zero_snr": _FLAG,
        "set_alpha_to_one": _FLAG,
    },
}
"""What must stand in a file: diffusers fills the gaps with values of its own, which fit another
model, or nothing."""


def _check_fields(name: str, config: Mapping[str, Any]) -> None:
    if missing := [key for key in FIELDS[name] if config.get(key) is None]:
        raise UnsupportedCheckpoint(
            f"{name} lacks {', '.join(missing)}; expected all settings, as "
            f"`save_pretrained` writes them. Copy the file of the base model ({MODELS})"
        )
    for key, kind in FIELDS[name].items():
        if not kind.holds(config[key]):
            raise UnsupportedCheckpoint(
                f"{name}: {key} is {config[key]!r}; expected {kind.words}. Compare with the file "
                f"of the base model ({MODELS})"
            )


def _check_parts_fit(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    text_encoder: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> None:
    for (file, ours, key), (other, theirs, name) in (
        ((TEXT_ENCODER, text_encoder, "d_model"), (TRANSFORMER, transformer, "text_embed_dim")),
        ((VAE, vae, "latent_channels"), (TRANSFORMER, transformer, "in_channels")),
    ):
        if ours[key] != theirs[name]:
            raise UnsupportedCheckpoint(
                f"{file} has {key} {ours[key]} and {other} has {name} {theirs[name]}; expected the "
                "same number: the two parts are of different models. Take both from one"
            )
    longest, tokens = tokenizer.get("model_max_length"), transformer["max_text_seq_length"]
    if isinstance(longest, int) and longest < tokens:
        raise UnsupportedCheckpoint(
            f"{TOKENIZER} has model_max_length {longest} and {TRANSFORMER} has max_text_seq_length "
            f"{tokens}; expected at least as much. Take the tokenizer of the same model"
        )
