"""A text encoder without weights, and memory of which a test says how much is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.model import text_encoder
from pipeline.model.text_encoder import TextEncoder


class Room:
    """Memory with so many bytes free."""

    def __init__(self, free: int | None) -> None:
        self.left = free
        self.released = 0

    def free(self) -> int | None:
        return self.left

    total = free

    def release(self) -> None:
        self.released += 1


class Encoder(torch.nn.Linear):
    """Stands in for T5: it says where it is moved and what it encodes, and moves nowhere.

    Args:
        full: how often the GPU turns out to be full.
    """

    def __init__(self, dtype: torch.dtype, said: list[str], full: int) -> None:
        super().__init__(3, 3, dtype=dtype)
        self.said, self.full, self.place = said, full, "cpu"

    def to(self, device: Any) -> Encoder:  # type: ignore[override]
        self.place = torch.device(device).type
        self.said.append(f"to {self.place}")
        return self

    def forward(self, ids: Any) -> Any:
        if self.place != "cpu" and self.full:
            self.full -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.said.append(f"{ids.tolist()} on {self.place}")
        return torch.full((1, 1, 2, 3), float(ids.sum()), dtype=self.weight.dtype)


class Ids:
    """A tokenizer whose id of a prompt is its length."""

    def __init__(self, prompt: str, **_: Any) -> None:
        self.input_ids = torch.tensor([len(prompt)])


class T5:
    """A `TextEncoder` with a stand-in, and what happened to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full: int = 0) -> None:
        self.said: list[str] = []
        self.rooms = {"cuda": Room(2 << 30), "meta": Room(2 << 30), "cpu": Room(None)}

        def load(info: Any, dtype: torch.dtype, device: Any) -> tuple[Any, Any]:
            self.said.append(f"loaded in {dtype} on {device}")
            return Ids, Encoder(dtype, self.said, full)

        monkeypatch.setattr(text_encoder, "load_text_encoder", load)

    def encoder(self, precision: torch.dtype, **more: Any) -> TextEncoder:
        info: Any = type("Info", (), {"text_tokens": 2})
        return TextEncoder(info, precision, memory=lambda at: self.rooms[at.type], **more)

    def happened(self) -> list[str]:
        said, self.said[:] = list(self.said), []
        return said
