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

from pipeline.quality.fingerprints import TYPES, WrongModel, hub_commit

FRAMES_AT_ONCE = 32


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

        how = _check_type(location, TYPES["clip"])
        kinds = CLIPModel, AutoImageProcessor, AutoTokenizer
        model, processor, tokenizer = _open(location, how, *kinds)
        return cls(model.eval().to(device), processor, tokenizer)

    @torch.inference_mode()
    def score(
        self, source: Tensor, edit: Tensor, prompt: str, source_prompt: str | None
    ) -> dict[str, Any]:
        """How an edit agrees with its prompt, and its frames with each other.

        Args:
            source: the source's frames; read only with a `source_prompt`.

        Returns:
            `text`: mean over frames of the cosine between frame and prompt, which is cut to the
            model's length. `frames`: mean cosine between all pairs of frames, "frame consistency".
            Both as by Wu et al., "Tune-A-Video" (2023), there in percent. `direction`: the cosine
            between the change from source to edit, of the mean frame, and the change from the
            source's prompt to the edit's (Gal et al., "StyleGAN-NADA", 2022, as Brooks et al.,
            "InstructPix2Pix", 2023, use it); None without a source prompt, or with the same one.
        """
        images = self._images(edit)
        text = self._text(prompt)
        count = len(images)
        between = (images.sum(0).square().sum() - count) / max(1, count * (count - 1))
        return {
            "text": (images @ text).mean().item(),
            "direction": self._direction(source, images, text, source_prompt),
            "frames": between.item() if count > 1 else 1.0,
        }

    def _direction(
        self, source: Tensor, images: Tensor, text: Tensor, source_prompt: str | None
    ) -> float | None:
        if not source_prompt:
            return None
        asked = text - self._text(source_prompt)
        if asked.norm() < 1e-4:  # the same prompt asks for no change
            return None
        change = images.mean(0) - self._images(source).mean(0)
        return F.cosine_similarity(change, asked, dim=0).item()  # 0 where nothing changed

    def _images(self, frames: Tensor) -> Tensor:
        """Unit vectors of frames, [F, D]."""
        embed = self.model.get_image_features
        return F.normalize(_embed(self.model, self.processor, embed, frames), dim=-1)

    def _text(self, prompt: str) -> Tensor:
        """The unit vector of a prompt, [D]."""
        tokens = self.tokenizer(
            [prompt],
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        text = _features(self.model.get_text_features(**tokens.to(self.model.device)))
        return F.normalize(text.float().cpu(), dim=-1)[0]


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

        how = _check_type(location, TYPES["dino"])
        model, processor = _open(location, how, AutoModel, AutoImageProcessor)
        return cls(model.eval().to(device), processor)

    @torch.inference_mode()
    def score(self, source: Tensor, edit: Tensor) -> dict[str, Any]:
        """How much of its source an edit keeps.

        Args:
            source, edit: where the counts differ the shorter count is compared.

        Returns:
            `source`: mean over frames of the cosine between the class tokens of an edit's frame and
            its source's. `structure`: mean over frames of the Frobenius distance between the two
            matrices of cosines between patch tokens, over the number of patches: 0 to 2 (Tumanyan
            et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, with the last
            layer's tokens in the place of its keys, which transformers does not give).
        """
        count = min(len(source), len(edit))
        cosines, distances = [], []
        for one, other in zip(
            source[:count].split(FRAMES_AT_ONCE), edit[:count].split(FRAMES_AT_ONCE), strict=True
        ):
            tokens = _embed(self.model, self.processor, self._tokens, torch.cat([other, one]))
            ours, theirs = tokens[: len(one)], tokens[len(one) :]
            cosines.append(F.cosine_similarity(ours[:, 0], theirs[:, 0]))
            apart = self._similarities(ours) - self._similarities(theirs)
            distances.append(apart.square().mean((1, 2)).sqrt())
        return {
            "source": torch.cat(cosines).mean().item(),
            "structure": torch.cat(distances).mean().item(),
        }

    def _similarities(self, tokens: Tensor) -> Tensor:
        """Cosines between the patch tokens of each frame, [F, P, P]."""
        registers = getattr(self.model.config, "num_register_tokens", 0)
        patches = F.normalize(tokens[:, 1 + registers :], dim=-1)
        return patches @ patches.mT

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        """[F, 1 + registers + P, D]: the class token comes first."""
        tokens: Tensor = self.model(pixel_values=pixel_values).last_hidden_state
        return tokens


def _check_type(location: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Look whether a model is of a type that is wanted.

    Returns:
        How to open it: the commit that its fingerprint is of, where it is on the Hub.
    """
    from transformers import AutoConfig

    how: dict[str, Any] = {"trust_remote_code": False}
    if not Path(location).is_dir():
        how["revision"] = hub_commit(location)
    try:
        found = AutoConfig.from_pretrained(location, **how).model_type
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WrongModel(f"{location}: not a model that transformers can open: {first}") from error
    if found not in wanted:
        raise WrongModel(f"{location}: a model of type {found}; expected {' or '.join(wanted)}")
    return how


def _open(location: str, how: dict[str, Any], *kinds: Any) -> list[Any]:
    try:
        model, *others = kinds
        return [
            model.from_pretrained(location, use_safetensors=True, **how),  # never a pickle
            *(kind.from_pretrained(location, **how) for kind in others),
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
