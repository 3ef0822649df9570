"""T5: prompts to embeddings, and where the embeddings are kept.

Every distinct prompt is encoded once. Its embedding is a small safetensors file in storage, so that
the text encoder never shares a GPU with the transformer and nothing large travels in a block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import ErrorCode, RowError
from pipeline.storage import Folder


@torch.no_grad()
def encode_prompt(tokenizer: Any, encoder: Any, prompt: str, tokens: int) -> Tensor:
    """The embedding [tokens, D] of a prompt, padded or cut to `tokens`.

    T5 runs without an attention mask, as CogVideoX was trained (diffusers
    `CogVideoXPipeline._get_t5_prompt_embeds`). One prompt at a time: the embedding of a prompt then
    does not depend on what it was batched with.
    """
    ids = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokens,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    ).input_ids
    return encoder(ids.to(next(encoder.parameters()).device))[0][0]


class Embeddings(Protocol):
    """Where prompt embeddings come from: a text encoder, or a job's store of them."""

    def embedding(self, prompt: str) -> Tensor:
        """[L, D]."""


@dataclass(frozen=True)
class TextEncoder:
    """T5 in this process; each prompt is encoded once.

    Args:
        tokenizer, encoder: as transformers opens them.
        tokens: L, the tokens that every prompt is padded or cut to.
    """

    tokenizer: Any
    encoder: Any
    tokens: int
    encoded: dict[str, Tensor] = field(default_factory=dict)

    def embedding(self, prompt: str) -> Tensor:
        """The embedding [L, D] of a prompt."""
        if prompt not in self.encoded:
            self.encoded[prompt] = encode_prompt(self.tokenizer, self.encoder, prompt, self.tokens)
        return self.encoded[prompt]


@dataclass(frozen=True)
class RecentEmbeddings:
    """Embeddings of another source, of which the last ones that were asked for stay in memory.

    Args:
        source: gives those that are not here.
        most: so many stay; one of T5-XXL takes 3.7 MB in float32.
    """

    source: Embeddings
    most: int = 64
    recent: dict[str, Tensor] = field(default_factory=dict)

    def embedding(self, prompt: str) -> Tensor:
        """[L, D]."""
        found = self.recent.pop(prompt, None)
        self.recent[prompt] = self.source.embedding(prompt) if found is None else found
        if len(self.recent) > self.most:
            del self.recent[next(iter(self.recent))]
        return self.recent[prompt]


@dataclass(frozen=True)
class PromptStore:
    """Embeddings by prompt, below a folder.

    Args:
        folder: `<output>/prompts/<checkpoint>`; a checkpoint's embeddings fit no other.
    """

    folder: Folder

    def holds(self, prompt: str) -> bool:
        return self.folder.exists(_name(prompt))

    def write(self, prompt: str, embedding: Tensor) -> None:
        data = save({"embedding": embedding.cpu().contiguous()}, metadata={"prompt": prompt})
        self.folder.write(_name(prompt), data)

    def embedding(self, prompt: str) -> Tensor:
        """The embedding [L, D] of a prompt.

        Raises:
            RowError: the prompt was never encoded.
        """
        try:
            return load(self.folder.read(_name(prompt)))["embedding"]
        except FileNotFoundError:
            raise RowError(
                ErrorCode.STORAGE,
                f"the embedding of the prompt {prompt!r} is not in {self.folder.uri}; "
                "run the job again to encode it",
            ) from None


def _name(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32] + ".safetensors"
