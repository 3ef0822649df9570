"""Prompts: the embedding that diffusers would make, and the store that keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RowError
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.text_encoder import PromptStore, RecentEmbeddings, encode_prompt
from pipeline.storage import Folder

PROMPTS = ("", "a red cube", "ein roter Würfel, 赤い立方体", "a very long prompt " * 40)


@pytest.fixture(scope="module")
def text_parts(checkpoints: dict[str, Path]) -> tuple[Any, Any]:
    return load_text_encoder(open_checkpoint(str(checkpoints["5b"])), torch.float32, "cpu")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("tokens", [20, 226])
def test_an_embedding_is_the_pipelines_own(
    text_parts: tuple[Any, Any], prompt: str, tokens: int
) -> None:
    tokenizer, encoder = text_parts
    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    pipeline.tokenizer, pipeline.text_encoder = tokenizer, encoder
    with torch.no_grad():
        theirs = pipeline._get_t5_prompt_embeds(
            prompt, max_sequence_length=tokens, device=torch.device("cpu")
        )
    ours = encode_prompt(tokenizer, encoder, prompt, tokens)
    assert ours.shape == (tokens, 32)
    assert torch.equal(ours, theirs[0])


def test_prompts_have_embeddings_of_their_own(text_parts: tuple[Any, Any]) -> None:
    empty, cube, _, long = (encode_prompt(*text_parts, prompt, 20) for prompt in PROMPTS)
    assert (empty - cube).abs().max() > 0.1
    assert (long - cube).abs().max() > 0.1
    assert torch.equal(encode_prompt(*text_parts, PROMPTS[1], 20), cube)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_stored_embedding_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = PromptStore(Folder(str(tmp_path)))
    embedding = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert not store.holds("a red cube")
    store.write("a red cube", embedding.t().contiguous().t())
    assert store.holds("a red cube")
    assert not store.holds("a red cube ")
    found = store.embedding("a red cube")
    assert found.dtype == dtype
    assert torch.equal(found, embedding)


def test_a_prompt_that_was_never_encoded_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="'a red cube' is not in .*; run the job again"):
        PromptStore(Folder(str(tmp_path))).embedding("a red cube")


@given(prompts=st.lists(st.text(max_size=30), unique=True, min_size=1, max_size=8))
def test_any_text_is_a_name_of_its_own(prompts: list[str]) -> None:
    store = PromptStore(Folder("memory://prompts"))
    for i, prompt in enumerate(prompts):
        store.write(prompt, torch.full((2, 3), float(i)))
    for i, prompt in enumerate(prompts):
        assert store.embedding(prompt)[0, 0] == i


def test_an_embedding_that_was_asked_for_is_not_read_again_until_others_took_its_place() -> None:
    class Counting:
        def __init__(self) -> None:
            self.read: list[str] = []

        def embedding(self, prompt: str) -> torch.Tensor:
            self.read.append(prompt)
            return torch.zeros(1, 1)

    source = Counting()
    recent = RecentEmbeddings(source, most=2)
    for prompt in ("", "a", "", "b", "", "a"):
        recent.embedding(prompt)
    assert source.read == ["", "a", "b", "a"]
