"""What is known of prompts without torch: the precision of T5, and where embeddings are kept.

Every distinct prompt of a job is encoded once. Its embedding is a small safetensors file in
storage, so that the text encoder need not share a GPU with the transformer and nothing large
travels in a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import ErrorCode, RowError
from pipeline.settings import Precision
from pipeline.storage import Folder, from_json

if TYPE_CHECKING:
    from torch import Tensor

HEAD_BYTES = 4096
"""The header of an embedding is within these, unless its prompt is very long."""
LOOKS_AT_ONCE = 32
"""Files that are looked at side by side: an object store takes some 30 ms for each."""


def text_precision(precision: Precision, *, gpu: bool) -> Precision:
    """The precision that T5 runs in, beside a model that runs in `precision`.

    Never fp16, which T5 was not trained in: its activations leave the range of it.

    Args:
        gpu: whether the model runs on GPUs. T5 itself may run on the CPU beside them: an embedding
            is then of the same kind, and takes half the memory.
    """
    if precision in ("fp32", "bf16"):
        return precision
    return "bf16" if gpu else "fp32"


@dataclass(frozen=True)
class PromptStore:
    """Embeddings by prompt, below a folder. One is stored in the dtype that it was made in.

    Args:
        folder: `<output>/prompts/<checkpoint>`; a checkpoint's embeddings fit no other.
    """

    folder: Folder

    @classmethod
    def of(cls, output: str, fingerprint: str) -> PromptStore:
        """Where a job keeps the embeddings of the checkpoint with this fingerprint."""
        return cls(Folder(output).child(f"prompts/{fingerprint}"))

    def holds(self, prompt: str) -> bool:
        """Whether the embedding of a prompt is there, and whole."""
        return self._is_whole(_name(prompt))

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those of the prompts, each once and in order, that it does not hold."""
        wanted = list(dict.fromkeys(prompts))
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            held = pool.map(self.holds, wanted)
            return [prompt for prompt, there in zip(wanted, held, strict=True) if not there]

    def write(self, prompt: str, embedding: Tensor) -> None:
        from safetensors.torch import save

        data = save({"embedding": embedding.cpu().contiguous()}, metadata={"prompt": prompt})
        self.folder.write(_name(prompt), data)

    def embedding(self, prompt: str) -> Tensor:
        """The embedding [L, D] of a prompt.

        Raises:
            RowError: the prompt was never encoded, or its embedding is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return cast("Tensor", load(self.folder.read(_name(prompt)))["embedding"])
        except FileNotFoundError:
            raise RowError(
                ErrorCode.STORAGE,
                f"the embedding of the prompt {prompt!r} is not in {self.folder.uri}; "
                "run the job again to encode it",
            ) from None
        except (SafetensorError, KeyError) as error:
            raise RowError(
                ErrorCode.STORAGE,
                f"{self.folder.full_uri(_name(prompt))}, the embedding of the prompt {prompt!r}, "
                f"is damaged ({error}); run the job again to encode it anew",
            ) from error

    def _is_whole(self, name: str) -> bool:
        """Whether a file is there and ends where its header says."""
        try:
            size = self.folder.size(name)
            head = self.folder.read_range(name, 0, min(size, HEAD_BYTES)) if size > 8 else b""
            end = 8 + int.from_bytes(head[:8], "little")
            if len(head) < end <= size:
                head = self.folder.read_range(name, 0, end)
        except FileNotFoundError:
            return False
        with suppress(ValueError, KeyError, TypeError):
            entry: Any = from_json(head[8:end])["embedding"]
            return bool(size == end + entry["data_offsets"][1])
        return False


def _name(prompt: str) -> str:
    return sha256(prompt.encode()).hexdigest()[:32] + ".safetensors"
