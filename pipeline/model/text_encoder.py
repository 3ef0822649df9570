"""T5: prompts to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.model.checkpoint import CheckpointInfo, load_text_encoder
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.memory import DeviceMemory, Memory, OutOfMemory, attempt, usable

ACTIVATION_BYTES = 512 << 20
"""What must be free beside T5's weights while it encodes a prompt: its activations take some 100 MB
at 226 tokens, the rest is for workspaces."""
HOST_BYTES = 4 << 30
"""T5 does not stay in this machine's memory where less than this is left."""
STAY = 256
"""So many embeddings stay for later calls; one of T5-XXL takes 1.9 MB in 16 bits."""


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


@dataclass
class TextEncoder:
    """T5 in this process, loaded when a prompt first needs it; each prompt is encoded once.

    It lies on the CPU, and comes to the model's device while it encodes the prompts of a call.

    Args:
        info: the checkpoint.
        precision: of the model that the embeddings are for.
        group: the ranks that compute together, of which this process is one. Their embeddings must
            be equal, so all of them encode on their devices or none does.
        memory: of a device.
        encoded: the embeddings [L, D] so far, on the CPU.
    """

    info: CheckpointInfo
    precision: torch.dtype
    group: TokenGroup = field(default_factory=OneRank, repr=False)
    memory: Callable[[torch.device], Memory] = field(default=DeviceMemory, repr=False)
    encoded: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _parts: tuple[Any, Any] | None = field(default=None, repr=False)

    def embedding(self, prompt: str) -> Tensor:
        """The embedding [L, D] of a prompt, on the CPU."""
        if prompt not in self.encoded:
            self.encode([prompt], torch.device("cpu"))
        return self.encoded[prompt]

    def encode(self, prompts: Iterable[str], device: torch.device) -> None:
        """Encode the prompts that are not encoded yet, together.

        Args:
            device: the model's. T5 works there if there is room for it, else on the CPU; for a
                model on a GPU in bf16, if the model does not run in fp32.

        Raises:
            MemoryError: this machine has no room for T5; on all ranks of a group.
        """
        wanted = list(dict.fromkeys(prompts))
        missing = [prompt for prompt in wanted if prompt not in self.encoded]
        if not missing:
            return
        full = device.type == "cpu" or self.precision == torch.float32
        encoder = self._loaded_by_all(torch.float32 if full else torch.bfloat16)
        if device.type == "cpu" or not self._encoded_on(device, encoder, missing):
            self._encode(missing)
        free = self.memory(torch.device("cpu")).free()
        if free is not None and free < HOST_BYTES:
            self.unload()
        used = {prompt: self.encoded.pop(prompt) for prompt in wanted}
        while len(self.encoded) > STAY:
            del self.encoded[next(iter(self.encoded))]
        self.encoded.update(used)

    def unload(self) -> None:
        """Give T5's memory back; the next new prompt loads it again."""
        self._parts = None

    def _loaded_by_all(self, dtype: torch.dtype) -> Any:
        """The encoder, on the CPU of each rank: of one that has none the others would wait."""
        loaded = attempt(lambda: self._loaded(dtype))
        problem = loaded.message if isinstance(loaded, OutOfMemory) else None
        for found in self.group.gather_objects(problem):
            if found:
                raise MemoryError(found.removeprefix("MemoryError: "))
        return loaded

    def _loaded(self, dtype: torch.dtype) -> Any:
        """The encoder, on the CPU."""
        if self._parts is None:
            self._parts = load_text_encoder(self.info, dtype, "cpu")
        elif next(self._parts[1].parameters()).dtype != dtype:  # the model moved
            self._parts = None
            self._parts = load_text_encoder(self.info, dtype, "cpu")
        return self._parts[1]

    def _encoded_on(self, device: torch.device, encoder: Any, prompts: list[str]) -> bool:
        """Whether prompts could be encoded on a device that may be too full for T5."""
        memory = self.memory(device)
        room = usable(memory, device) >= _bytes_of(encoder) + ACTIVATION_BYTES
        if not all(self.group.gather_objects(room)):
            return False

        def visit() -> None:
            encoder.to(device)
            self._encode(prompts)

        try:
            result = attempt(visit)  # another process may have taken the room
        finally:
            encoder.to("cpu")
            memory.release()
        return all(self.group.gather_objects(not isinstance(result, OutOfMemory)))

    def _encode(self, prompts: list[str]) -> None:
        assert self._parts
        for prompt in prompts:
            embedding = encode_prompt(*self._parts, prompt, self.info.text_tokens)
            self.encoded[prompt] = embedding.cpu()


def _bytes_of(module: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


@dataclass(frozen=True)
class RecentEmbeddings:
    """Embeddings of another source, of which the last ones that were asked for stay in memory.

    Args:
        source: gives those that are not here.
        most: so many stay; one of T5-XXL takes 1.9 MB in 16 bits.
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
