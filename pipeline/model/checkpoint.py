"""Opens a CogVideoX checkpoint: a diffusers folder, local, at an fsspec URI or on the Hub.

What a job must know of a checkpoint before any weights are read (its family, sizes, heads, schedule
and fingerprint) is `CheckpointInfo`, made from the configuration files alone. The parts with
weights are loaded one by one where they are needed: the text encoder never shares a process with
the transformer.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from pipeline.errors import UnsupportedCheckpoint
from pipeline.settings import Precision
from pipeline.storage import split

if TYPE_CHECKING:
    import torch

Family = Literal["2b", "5b", "1.5-5b"]

CONFIGS = (
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
)
SAMPLE_BYTES = 4096
EMBEDDED = "pkg://jobs.demo/checkpoint"
"""The tiny checkpoint that ships with this package."""


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
        return DTYPES["fp16" if self.family == "2b" else "bf16"]


def open_checkpoint(uri: str, *, cache: str | Path | None = None) -> CheckpointInfo:
    """Read a checkpoint's configuration, fetching the folder first where it is not local.

    Args:
        uri: `embedded`, a local folder, an fsspec URI of a folder (`s3://bucket/CogVideoX-5b`), the
            name of a repository on the Hugging Face Hub (`zai-org/CogVideoX-5b`), or a folder that
            ships in a Python package (`pkg://package/folder`).
        cache: where folders from object storage are copied to; `~/.cache/retake` by default.

    Raises:
        UnsupportedCheckpoint: if there is no such folder, files are missing, or the model is not a
            CogVideoX text-to-video model.
    """
    uri = EMBEDDED if uri == "embedded" else uri
    path = _local_folder(uri, Path(cache) if cache else Path.home() / ".cache" / "retake")
    missing = [name for name in CONFIGS if not (path / name).is_file()]
    if missing:
        raise UnsupportedCheckpoint(
            f"checkpoint {uri!r} lacks {', '.join(missing)}; expected a CogVideoX folder in "
            "diffusers format, as written by `CogVideoXPipeline.save_pretrained`"
        )
    index, transformer, vae, scheduler, _ = (json.loads((path / c).read_text()) for c in CONFIGS)
    _refuse_other_models(uri, index, transformer, scheduler)
    return CheckpointInfo(
        path=path,
        family=_family(transformer),
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        fingerprint=_fingerprint(path),
    )


def load_transformer(info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The `CogVideoXTransformer3DModel`, in evaluation mode."""
    from diffusers import CogVideoXTransformer3DModel

    return _ready(
        CogVideoXTransformer3DModel.from_pretrained(info.path / "transformer", torch_dtype=dtype),
        device,
    )


def load_vae(info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The `AutoencoderKLCogVideoX`, in evaluation mode."""
    from diffusers import AutoencoderKLCogVideoX

    return _ready(
        AutoencoderKLCogVideoX.from_pretrained(info.path / "vae", torch_dtype=dtype), device
    )


def load_text_encoder(
    info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, Any]:
    """The tokenizer and the T5 encoder, in evaluation mode."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(info.path / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(info.path / "text_encoder", dtype=dtype)
    return tokenizer, _ready(encoder, device)


def _ready(module: Any, device: torch.device | str) -> Any:
    return module.to(device).eval().requires_grad_(False)


def _family(transformer: Mapping[str, Any]) -> Family:
    if transformer.get("patch_size_t"):
        return "1.5-5b"
    return "5b" if transformer.get("use_rotary_positional_embeddings") else "2b"


def _refuse_other_models(
    uri: str,
    index: Mapping[str, Any],
    transformer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> None:
    kind = index.get("_class_name", "unknown")
    text_to_video = {"CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"}
    image = (
        transformer.get("use_learned_positional_embeddings")
        or transformer.get("ofs_embed_dim")
        or transformer.get("in_channels") != transformer.get("out_channels")
    )
    if kind == "CogVideoXImageToVideoPipeline" or (kind in text_to_video and image):
        raise UnsupportedCheckpoint(
            f"checkpoint {uri!r} is an image-to-video model ({kind}); inversion needs a "
            "text-to-video model such as zai-org/CogVideoX-2b, CogVideoX-5b or CogVideoX1.5-5B"
        )
    if kind not in text_to_video:
        raise UnsupportedCheckpoint(
            f"checkpoint {uri!r} holds a {kind}; expected a CogVideoXPipeline "
            "(zai-org/CogVideoX-2b, CogVideoX-5b or CogVideoX1.5-5B)"
        )
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts != "v_prediction":
        raise UnsupportedCheckpoint(
            f"checkpoint {uri!r}: its scheduler has prediction_type {predicts!r}; CogVideoX models "
            "have 'v_prediction'. Check scheduler/scheduler_config.json"
        )


def _local_folder(uri: str, cache: Path) -> Path:
    if Path(uri).is_dir():
        return Path(uri)
    if uri.startswith("pkg://"):
        package, _, inside = uri.removeprefix("pkg://").partition("/")
        try:
            return Path(str(importlib.resources.files(package))) / inside
        except ModuleNotFoundError as error:
            raise UnsupportedCheckpoint(f"checkpoint {uri!r}: {error}") from error
    if "://" in uri:
        return _copy_from_storage(uri, cache)
    if uri.count("/") == 1 and not uri.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(uri, allow_patterns=["*.json", "*.safetensors", "*.model"])
            )
        except Exception as error:
            raise UnsupportedCheckpoint(
                f"checkpoint {uri!r} is no local folder and could not be had from the Hugging Face "
                f"Hub: {error}"
            ) from error
    raise UnsupportedCheckpoint(f"checkpoint {uri!r}: there is no such folder")


def _copy_from_storage(uri: str, cache: Path) -> Path:
    """Copy a folder from object storage once; a renamed folder is the sign that it is whole."""
    import os
    import tempfile

    fs, root = split(uri)
    try:
        listing = fs.find(root, detail=True)
    except FileNotFoundError:
        listing = {}
    if not listing:
        raise UnsupportedCheckpoint(f"checkpoint {uri!r}: there is no such folder")
    versions = ("size", "ETag", "etag", "mtime", "created")  # as S3, GCS, files and memory say it
    state = sorted((n, *(str(i.get(key)) for key in versions)) for n, i in listing.items())
    target = cache / "checkpoints" / hashlib.sha256(repr((uri, state)).encode()).hexdigest()[:16]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            for name in listing:
                local = copy / name[len(root) :].lstrip("/")
                local.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(local))
            try:
                os.rename(copy, target)
            except OSError:
                if not target.is_dir():  # another process finished the same copy first
                    raise
    return target


def _fingerprint(path: Path) -> str:
    """Hash the configurations whole, and of the weights a sample of every tensor.

    Reading 20 GB to name a checkpoint would cost minutes for each job. Fine-tuning moves nearly
    every value of each tensor that it trains, but it may train a few small ones only.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if not file.is_file() or file.suffix not in {".json", ".safetensors", ".model"}:
            continue
        size = file.stat().st_size
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors":
                digest.update(stream.read())
                continue
            try:
                for sample in _samples(stream, size):
                    digest.update(sample)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UnsupportedCheckpoint(
                    f"{file} is no safetensors file ({error}); where it is a pointer of Git LFS, "
                    "fetch the weights with `git lfs pull`"
                ) from error
    return digest.hexdigest()[:16]


def _samples(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, then the middle of each tensor, up to `SAMPLE_BYTES`."""
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length < size:
        raise ValueError("its first 8 bytes are not the length of a header")
    header = stream.read(length)
    yield header
    for name, entry in sorted(json.loads(header).items()):
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            middle = max(first, (first + last - SAMPLE_BYTES) // 2)
            stream.seek(8 + length + middle)
            yield stream.read(min(SAMPLE_BYTES, last - middle))
