"""One prediction: diffusers' numbers, any batch, and the published models at their real size."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.errors import ErrorCode, RowError
from pipeline.model.attention.reference import Exchange, References, attend, rotate
from pipeline.model.group import OneRank
from pipeline.model.transformer.batch import split_batch
from pipeline.model.transformer.step_cache import StepCache
from pipeline.model.transformer.tokens import rotary_embedding, unpatchify
from tests.named_prompts import NamedModel
from tests.published_models import LATENTS, PARAMETERS, TRANSFORMERS, VIDEO_TOKENS
from tests.script_reference import rotary_of_pipeline
from tests.small_models import FAMILIES, make_transformer
from tests.stub_memory import GB, StubMemory


def frames_of(family: str) -> int:
    return 4 if family == "1.5-5b" else 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_model(family: str, **changes: Any) -> NamedModel:
    transformer = make_transformer(family, **changes)
    tokens = transformer.config.max_text_seq_length
    return NamedModel(
        transformer, {p: draw(tokens, 32, seed=ord(p or "-")) for p in ("", "a", "b")}
    )


def diffusers_velocity(transformer: Any, latents: Tensor, prompts: Tensor, timestep: int) -> Tensor:
    processors = transformer.attn_processors
    transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
    with torch.no_grad():
        velocity = transformer(
            hidden_states=latents,
            encoder_hidden_states=prompts,
            timestep=torch.full((len(latents),), timestep),
            image_rotary_emb=rotary_of_pipeline(transformer, latents[0]),
            return_dict=False,
        )[0]
    transformer.set_attn_processor(processors)
    return velocity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_are_rotated_as_in_diffusers_to_the_last_bit(dtype: torch.dtype) -> None:
    x, table = draw(2, 3, 10, 8).to(dtype), (draw(10, 8, seed=1), draw(10, 8, seed=2))
    assert torch.equal(rotate(x, *table), apply_rotary_emb(x, table))


def largest_change_alone(model: NamedModel, family: str, reference: str | None) -> float:
    """The largest difference between velocities of five branches and of each of them alone."""
    x = draw(5, frames_of(family), 16, 8, 12)
    source = draw(frames_of(family), 16, 8, 12, seed=9) if reference is not None else None
    branches = [Branch(latents, "ab"[i % 2], reference) for i, latents in enumerate(x)]
    together, own = model.predict(branches, 500, source)
    changes = []
    for branch, velocity in zip(branches, together, strict=True):
        alone, own_alone = model.predict([branch], 500, source)
        assert own.keys() == own_alone.keys()
        changes += [alone[0] - velocity, *(own_alone[prompt] - own[prompt] for prompt in own)]
    return max(change.abs().max().item() for change in changes)


class TwoRanks(OneRank):
    """A group of two as its first rank sees it, whose exchange finds all tokens here already."""

    ranks = 2

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        return partial(attend)


# diffusers' numbers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(3, 8, 12), (2, 6, 10), (5, 8, 4), (1, 4, 4)]
)
def test_a_prediction_is_diffusers_own(family: str, frames: int, height: int, width: int) -> None:
    model = small_model(family)
    frames *= model.transformer.config.patch_size_t or 1
    x = draw(2, frames, 16, height, width)
    ours, own = model.predict([Branch(x[0], "a"), Branch(x[1], "b")], 700)
    prompts = torch.stack([model.prompts["a"], model.prompts["b"]])
    theirs = diffusers_velocity(model.transformer, x, prompts, 700)
    assert (torch.stack(ours) - theirs).abs().max() < 1e-6 * theirs.abs().max().clamp_min(1)
    assert own == {}


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_a_prediction_is_diffusers_own_above_the_trained_size(family: str) -> None:
    model = small_model(family)
    x = draw(1, 5, 16, 12, 20)
    theirs = diffusers_velocity(model.transformer, x, model.prompts["b"][None], 30)
    ours = model.velocity("b")(x[0], 30)
    assert (ours - theirs[0]).abs().max() < 1e-6 * theirs.abs().max().clamp_min(1)


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (12, 20)])
def test_2bs_positions_keep_the_scales_of_its_configuration(rows: int, columns: int) -> None:
    """Its table of positions is stretched by `*_interpolation_scale`; no other scale will do."""
    x = draw(1, 3, 16, rows, columns)
    scales = {"spatial_interpolation_scale": 1.3, "temporal_interpolation_scale": 0.7}
    model, default = small_model("2b", **scales), small_model("2b")
    theirs = diffusers_velocity(model.transformer, x, model.prompts["b"][None], 30)[0]
    ours = model.velocity("b")(x[0], 30)
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max().clamp_min(1)
    assert (ours - default.velocity("b")(x[0], 30)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rotary_embedding_is_the_pipelines_own(family: str) -> None:
    transformer = make_transformer(family)
    theirs = rotary_of_pipeline(transformer, torch.empty(4, 16, 6, 10))
    ours = rotary_embedding(transformer.config, (4, 6, 10), "cpu")
    if theirs is None:
        assert family == "2b"
        assert ours is None
    else:
        assert ours is not None
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_1_5_model_takes_frames_larger_than_it_was_trained_for() -> None:
    """Its rotary grid is cut from a table of the trained size, which diffusers does not extend."""
    table = rotary_embedding(make_transformer("1.5-5b").config, (4, 20, 30), "cpu")
    assert table is not None
    assert table[0].shape == (2 * 10 * 15, 16)


# Batches


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reference", [None, "", "b"])
def test_a_branch_is_the_same_bytes_in_any_batch(family: str, reference: str | None) -> None:
    assert largest_change_alone(small_model(family), family, reference) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reference", [None, "", "b"])
def test_a_branch_is_the_same_bytes_in_any_batch_of_a_gpu_that_takes_them_one_by_one(
    family: str, reference: str | None
) -> None:
    model = small_model(family)
    model.transformer.to("cuda")
    assert largest_change_alone(model, family, reference) < 1e-4
    model.max_branches = 1
    assert largest_change_alone(model, family, reference) == 0


def test_references_of_one_prompt_are_computed_once() -> None:
    model = small_model("5b")
    x = draw(4, 3, 16, 8, 12)
    branches = [Branch(x[i], "a", reference) for i, reference in enumerate(["", "b", "", ""])]
    shared, own = model.predict(branches, 500, x[0])
    assert list(own) == ["", "b"]
    assert (model.forwards.injected, model.forwards.plain) == (4, 2)
    apart, _ = model.predict(branches, 500, x[0], share=False)
    assert (model.forwards.injected, model.forwards.plain) == (8, 6)
    assert model.forwards.total == 14
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(shared, apart, strict=True))


def test_the_reference_goes_as_if_it_were_alone() -> None:
    model = small_model("5b")
    x, source = draw(2, 3, 16, 8, 12)
    _, own = model.predict([Branch(x, "a", "b")], 500, source)
    alone, _ = model.predict([Branch(source, "b")], 500)
    assert torch.equal(own["b"], alone[0])


def test_a_branch_that_sees_itself_as_its_reference_changes_nothing() -> None:
    """Twice the same keys and values weigh as much as once."""
    model = small_model("5b")
    x = draw(3, 16, 8, 12)
    plain, _ = model.predict([Branch(x, "a")], 500)
    seen, _ = model.predict([Branch(x, "a", "a")], 500, x)
    assert torch.allclose(plain[0], seen[0], atol=1e-5)


def test_blocks_outside_of_the_window_see_no_reference() -> None:
    model = small_model("5b")
    x, source = draw(2, 3, 16, 8, 12)
    found = []
    for blocks in (None, (0, 2), (0, 1), (1, 2), (1, 1)):
        found.append(model.predict([Branch(x, "a", "")], 500, source, blocks=blocks)[0][0])
    everywhere, both, first, second, none = found
    assert torch.equal(everywhere, both)
    assert torch.allclose(none, model.predict([Branch(x, "a")], 500)[0][0], atol=1e-6)
    for a, b in ((first, second), (first, both), (second, both), (first, none), (second, none)):
        assert (a - b).abs().max() > 1e-3


def test_attention_to_a_reference_is_attention_to_both_side_by_side() -> None:
    q, k, v = draw(3, 4, 2, 7, 8).double()
    references_seen = References()
    references = attend(q[2:], k[2:], v[2:], [], references_seen)
    edits = attend(q[:2], k[:2], v[:2], [1, 0], references_seen)
    out = torch.cat([edits, references])
    for i, other in ((0, 3), (1, 2), (2, None), (3, None)):
        seen = [i] if other is None else [i, other]
        keys, values = (torch.cat([y[j] for j in seen], dim=1) for y in (k, v))
        weights = (q[i] @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
        assert torch.allclose(out[i], weights @ values, atol=1e-12)


def test_a_call_with_and_without_references_is_refused() -> None:
    model = small_model("5b")
    x = draw(3, 16, 8, 12)
    with pytest.raises(ValueError, match="either every branch"):
        model.predict([Branch(x, "a", ""), Branch(x, "a")], 500, x)
    with pytest.raises(ValueError, match="either every branch"):
        model.predict([Branch(x, "a", "")], 500)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("5b")
    model.memory = memory = StubMemory(GB)
    x = draw(5, 3, 16, 8, 12)
    branches = [Branch(latents, "a", "b") for latents in x]
    whole, _ = model.predict(branches, 500, x[0])
    sizes = fail_above(model, 2, monkeypatch)
    split, _ = model.predict(branches, 500, x[0])
    assert sizes == [1, 5, 1, 3, 1, 2, 2, 1, 1, 2, 2, 1]  # the reference, then the edits
    assert memory.released == [None, None]
    sizes.clear()
    model.predict(branches, 500, x[0])
    assert max(sizes) == 2, "what ran out of memory once is tried again"
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(whole, split, strict=True))


def fail_above(model: NamedModel, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let blocks run out of memory for more branches at once; returns the sizes of all parts."""
    sizes: list[int] = []
    model.max_branches = None
    for block in model.transformer.transformer_blocks:

        def tight(*, hidden_states: Tensor, real: Any = block.forward, **how: Any) -> Any:
            sizes.append(len(hidden_states))
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("full")
            return real(hidden_states=hidden_states, **how)

        monkeypatch.setattr(block, "forward", tight)
    return sizes


def test_where_memory_runs_out_no_key_and_no_value_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("5b")
    kept: list[Any] = []

    class Looks(StubMemory):
        def release(self) -> None:
            super().release()
            kept.append(model._plan.references)

    model.memory = memory = Looks(GB)
    x = draw(3, 16, 8, 12)
    fail_above(model, 1, monkeypatch)
    model.predict([Branch(x, "a", "b")] * 2, 500, x)
    assert kept == memory.released == [None, None]


@pytest.mark.parametrize("group", [OneRank(), TwoRanks()], ids=["one rank", "a group"])
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("reference", [None, "b"])
def test_no_more_branches_than_allowed_go_through_a_block_at_once(
    most: int, reference: str | None, group: OneRank
) -> None:
    model = small_model("5b")
    model.group = group
    x, source = draw(5, 3, 16, 8, 12), draw(3, 16, 8, 12, seed=1)
    branches = [Branch(latents, "a", reference) for latents in x]
    whole, own = model.predict(branches, 500, source if reference else None)
    rows: list[int] = []
    for block in model.transformer.transformer_blocks:
        block.register_forward_pre_hook(
            lambda _, __, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
    embedded: list[int] = []
    model.transformer.patch_embed.register_forward_pre_hook(
        lambda _, inputs: embedded.append(len(inputs[1]))
    )
    model.max_branches = most
    parts, own_parts = model.predict(branches, 500, source if reference else None)
    assert max(rows) == max(embedded) == most
    assert sum(rows) == 2 * sum(embedded) == 2 * (5 + len(own))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert all(torch.equal(own[prompt], own_parts[prompt]) for prompt in own)


def test_as_many_branches_go_at_once_as_keep_the_device_busy() -> None:
    rows: list[int] = []
    model = small_model("5b")  # 24 video tokens a latent frame, and 20 of text
    model.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    for group, split in ((OneRank(), [2, 1, 1, 1, 1, 1, 1, 1]), (TwoRanks(), [3, 2, 1, 1, 1, 1])):
        model.group = group
        rows.clear()
        for frames in (40, 80, 180):
            model.predict([Branch(draw(frames, 16, 8, 12), "a")] * 3, 500)
        assert rows == split


@given(edits=st.integers(0, 9), references=st.integers(0, 9), size=st.integers(1, 12))
def test_the_parts_of_a_batch_are_the_batch_with_the_references_ahead(
    edits: int, references: int, size: int
) -> None:
    batch = list(range(edits + references))
    parts = [batch[rows] for rows in split_batch(len(batch), edits, size)]
    assert [row for part in parts for row in part] == batch[edits:] + batch[:edits]
    assert all(1 <= len(part) <= size for part in parts)
    assert not any(part[0] < edits <= part[-1] for part in parts)


def test_one_branch_that_does_not_fit_is_a_row_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("5b")
    model.memory = memory = StubMemory(3.2 * GB)
    sizes = fail_above(model, 0, monkeypatch)
    with pytest.raises(
        RowError,
        match=r"out of memory with 1 branch of 3 in a block at once \(OutOfMemoryError: full\): "
        r"that takes about 0.0 GB beside the weights, and 3.2 GB are free. Make the clip smaller "
        r".*\(reconstruction.edits_at_once\), take larger groups",
    ) as no:
        model.predict([Branch(draw(3, 16, 8, 12), "a")] * 3, 500)
    assert (no.value.code, no.value.needs_restart) == (ErrorCode.OUT_OF_MEMORY, False)
    assert sizes == [3, 2, 1]
    assert memory.released == [None] * 3


def test_where_a_step_cache_takes_memory_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("5b")
    fail_above(model, 0, monkeypatch)
    with pytest.raises(
        RowError, match=r"nothing between steps \(speed.step_cache: 0\), take larger"
    ):
        branch = Branch(draw(3, 16, 8, 12), "a", edit=0)
        model.predict([branch], 500, cache=StepCache(0.1, frozenset({400})))


def test_in_a_group_memory_that_runs_out_is_a_row_error_that_restarts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other ranks wait inside an exchange: a second try would never end."""
    model = small_model("5b")
    model.group, model.memory = TwoRanks(), StubMemory(GB)
    sizes = fail_above(model, 2, monkeypatch)
    with pytest.raises(RowError, match="out of memory with 3 branches of 3") as no:
        model.predict([Branch(draw(3, 16, 8, 12), "a")] * 3, 500)
    assert sizes == [3]
    assert (no.value.code, no.value.needs_restart) == (ErrorCode.OUT_OF_MEMORY, True)
    assert pickle.loads(pickle.dumps(no.value)).needs_restart


def test_another_error_is_not_taken_for_memory_that_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model("5b")
    model.memory = memory = StubMemory(GB)

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(model, "_forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        model.predict([Branch(draw(3, 16, 8, 12), "a")] * 3, 500)
    assert memory.released == []


def on_meta(family: str, layers: int = 1, **how: Any) -> NamedModel:
    """A published model with a single block, which takes no memory and computes nothing."""
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**TRANSFORMERS[family] | {"num_layers": layers})
        prompt = torch.empty(TRANSFORMERS[family]["max_text_seq_length"], 4096)
    return NamedModel(transformer.to(torch.bfloat16), {"": prompt, "a": prompt}, **how)


def parts(model: NamedModel, latents: Tensor, branches: int) -> list[int]:
    """How many branches go through a block together, part by part."""
    rows: list[int] = []
    model.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    model.predict([Branch(latents, "a", "")] * branches, 500, latents)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("card", [24, 80])
def test_at_native_sizes_one_branch_goes_through_a_block_at_once(family: str, card: int) -> None:
    model = on_meta(family)
    model.memory = StubMemory(card * GB - 2 * PARAMETERS[family], card * GB)
    latents = torch.empty(LATENTS[family], device="meta")
    assert parts(model, latents, 8) == [1] * 9


@pytest.mark.parametrize(
    ("free", "expected"), [(4, [1, 7, 1]), (0.7, [1, 2, 2, 2, 2]), (0, [1] * 9), (None, [1, 7, 1])]
)
def test_of_small_clips_as_many_branches_go_at_once_as_fit(
    free: float | None, expected: list[int]
) -> None:
    """17 frames of 256x384: 2,146 tokens, of which seven branches keep a GPU busy."""
    model = on_meta("5b")
    model.memory = StubMemory(None if free is None else free * GB)
    assert parts(model, torch.empty(5, 16, 32, 48, device="meta"), 8) == expected


class OtherRank(OneRank):
    """A rank of a group whose other ranks answer with the numbers of a test."""

    ranks = 2

    def __init__(self, *others: int) -> None:
        self.others = list(others)

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, self.others.pop(0)]

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        return attend


def test_ranks_of_a_group_agree_once_for_each_kind_of_batch() -> None:
    group = OtherRank(3, 9)
    model = on_meta("5b", group=group)
    model.memory = StubMemory(GB)
    x = torch.empty(5, 16, 32, 48, device="meta")
    assert parts(model, x, 8) == [1, 3, 3, 2]  # the other rank has less memory
    model.memory.left = 0
    rows = parts(model, x, 8)
    assert rows[:4] == [1, 3, 3, 2], "asked again"
    assert set(parts(model, x, 6)) == {1}, "this rank has less memory"
    assert group.others == []


# Precision


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_16_bit_model_takes_and_gives_float32(
    family: str, dtype: torch.dtype, error: float
) -> None:
    exact, model = small_model(family), small_model(family)
    model.transformer.to(dtype)
    x, source = draw(2, frames_of(family), 16, 8, 12)
    branch = Branch(x, "a", "b")
    ours, theirs = (m.predict([branch], 500, source)[0][0] for m in (model, exact))
    assert ours.dtype == torch.float32
    assert 0 < (ours - theirs).std() < error * theirs.std()


# Shapes


@given(
    family=st.sampled_from(FAMILIES),
    frames=st.integers(1, 4),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    batch=st.integers(1, 2),
)
@settings(max_examples=40)
def test_tokens_go_back_to_where_the_patch_embedding_took_them_from(
    family: str, frames: int, rows: int, columns: int, batch: int
) -> None:
    transformer = make_transformer(family, num_layers=0)
    config = transformer.config
    frames *= config.patch_size_t or 1
    x = draw(batch, frames, 16, 2 * rows, 2 * columns)
    patch = 16 * 4 * (config.patch_size_t or 1)
    embed = transformer.patch_embed
    # An embedding that copies a patch: then its tokens are the patches themselves.
    embed.embed_dim = patch
    embed.use_positional_embeddings = False
    embed.text_proj = torch.nn.Linear(32, patch)
    if config.patch_size_t is None:
        embed.proj = torch.nn.Conv2d(16, patch, 2, stride=2, bias=False)
    else:
        embed.proj = torch.nn.Linear(patch, patch, bias=False)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(patch).view(embed.proj.weight.shape))
        tokens = embed(torch.zeros(batch, 1, 32), x)[:, 1:]
    assert torch.equal(unpatchify(tokens, config, (frames, 2 * rows, 2 * columns)), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_model_at_its_real_shape(family: str) -> None:
    """On the meta device: every shape of the real forward, none of its 10 GB."""
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**TRANSFORMERS[family])
    parameters = sum(p.numel() for p in transformer.parameters())
    assert parameters == pytest.approx(PARAMETERS[family], rel=0.01)
    tokens = TRANSFORMERS[family]["max_text_seq_length"]
    prompts = {p: torch.empty(tokens, 4096, device="meta") for p in ("", "a")}
    model = NamedModel(transformer, prompts)
    counts: list[tuple[int, int]] = []
    exchange = model.group.exchange
    model.group.exchange = lambda *n: counts.append(n) or exchange(*n)  # type: ignore[func-returns-value, method-assign]
    x = torch.empty(LATENTS[family], device="meta")
    branches = [Branch(x, prompt, "") for prompt in ("", "a")]
    velocities, own = model.predict(branches, 999, x)
    assert counts == [(tokens, VIDEO_TOKENS[family])]
    assert [tuple(v.shape) for v in velocities] == [LATENTS[family]] * 2
    assert tuple(own[""].shape) == LATENTS[family]


def test_what_the_script_cannot_do_is_1_5_at_its_own_81_frames() -> None:
    """81 frames are 21 latent frames, and patches of two latent frames need an even count."""
    model = small_model("1.5-5b")
    prompts = model.prompts["a"][None]
    with pytest.raises(RuntimeError, match="shape"):
        diffusers_velocity(model.transformer, draw(1, 21, 16, 4, 4), prompts, 500)
    assert model.predict([Branch(draw(22, 16, 4, 4), "a")], 500)[0][0].shape == (22, 16, 4, 4)
