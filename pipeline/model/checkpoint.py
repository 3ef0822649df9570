"""Opens a CogVideoX checkpoint: a diffusers folder, local, at an fsspec URI or on the Hub.

`open_checkpoint` finds the folder and checks all of it, without loading it: how is in
`pipeline/model/folder/`. What a job must know of it before any weights are read (its family, sizes,
heads, schedule and fingerprint) is `CheckpointInfo`. The parts with weights are loaded one by one
where they are needed: the text encoder never shares a process with the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import UnsupportedCheckpoint
from pipeline.imports import large_imports
from pipeline.model.folder.configuration import FILES as CONFIGURATION
from pipeline.model.folder.configuration import Configuration, read_configuration
from pipeline.model.folder.fingerprint import fingerprint
from pipeline.model.folder.layout import PARTS as PARTS
from pipeline.model.folder.layout import counted_files, listed, refuse_lora, refuse_pointers
from pipeline.model.folder.location import locate, pinned
from pipeline.model.folder.node import CheckpointPin as CheckpointPin
from pipeline.model.folder.node import NoRanges, Remote, cache_folder, fetch
from pipeline.model.folder.outline import outline
from pipeline.model.folder.vocabulary import check_vocabulary, encodes_words
from pipeline.model.folder.weights import STEMS, check_weights
from pipeline.model.footprint import Part
from pipeline.model.memory import DeviceMemory, check_room
from pipeline.settings import Precision, Weights

if TYPE_CHECKING:
    import torch

Family = Literal["2b", "5b", "1.5-5b"]

TRAINED_IN: Mapping[Family, Precision] = {"2b": "fp16", "5b": "bf16", "1.5-5b": "bf16"}
"""The precision that a family was trained in."""
SIZE_OF_1_5 = (768, 1360)
"""Height and width in pixels of CogVideoX1.5-5B's videos, from its model card. In its configuration
`sample_height` and `sample_width` are 300: they bound the grid of the rotary embedding."""
EDITING_PARTS = ("transformer", "vae", "scheduler")
"""What inverts and edits; prompts are encoded by another process."""
PROMPT_PARTS = ("text_encoder", "tokenizer")


@dataclass(frozen=True)
class CheckpointInfo:
    """What the configuration files of a checkpoint say.

    Args:
        path: the local folder.
        family: `2b` (no rotary embedding), `5b`, or `1.5-5b` (patches in time).
        transformer, vae, scheduler: the parsed configuration files.
        fingerprint: 16 hex digits; equal for equal configurations and weights, wherever they lie.
        pin: by which other processes open the same checkpoint.
        parts: those whose weights are in the folder.
    """

    path: Path
    family: Family
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    fingerprint: str
    pin: CheckpointPin | None = None
    parts: tuple[str, ...] = PARTS

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
        return self._size[0]

    @property
    def width(self) -> int:
        """The width in pixels that the checkpoint was trained for."""
        return self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        rows, columns = (
            int(self.transformer["sample_height"]),
            int(self.transformer["sample_width"]),
        )
        largest = rows * self.spatial_compression, columns * self.spatial_compression
        if self.family == "1.5-5b" and all(
            x >= y for x, y in zip(largest, SIZE_OF_1_5, strict=True)
        ):
            return SIZE_OF_1_5
        return largest

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


def open_checkpoint(
    checkpoint: str | Path | CheckpointPin | CheckpointInfo,
    *,
    parts: Collection[str] = PARTS,
    cache: str | Path | None = None,
) -> CheckpointInfo:
    """Find a checkpoint, check all of it and read its configuration.

    All of it is checked, without loading it: whoever opens a checkpoint can edit with it. That
    imports neither torch nor transformers, and reads of the weights what takes milliseconds.

    A folder in object storage or on the Hub is fetched once for all processes of a node; of its
    weights only those of the parts. The rest is checked where it lies.

    Args:
        checkpoint: `embedded`, a local folder, an fsspec URI of a folder
            (`s3://bucket/CogVideoX-5b`), the name of a repository on the Hugging Face Hub
            (`zai-org/CogVideoX-5b`), a folder that ships in a Python package
            (`pkg://package/folder`); or the pin of one that a driver has opened and checked, which
            is found at that version or refused. One that is open is returned.
        parts: what this process is going to load; none reads the configuration alone.
        cache: where folders from object storage are kept; by default `$RETAKE_CACHE`, or
            `~/.cache/retake`. Those from the Hub lie in the Hub's own cache (`$HF_HOME`).

    Raises:
        UnsupportedCheckpoint: there is no such folder, files are missing or not whole, the parts do
            not fit each other, the model is not a CogVideoX text-to-video model, there is no room
            for it, or it is not what the driver found.
    """
    if isinstance(checkpoint, CheckpointInfo):
        return checkpoint
    folder = Path(cache) if cache else cache_folder()
    pin = checkpoint if isinstance(checkpoint, CheckpointPin) else None
    uri = pin.uri if pin else str(checkpoint)
    try:
        place = pinned(pin, folder) if pin else locate(uri, folder)
        if isinstance(place, Path):
            return _open_local(place, uri, pin)
        return _open_pinned(place, pin, parts) if pin else _open_remote(place, parts)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"checkpoint {uri!r}: {error}") from error


def open_configuration(checkpoint: str, *, cache: str | Path | None = None) -> CheckpointInfo:
    """What the configuration files of a checkpoint say; its weights need not be there.

    Of a folder in object storage or on the Hub these files alone are fetched. The fingerprint is
    that of weights too, and empty here.

    Args:
        checkpoint, cache: as `open_checkpoint` takes them.

    Raises:
        UnsupportedCheckpoint: there is no such folder, or its configuration is another model's.
    """
    try:
        place = locate(checkpoint, Path(cache) if cache else cache_folder())
        if isinstance(place, Remote):
            fetch(place, [name for name in CONFIGURATION if name in place.sizes])
        path = place.folder if isinstance(place, Remote) else place
        pin = CheckpointPin(checkpoint, "", "", {})
        return replace(_info(path, read_configuration(path), pin, ()), pin=None)
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"checkpoint {checkpoint!r}: {error}") from error


def _open_local(path: Path, uri: str, pin: CheckpointPin | None) -> CheckpointInfo:
    info = _checked(path, CheckpointPin(uri, "", "", {}))
    if pin and info.fingerprint != pin.fingerprint:
        raise UnsupportedCheckpoint(
            f"{path} on this node holds another checkpoint ({info.fingerprint}) than on the "
            f"driver's node ({pin.fingerprint}). Put the same folder on every node, or give a URI "
            "that all of them read (s3://bucket/CogVideoX-5b)"
        )
    return info


def _open_remote(remote: Remote, parts: Collection[str]) -> CheckpointInfo:
    """Check all of a checkpoint, with the weights of some parts on this node."""
    pin = CheckpointPin(remote.uri, remote.version, "", remote.sizes)
    fetch(remote, remote.small)
    read_configuration(remote.folder)  # another model is refused before its weights are fetched
    if set(parts) >= set(STEMS) or not remote.missing(list(remote.sizes)):
        fetch(remote, list(remote.sizes))
        return _checked(remote.folder, pin)
    try:
        with outline(remote) as folder:
            try:
                info = _checked(folder, pin)
            except UnsupportedCheckpoint as error:
                raise UnsupportedCheckpoint(str(error).replace(str(folder), remote.uri)) from error
    except NoRanges:
        return _open_remote(remote, PARTS)
    fetch(remote, remote.of(parts))
    return replace(info, path=remote.folder, parts=tuple(parts))


def _open_pinned(remote: Remote, pin: CheckpointPin, parts: Collection[str]) -> CheckpointInfo:
    """What the driver has checked, with the weights of some parts on this node."""
    fetch(remote, remote.of(parts))
    config = read_configuration(remote.folder)
    check_weights(remote.folder, config, TRAINED_IN[_family(config.transformer)], parts)
    return _info(remote.folder, config, pin, tuple(parts))


def _checked(path: Path, pin: CheckpointPin) -> CheckpointInfo:
    """What the configuration of a whole checkpoint says; its fingerprint is put into the pin."""
    files = counted_files(path)
    if pin.sizes:  # the Hub's cache may hold more of a repository, which other programs fetched
        files = [file for file in files if file.relative_to(path).as_posix() in pin.sizes]
    refuse_pointers(path, files)
    refuse_lora(path)
    config = read_configuration(path)
    check_weights(path, config, TRAINED_IN[_family(config.transformer)])
    check_vocabulary(path, config)
    return _info(path, config, replace(pin, fingerprint=fingerprint(path, files)), PARTS)


def _info(
    path: Path, config: Configuration, pin: CheckpointPin, parts: tuple[str, ...]
) -> CheckpointInfo:
    return CheckpointInfo(
        path=path,
        family=_family(config.transformer),
        transformer=config.transformer,
        vae=config.vae,
        scheduler=config.scheduler,
        fingerprint=pin.fingerprint,
        pin=pin,
        parts=parts,
    )


def load_transformer(
    info: CheckpointInfo,
    dtype: torch.dtype,
    device: torch.device | str,
    weights: Weights = "native",
) -> Any:
    """The `CogVideoXTransformer3DModel`, in evaluation mode.

    Raises:
        MemoryError: the device has no room for it.
        ValueError: its weights cannot be had in fp8 here.
    """
    with large_imports():
        from diffusers import CogVideoXTransformer3DModel

    if weights == "native":
        return _load(CogVideoXTransformer3DModel, info, "transformer", device, torch_dtype=dtype)
    from pipeline.model.transformer.quantized import check_fp8, quantize_blocks

    check_fp8(dtype, device)
    return _load(
        CogVideoXTransformer3DModel,
        info,
        "transformer",
        device,
        lambda transformer: quantize_blocks(transformer, device),
        torch_dtype=dtype,
    )


def load_vae(info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The `AutoencoderKLCogVideoX`, in evaluation mode."""
    with large_imports():
        from diffusers import AutoencoderKLCogVideoX

    return _load(AutoencoderKLCogVideoX, info, "vae", device, torch_dtype=dtype)


def load_text_encoder(
    info: CheckpointInfo, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, Any]:
    """The tokenizer and the T5 encoder, in evaluation mode."""
    with large_imports():
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
    model: Any,
    info: CheckpointInfo,
    part: Part,
    device: torch.device | str,
    quantize: Callable[[Any], None] | None = None,
    **dtype: Any,
) -> Any:
    """A part with its weights; only from safetensors, and only where none is left random.

    Args:
        quantize: makes weights smaller, before the part is moved to the device.

    Raises:
        MemoryError: the device has no room for them.
    """
    if part not in info.parts:
        raise ValueError(f"the checkpoint was opened for {info.parts}, without {part}")
    values = next(iter(dtype.values())).itemsize
    weights: Weights = "fp8" if quantize else "native"
    check_room(info, part, values, DeviceMemory(device), device, weights)
    module, loaded = model.from_pretrained(
        info.path / part, use_safetensors=True, output_loading_info=True, **dtype
    )
    if missing := loaded["missing_keys"]:
        raise UnsupportedCheckpoint(
            f"{info.path / part}: its weights lack {listed(missing)}; expected all that "
            f"{model.__name__} has with this configuration. Fetch the weights again"
        )
    module = module.eval().requires_grad_(False)
    if quantize:
        quantize(module)
    return module.to(device)


def _family(transformer: Mapping[str, Any]) -> Family:
    if transformer.get("patch_size_t"):
        return "1.5-5b"
    return "5b" if transformer.get("use_rotary_positional_embeddings") else "2b"
