"""What only a GPU can show, at a published model's width: kernels, numbers, memory, no waiting.

    pytest -m gpu tests/gpu

Untried so far: no machine of ours has a GPU. 24 GB are enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import Editor
from pipeline.algorithm.branches import Branch, Prompt
from pipeline.errors import ErrorCode, RowError
from pipeline.model import footprint
from pipeline.model.attention.kernels import torch_kernels
from pipeline.model.memory import HEADROOM, DeviceMemory
from pipeline.model.transformer import VelocityModel
from pipeline.model.vae import Codec
from pipeline.records import EditSpec
from pipeline.settings import Reconstruction
from tests.benchmarks.gpu.card import GB, Bench, Sizes, host_waits
from tests.published_models import T5, published

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CLIP = (49, 480, 720)
TOKENS = 226 + 13 * 30 * 45
NARROW = (9, 128, 192)
"""A clip that a CPU takes too, in seconds."""


def bench(clip: tuple[int, int, int] = CLIP) -> Bench:
    """A 5b of two blocks: its width, heads and memory of activations, 1 GB of weights."""
    return Bench(Sizes(published("5b", num_layers=2), clip, [clip], T5), torch.device("cuda"))


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    """Every test gets all of the card, and gives it back."""
    bench().free()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.set_sync_debug_mode("default")
    bench().free()


def batch(card: Bench, edits: int) -> tuple[list[Branch], int, Tensor | None]:
    x, empty = card.latent(), card.prompt("")
    branches = [Branch(x, card.prompt(str(i)), empty) for i in range(2 * edits)]
    return branches or [Branch(x, empty)], 500, x if edits else None


# Kernels


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "efficient"),
        *(
            (dtype, name)
            for dtype in (torch.float16, torch.bfloat16)
            for name in ("flash", "cudnn", "efficient")
        ),
    ],
)
def test_kernels_and_their_logsumexp_are_right_at_the_real_shape(
    dtype: torch.dtype, name: str
) -> None:
    """17,776 tokens of 48 heads; the scores of 64 queries are computed in float64 beside it."""
    device = torch.device("cuda")
    q, k, v = (torch.randn(1, 48, TOKENS, 64, device=device, dtype=dtype) for _ in range(3))
    out, lse = torch_kernels(device, logsumexp=True)[name](q, k, v)
    assert lse is not None
    rows = torch.linspace(0, TOKENS - 1, 64, device=device).long()
    scores = q[:, :, rows].double() @ k.double().mT / 8
    expected = scores.softmax(-1) @ v.double()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert (out[:, :, rows].double() - expected).abs().max() < tolerance
    assert (lse[:, :, rows].double() - scores.logsumexp(-1)).abs().max() < tolerance


# Numbers


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
def test_a_model_of_5bs_width_predicts_what_the_cpu_predicts(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch lets cuDNN round the inputs of float32 convolutions to 11 bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    card = Bench(bench(NARROW).sizes, torch.device("cpu"))
    model = card.transformer()
    branches, timestep, reference = batch(card, 1)
    theirs, _ = model.predict(branches, timestep, reference)
    model.transformer.to("cuda", dtype)
    ours, _ = VelocityModel(model.transformer).predict(branches, timestep, reference)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.cpu() - b).norm() < tolerance * b.norm()


def test_edits_by_the_embedded_checkpoint_are_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    frames = torch.full((9, 48, 48, 3), 200, dtype=torch.uint8)
    frames[:, 16:30, 16:30] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    made = []
    for device in ("cpu", "cuda"):
        editor = Editor.from_pretrained("embedded", device=device, torch_dtype=torch.float32)
        editor.set_progress_bar_config(disable=True)
        trajectory = editor.invert(frames, steps=5)
        made += editor.reconstruct(trajectory, "a blue square", Reconstruction(start=0.6))
    off = (made[0].int() - made[1].cpu().int()).abs()
    assert off.float().mean() < 0.5
    assert off.max() <= 8


# Memory


@pytest.mark.parametrize("edits", [0, 1, 4])
def test_the_transformer_takes_what_was_counted(edits: int) -> None:
    card = bench()
    work = partial(card.transformer().predict, *batch(card, edits))
    _, peak = card.measured(work, repeats=1)
    counted = footprint.transformer_bytes(
        card.sizes.info, TOKENS, 1, 2, batch=2 * edits + 1, references=int(edits > 0)
    )
    assert peak is not None
    assert counted * 0.9 < peak * GB < counted / HEADROOM["gpu"]


@pytest.mark.parametrize("decode", [True, False])
def test_the_vae_takes_what_was_counted_and_tiles_leave_no_more_than_seams(decode: bool) -> None:
    card = bench()
    codec = card.codec(tiling=False)
    video = torch.zeros(*CLIP, 3, dtype=torch.uint8)
    make = partial(codec.decode, card.latent(), CLIP[0]) if decode else partial(codec.encode, video)
    _, peak = card.measured(make, repeats=1)
    counted = footprint.vae_bytes(card.sizes.info, *CLIP, 2, decode=decode)
    assert peak is not None
    assert counted * 0.9 < peak * GB < counted / HEADROOM["gpu"]
    whole = make().float()
    codec.tiling = True
    tiled = make().float()
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean() + 0.01


def test_where_a_whole_decode_does_not_fit_tiles_are_taken() -> None:
    card = bench()
    codec, latent = card.codec(tiling=None), card.latent()
    counted = footprint.vae_bytes(card.sizes.info, *CLIP, 2, decode=True)
    with card.limited(torch.cuda.memory_allocated() + 0.6 * counted):
        assert codec.decode(latent, CLIP[0]).shape == (*CLIP, 3)
        assert codec.vae.use_tiling
    assert codec.decode(latent, CLIP[0]).shape == (*CLIP, 3)


class Optimist(DeviceMemory):
    """Promises more memory than there is, so that it runs out in earnest."""

    def free(self) -> int | None:
        return 1 << 50


def test_where_memory_runs_out_in_a_decode_the_next_tiles_are_tried() -> None:
    card = bench()
    codec, latent = card.codec(tiling=None), card.latent()
    codec.memory = Optimist("cuda")
    counted = footprint.vae_bytes(card.sizes.info, *CLIP, 2, decode=True)
    with card.limited(torch.cuda.memory_allocated() + 0.6 * counted):
        assert codec.decode(latent, CLIP[0]).shape == (*CLIP, 3)
    assert codec.vae.use_tiling


def out_of_memory_in(work: Any) -> str:
    """The text of its error, without the error: the tensors of its frames are gone with it."""
    try:
        work()
    except RowError as error:
        assert error.code is ErrorCode.OUT_OF_MEMORY
        return error.message
    pytest.fail("the memory did not run out")


def test_memory_that_runs_out_in_a_forward_is_a_rows_error_and_comes_back() -> None:
    card = bench()
    model = card.transformer()
    work = partial(model.predict, *batch(card, 4))
    card.free()
    held = torch.cuda.memory_allocated()
    with card.limited(held + 0.5 * GB):
        error = out_of_memory_in(work)
        assert torch.cuda.memory_allocated() <= held + 0.05 * GB
    assert "1 branch" in error
    assert len(work()[0]) == 8


def test_memory_that_runs_out_in_the_smallest_tiles_is_a_rows_error_and_comes_back() -> None:
    card = bench()
    codec, latent = card.codec(tiling=None), card.latent()
    card.free()
    held = torch.cuda.memory_allocated()
    with card.limited(held + 0.5 * GB):
        out_of_memory_in(partial(codec.decode, latent, CLIP[0]))
        assert torch.cuda.memory_allocated() <= held + 0.05 * GB
    assert Codec(codec.vae).decode(latent, CLIP[0]).shape == (*CLIP, 3)


def test_the_limit_of_a_process_is_what_its_memory_says() -> None:
    memory = DeviceMemory("cuda")
    total = torch.cuda.mem_get_info()[1]
    with bench().limited(total / 2):
        assert memory.total() == pytest.approx(total / 2, rel=0.01)
        free = memory.free()
        assert free is not None
        assert free <= total / 2


# Speed


def test_the_host_never_waits_for_the_gpu_inside_a_prediction() -> None:
    card = bench()
    work = partial(card.transformer().predict, *batch(card, 4))
    work()
    assert host_waits(card, work) == 0


def test_the_host_waits_before_and_after_the_loop_of_an_edit_and_not_inside() -> None:
    editor = Editor.from_pretrained("embedded", device="cuda")
    editor.set_progress_bar_config(disable=True)
    frames = torch.full((9, 48, 48, 3), 120, dtype=torch.uint8)
    trajectory = editor.invert(frames, steps=12)
    waits = []
    for start in (0.5, 1.0):
        settings = Reconstruction(start=start)
        edits = [settings.filled(EditSpec(prompt="a blue square"), 0)]
        work = partial(editor.denoise, trajectory, edits, settings)
        work()
        waits.append(host_waits(bench(), work))
    assert waits[0] == waits[1]  # twice the steps


def test_a_prompt_of_another_device_is_no_trouble() -> None:
    """Embeddings of a job's store come to the host first."""
    card = bench(NARROW)
    empty = card.prompt("")
    there = Branch(card.latent(), empty)
    here = Branch(there.latents, Prompt("", empty.embedding.cpu()))
    model = card.transformer()
    assert torch.equal(model.predict([there], 500)[0][0], model.predict([here], 500)[0][0])
