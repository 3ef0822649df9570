"""Opens a CogVideoX checkpoint: a diffusers folder, local, at an fsspec URI or on the Hub.

`open_checkpoint` finds the folder and checks all of it, without loading it: how is in
`pipeline/model/folder/`. What a job must know of it before any weights are read (its family, sizes,
heads, schedule and fingerprint) is `CheckpointInfo`. The parts with weights are loaded one by one
where they are needed: the text encoder never shares a process with the transformer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.configuration import read_configuration
from pipeline.model.folder.layout import counted_files, listed, refuse_lora, refuse_pointers
from pipeline.model.folder.location import local_folder
from pipeline.model.folder.vocabulary import check_vocabulary, encodes_words
from pipeline.model.folder.weights import check_weights, header_bytes
from pipeline.settings import Precision

if TYPE_CHECKING:
    import torch

Family = Literal["2b", "5b", "1.5-5b"]

TRAINED_IN: Mapping[Family, Precision] = {"2b": "fp16", "5b": "bf16", "1.5-5b": "bf16"}
"""The precision that a family was trained in."""
SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class CheckpointInfo:
    """What the configuration files of a checkpoint say.

    Args:
        path: the local folder.
        family: `2b` (no rotary embedding), `5b`, or `1.5-5b` (patches in time).
        transformer, vae, scheduler: the parsed configuration files.
        fingerprint: 16 hex digits; equal for equal configurations and weights, wherever they lie.
    """

    path: Path
    family: Family
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    fingerprint: str

    @property
    def spatial_compression(self) -> int:
        """Pixels for each latent along height and width."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def temporal_compression(self) -> int:
        """Frames for each latent frame, after the first."""
        return int(self.vae["temporal_compression_ratio"])

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.spatial_compression * int(self.transformer["patch_size"])

    @property
    def latent_frames_multiple(self) -> int:
        """Latent frames are padded to a multiple of this."""
        return int(self.transformer.get("patch_size_t") or 1)

    @property
    def height(self) -> int:
        """The height in pixels that the checkpoint was trained for."""
        return int(self.transformer["sample_height"]) * self.spatial_compression

    @property
    def width(self) -> int:
        """The width in pixels that the checkpoint was trained for."""
        return int(self.transformer["sample_width"]) * self.spatial_compression

    @property
    def frames(self) -> int:
        """The frame count that the checkpoint was trained for."""
        return int(self.transformer["sample_frames"])

    @property
    def heads(self) -> int:
        return int(self.transformer["num_attention_heads"])

    @property
    def text_tokens(self) -> int:
        return int(self.transformer["max_text_seq_length"])

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[F, C, H, W] of a clip's latents, frames padded to the model's multiple."""
        latent_frames = (frames - 1) // self.temporal_compression + 1
        latent_frames += -latent_frames % self.latent_frames_multiple
        scale = self.spatial_compression
        return latent_frames, int(self.vae["latent_channels"]), height // scale, width // scale

    def video_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens that the transformer makes of a clip, without those of the text."""
        latent_frames, _, rows, columns = self.latent_shape(frames, height, width)
        patch = int(self.transformer["patch_size"])
        return latent_frames // self.latent_frames_multiple * (rows // patch) * (columns // patch)

    def dtype(self, precision: Precision, device: torch.device | str) -> torch.dtype:
        """The dtype to run in: `auto` is float32 on CPU, else what the family was trained in.

        Raises:
            ValueError: a precision that is not known.
        """
        from pipeline.dtypes import DTYPES

        if precision != "auto":
            if precision not in DTYPES:
                known = ", ".join(get_args(Precision))
                raise ValueError(f"precision is {precision!r}; known are {known}")
            return DTYPES[precision]
        if str(device).startswith("cpu"):
            return DTYPES["fp32"]
        return DTYPES[TRAINED_IN[self.family]]


def open_checkpoint(uri: str, *, cache: str | Path | None = None) -> CheckpointInfo:
    """Find a checkpoint, check all of it and read its configuration.

    All of it is checked, without loading it: whoever opens a checkpoint can edit with it. That
    imports neither torch nor transformers, and reads of the weights what takes milliseconds.

    Args:
        uri: `embedded`, a local folder, an fsspec URI of a folder (`s3://bucket/CogVideoX-5b`), the
            name of a repository on the Hugging Face Hub (`zai-org/CogVideoX-5b`), or a folder that
            ships in a Python package (`pkg://package/folder`).
        cache: where folders from object storage are copied to; `~/.cache/retake` by default.

    Raises:
        UnsupportedCheckpoint: there is no such folder, files are missing or not whole, the parts do
            not fit each other, or the model is not a CogVideoX text-to-video model.
    """
    try:
        path = local_folder(uri, Path(cache) if cache else Path.home() / ".cache" / "retake")
        return _checked(path)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"checkpoint {uri!r}: {error}") from error


def _checked(path: Path) -> CheckpointInfo:
    """What the configuration of a whole checkpoint says."""
    files = counted_files(path)
    refuse_pointers(path, files)
    refuse_lora(path)
    config = read_configuration(path)
    family = _family(config.transformer)
    check_weights(path, config, TRAINED_IN[family])
    check_vocabulary(path, config)
    return CheckpointInfo(
        path=path,
        family=family,
        transformer=config.transformer,
        vae=config.vae,
        scheduler=config.scheduler,
        fingerprint=_fingerprint(path, files),
    )


def load_transformer(info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The `CogVideoXTransformer3DModel`, in evaluation mode."""
    from diffusers import CogVideoXTransformer3DModel

    return _load(CogVideoXTransformer3DModel, info, "transformer", device, torch_dtype=dtype)


def load_vae(info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The `AutoencoderKLCogVideoX`, in evaluation mode."""
    from diffusers import AutoencoderKLCogVideoX

    return _load(AutoencoderKLCogVideoX, info, "vae", device, torch_dtype=dtype)


def load_text_encoder(
    info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, Any]:
    """The tokenizer and the T5 encoder, in evaluation mode."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(info.path / "tokenizer")
    if not encodes_words(
        tokenizer.get_vocab(),
        lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        tokenizer.unk_token_id,
    ):
        raise UnsupportedCheckpoint(
            f"{info.path / 'tokenizer'}: transformers makes of it a tokenizer without words; every "
            "prompt would be encoded as <unk>. Take the tokenizer folder of zai-org/CogVideoX-5b"
        )
    return tokenizer, _load(T5EncoderModel, info, "text_encoder", device, dtype=dtype)


def _load(
    model: Any, info: CheckpointInfo, part: str, device: torch.device | str, **dtype: Any
) -> Any:
    """A part with its weights; only from safetensors, and only where none is left random."""
    module, loaded = model.from_pretrained(
        info.path / part, use_safetensors=True, output_loading_info=True, **dtype
    )
    if missing := loaded["missing_keys"]:
        raise UnsupportedCheckpoint(
            f"{info.path / part}: its weights lack {listed(missing)}; expected all that "
            f"{model.__name__} has with this configuration. Fetch the weights again"
        )
    return module.to(device).eval().requires_grad_(False)


def _family(transformer: Mapping[str, Any]) -> Family:
    if transformer.get("patch_size_t"):
        return "1.5-5b"
    return "5b" if transformer.get("use_rotary_positional_embeddings") else "2b"


def _fingerprint(path: Path, files: Iterable[Path]) -> str:
    """Hash the configurations whole, and of the weights a sample of every tensor.

    Reading 20 GB to name a checkpoint would cost minutes for each job. Fine-tuning moves nearly
    every value of each tensor that it trains, but it may train a few small ones only.
    """
    digest = hashlib.sha256()
    for file in files:
        name, size = file.relative_to(path), file.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors":
                digest.update(stream.read())
                continue
            try:
                for sample in _samples(stream, size):
                    digest.update(sample)
            except (ValueError, KeyError, TypeError, AttributeError):
                # What is loaded was checked: this file is an extra one. Its beginning names it.
                stream.seek(0)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _samples(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, then the middle of each tensor, up to `SAMPLE_BYTES`."""
    header = header_bytes(stream, size)
    yield header
    for name, entry in sorted(json.loads(header).items()):
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            middle = max(first, (first + last - SAMPLE_BYTES) // 2)
            stream.seek(8 + len(header) + middle)
            yield stream.read(min(SAMPLE_BYTES, last - middle))
