"""What a rank of the prompts stage does: embeddings that storage does not hold yet.

It needs transformers and no diffusers, whose import would cost it a second more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.ranks.messages import EncodePrompts
from pipeline.model.checkpoint import (
    PROMPT_PARTS,
    CheckpointPin,
    load_text_encoder,
    open_checkpoint,
)
from pipeline.model.prompts import PromptStore, text_precision
from pipeline.model.text_encoder import encode_prompt
from pipeline.timing import OnProgress, unheard

if TYPE_CHECKING:
    import torch

    from pipeline.settings import EditingSettings


def prompt_handler(
    settings: EditingSettings,
    checkpoint: CheckpointPin | str,
    device: torch.device,
    progress: OnProgress = unheard,
) -> Mapping[type, Callable[..., Any]]:
    """Load the text encoder, and return what answers `EncodePrompts`.

    Args:
        progress: called after each prompt.
    """
    info = open_checkpoint(checkpoint, parts=PROMPT_PARTS)
    store = PromptStore.of(settings.output, info.fingerprint)
    precision = text_precision(settings.precision, gpu=device.type != "cpu")
    tokenizer, encoder = load_text_encoder(info, info.dtype(precision, device), device)

    def encode(prompts: Sequence[str]) -> int:
        missing = [prompt for prompt in prompts if not store.holds(prompt)]
        for number, prompt in enumerate(missing, start=1):
            store.write(prompt, encode_prompt(tokenizer, encoder, prompt, info.text_tokens))
            progress(f"prompt {number} of {len(missing)}")
        return len(missing)

    return {EncodePrompts: encode}
