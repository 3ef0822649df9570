"""Numbers for each edit that ask another model: does it show its prompt, does it keep its source?

The models are the user's own, folders or Hub names that transformers opens; none is needed to make
edits. Frames are uint8 [F, H, W, 3], RGB, throughout. All numbers are cosines, -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_AT_ONCE = 32
IMAGE_MODELS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")


class WrongModel(Exception):
    """A folder that does not hold the model that was asked for; the text says what it holds."""


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model (Radford et al., "Learning Transferable Visual Models", 2021).

    Args:
        model, processor, tokenizer: as transformers opens them.
    """

    model: Any
    processor: Any
    tokenizer: Any

    @classmethod
    def load(cls, location: str, device: str = "cpu") -> ClipModel:
        """Open a folder or Hub name.

        Raises:
            WrongModel: it cannot be opened, or is not a CLIP model.
        """
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        _check_type(location, ("clip",))
        model, processor, tokenizer = _open(location, CLIPModel, AutoImageProcessor, AutoTokenizer)
        return cls(model.eval().to(device), processor, tokenizer)

    @torch.inference_mode()
    def measure(self, frames: Tensor, prompt: str) -> dict[str, float]:
        """How an edit agrees with its prompt, and its frames with each other.

        Returns:
            `clip_text`: mean over frames of the cosine between frame and prompt, which is cut to
            the model's length. `clip_frames`: mean cosine between all pairs of frames, "frame
            consistency". Both as by Wu et al., "Tune-A-Video" (2023), there in percent.
        """
        embed = self.model.get_image_features
        images = F.normalize(_embed(self.model, self.processor, embed, frames), dim=-1)
        tokens = self.tokenizer(
            [prompt],
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        text = _features(self.model.get_text_features(**tokens.to(self.model.device)))
        text = F.normalize(text.float().cpu(), dim=-1)
        count = len(images)
        between = (images.sum(0).square().sum() - count) / max(1, count * (count - 1))
        return {
            "clip_text": (images @ text[0]).mean().item(),
            "clip_frames": between.item() if count > 1 else 1.0,
        }


@dataclass(frozen=True)
class ImageModel:
    """A self-supervised vision transformer: DINO, DINOv2 or DINOv3 (Caron et al., 2021).

    Args:
        model, processor: as transformers opens them.
    """

    model: Any
    processor: Any

    @classmethod
    def load(cls, location: str, device: str = "cpu") -> ImageModel:
        """Open a folder or Hub name.

        Raises:
            WrongModel: it cannot be opened, or is another kind of model.
        """
        from transformers import AutoImageProcessor, AutoModel

        _check_type(location, IMAGE_MODELS)
        model, processor = _open(location, AutoModel, AutoImageProcessor)
        return cls(model.eval().to(device), processor)

    @torch.inference_mode()
    def measure(self, frames: Tensor, source: Tensor) -> dict[str, float]:
        """How much of its source an edit keeps.

        Args:
            source: the source's frames; where the counts differ the shorter count is compared.

        Returns:
            `dino_source`: mean over frames of the cosine between the class tokens of an edit's
            frame and its source's.
        """
        count = min(len(frames), len(source))
        both = torch.cat([frames[:count], source[:count]])
        tokens = _embed(self.model, self.processor, self._class_tokens, both)
        return {"dino_source": F.cosine_similarity(tokens[:count], tokens[count:]).mean().item()}

    def _class_tokens(self, pixel_values: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixel_values).last_hidden_state[:, 0]
        return tokens


def _check_type(location: str, wanted: tuple[str, ...]) -> None:
    from transformers import AutoConfig

    if location.startswith(("/", ".")) and not Path(location).is_dir():
        raise WrongModel(
            f"{location}: there is no such folder; expected one that transformers opens, or "
            "a name on the Hugging Face Hub"
        )
    try:
        found = AutoConfig.from_pretrained(location, trust_remote_code=False).model_type
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WrongModel(f"{location}: not a model that transformers can open: {first}") from error
    if found not in wanted:
        raise WrongModel(f"{location}: a model of type {found}; expected {' or '.join(wanted)}")


def _open(location: str, *kinds: Any) -> list[Any]:
    try:
        model, *others = kinds
        return [
            model.from_pretrained(location, use_safetensors=True),  # never a pickle
            *(kind.from_pretrained(location, trust_remote_code=False) for kind in others),
        ]
    except (OSError, ValueError) as error:
        raise WrongModel(f"{location}: {error}") from error


def _embed(model: Any, processor: Any, features: Callable[..., Any], frames: Tensor) -> Tensor:
    """What `features` makes of frames, float32 [F, D] on the CPU."""
    parts = []
    for some in frames.split(FRAMES_AT_ONCE):
        pixels = processor(list(some.numpy()), return_tensors="pt")["pixel_values"]
        parts.append(_features(features(pixel_values=pixels.to(model.device))).float().cpu())
    return torch.cat(parts)


def _features(found: Tensor | Mapping[str, Tensor]) -> Tensor:
    # transformers 5 wraps the projected embedding in an output; 4 returned it bare.
    return found if isinstance(found, Tensor) else found["pooler_output"]
