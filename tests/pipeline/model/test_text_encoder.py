"""Prompts: the embedding that diffusers would make, and the store that keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, RowError
from pipeline.model import text_encoder
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.group import OneRank
from pipeline.model.prompts import PromptStore, text_precision
from pipeline.model.text_encoder import RecentEmbeddings, encode_prompt
from pipeline.storage import Folder
from tests.stand_in_t5 import T5

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


def test_an_encoder_in_bf16_is_so_in_every_weight_and_its_embeddings_take_half_the_room(
    checkpoints: dict[str, Path], text_parts: tuple[Any, Any], tmp_path: Path
) -> None:
    info = open_checkpoint(str(checkpoints["5b"]))
    tokenizer, encoder = load_text_encoder(info, torch.bfloat16, "cpu")
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    half = encode_prompt(tokenizer, encoder, "a red cube", 226)
    full = encode_prompt(*text_parts, "a red cube", 226)
    assert (half - full).abs().max() < 0.05 * full.abs().max()
    sizes = []
    for name, embedding in (("half", half), ("full", full)):
        store = PromptStore(Folder(str(tmp_path / name)))
        store.write("a red cube", embedding)
        sizes.append(next((tmp_path / name).iterdir()).stat().st_size)
        assert torch.equal(store.embedding("a red cube"), embedding)
    assert sizes[1] - sizes[0] == full.numel() * 2


@pytest.mark.parametrize("prompt", ["a red cube", "a very long prompt " * 400])
@pytest.mark.parametrize("left", [0, 7, 8, 60, -1])
def test_an_embedding_that_was_cut_off_counts_as_missing_and_its_reader_says_so(
    tmp_path: Path, prompt: str, left: int
) -> None:
    store = PromptStore(Folder(str(tmp_path)))
    store.write(prompt, torch.zeros(20, 32))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:left])
    assert not store.holds(prompt)
    assert store.missing(["", prompt, prompt]) == ["", prompt]
    with pytest.raises(
        RowError, match=rf"{file.name}, .* is damaged .*; run the job again"
    ) as told:
        store.embedding(prompt)
    assert told.value.code == ErrorCode.STORAGE
    store.write(prompt, torch.ones(20, 32))
    assert store.missing([prompt]) == []
    assert store.embedding(prompt).sum() == 640


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"no json", b'{"embedding": {}}'])
def test_a_file_that_is_no_embedding_counts_as_missing(tmp_path: Path, text: bytes) -> None:
    store = PromptStore(Folder(str(tmp_path)))
    store.write("a", torch.zeros(2, 3))
    (file,) = tmp_path.iterdir()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert not store.holds("a")
    with pytest.raises(RowError, match="is damaged"):
        store.embedding("a")


@given(prompts=st.lists(st.text(max_size=30), unique=True, min_size=1, max_size=8))
def test_any_text_is_a_name_of_its_own(prompts: list[str]) -> None:
    store = PromptStore(Folder("memory://prompts"))
    for i, prompt in enumerate(prompts):
        store.write(prompt, torch.full((2, 3), float(i)))
    for i, prompt in enumerate(prompts):
        assert store.embedding(prompt)[0, 0] == i
    assert store.missing([*prompts, "never written" * 3]) == ["never written" * 3]


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


# T5 in this process


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def t5(monkeypatch: pytest.MonkeyPatch) -> T5:
    return T5(monkeypatch)


def test_t5_visits_the_gpu_once_for_all_prompts_of_a_call(t5: T5) -> None:
    text = t5.encoder(torch.bfloat16)
    assert t5.happened() == [], "nothing is loaded before a prompt needs it"
    text.encode(["a", "bb", "a", ""], GPU)
    ran = [f"[{length}] on cuda" for length in (1, 2, 0)]
    assert t5.happened() == ["loaded in torch.bfloat16 on cpu", "to cuda", *ran, "to cpu"]
    assert t5.rooms["cuda"].released == 1
    text.encode(["bb", "a"], GPU)
    assert t5.happened() == []
    assert text.embedding("bb")[0, 0] == 2
    text.encode(["ccc", "a"], GPU)
    assert t5.happened() == ["to cuda", "[3] on cuda", "to cpu"]


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        (torch.float16, GPU, torch.bfloat16),
        (torch.bfloat16, GPU, torch.bfloat16),
        (torch.float32, GPU, torch.float32),
        (torch.float32, CPU, torch.float32),
        (torch.bfloat16, CPU, torch.float32),
        (torch.float16, CPU, torch.float32),
    ],
)
def test_t5_runs_in_bf16_for_a_gpu_and_never_in_fp16(
    t5: T5, precision: torch.dtype, device: torch.device, dtype: torch.dtype
) -> None:
    text = t5.encoder(precision)
    text.encode(["a"], device)
    assert t5.happened()[0] == f"loaded in {dtype} on cpu"
    assert text.embedding("a").dtype == dtype


@pytest.mark.parametrize("free", [0, 1, 512 << 20])
def test_a_gpu_without_room_for_t5_leaves_it_on_the_cpu(t5: T5, free: int) -> None:
    t5.rooms["cuda"].left = free
    t5.encoder(torch.bfloat16).encode(["a"], GPU)
    assert t5.happened() == ["loaded in torch.bfloat16 on cpu", "[1] on cpu"]


def test_a_gpu_that_fills_up_meanwhile_is_left_and_the_prompts_are_encoded_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t5 = T5(monkeypatch, full=1)
    text = t5.encoder(torch.bfloat16)
    text.encode(["a", "bb"], GPU)
    assert t5.happened()[1:] == ["to cuda", "to cpu", "[1] on cpu", "[2] on cpu"]
    assert t5.rooms["cuda"].released == 1
    assert text.embedding("bb")[0, 0] == 2


def test_an_interrupted_call_leaves_nothing_on_the_gpu(
    t5: T5, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = t5.encoder(torch.bfloat16)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(text_encoder, "encode_prompt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        text.encode(["a"], GPU)
    assert t5.happened()[-1] == "to cpu"


def test_the_ranks_of_a_group_encode_alike_so_that_their_embeddings_are_equal(t5: T5) -> None:
    class Full(OneRank):
        """This rank beside one whose GPU has no room."""

        def gather_objects(self, value: Any) -> list[Any]:
            return [value, False]

    t5.encoder(torch.bfloat16, group=Full()).encode(["a"], GPU)
    assert t5.happened() == ["loaded in torch.bfloat16 on cpu", "[1] on cpu"]


@pytest.mark.parametrize("ours", [True, False])
def test_where_one_rank_has_no_room_for_t5_every_rank_says_so(
    t5: T5, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    gathered: list[Any] = []

    class Other(OneRank):
        def gather_objects(self, value: Any) -> list[Any]:
            gathered.append(value)
            return [value, None if ours else "MemoryError: no room there"]

    def no_room(*_: Any) -> None:
        raise MemoryError("no room here")

    if ours:
        monkeypatch.setattr(text_encoder, "load_text_encoder", no_room)
    with pytest.raises(MemoryError, match=f"^no room {'' if ours else 't'}here$"):
        t5.encoder(torch.bfloat16, group=Other()).encode(["a"], GPU)
    assert gathered == ["MemoryError: no room here" if ours else None]


def test_t5_is_given_up_on_request_and_where_the_machine_has_no_memory_left(t5: T5) -> None:
    text = t5.encoder(torch.bfloat16)
    text.encode(["a"], GPU)
    text.unload()
    text.encode(["bb"], GPU)
    assert sum("loaded" in one for one in t5.happened()) == 2
    t5.rooms["cpu"].left = 1 << 30
    text.encode(["ccc"], GPU)
    assert not t5.happened()[0].startswith("loaded")
    text.encode(["dddd"], GPU)
    assert t5.happened()[0].startswith("loaded")


def test_a_model_that_moved_has_t5_in_the_precision_of_its_new_place(t5: T5) -> None:
    text = t5.encoder(torch.bfloat16)
    for device, prompt in ((CPU, "a"), (GPU, "bb")):
        text.encode([prompt], device)
    loaded = [one for one in t5.happened() if one.startswith("loaded")]
    assert loaded == ["loaded in torch.float32 on cpu", "loaded in torch.bfloat16 on cpu"]


def test_embeddings_of_a_call_stay_and_of_older_ones_a_limited_number(t5: T5) -> None:
    text = t5.encoder(torch.float32)
    text.encode(["x" * i for i in range(400)], CPU)
    assert len(text.encoded) == 400
    text.encode(["y"], CPU)
    assert len(text.encoded) == text_encoder.STAY + 1
    assert "y" in text.encoded
    assert "x" not in text.encoded


@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "fp32"])
def test_a_jobs_t5_runs_in_bf16_beside_gpus_and_never_in_fp16(precision: Any) -> None:
    assert text_precision(precision, gpu=True) == ("fp32" if precision == "fp32" else "bf16")
    assert text_precision(precision, gpu=False) == ("bf16" if precision == "bf16" else "fp32")
