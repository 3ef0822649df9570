"""Compiled blocks: how many graphs, the same numbers, and the ways back to what is not compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from pipeline.algorithm.branches import Branch
from pipeline.errors import RowError
from pipeline.model.group import OneRank
from pipeline.model.transformer import VelocityModel, compiled
from pipeline.model.transformer.compiled import CompiledBlocks, Trial
from pipeline.settings import Speed
from tests.named_prompts import NamedModel
from tests.small_models import FAMILIES, make_transformer

BLOCKS = 3


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs of other tests; none are left."""
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_model(family: str = "2b", blocks: int = BLOCKS) -> NamedModel:
    transformer = make_transformer(family, num_layers=blocks)
    tokens = transformer.config.max_text_seq_length
    return NamedModel(
        transformer, {p: draw(tokens, 32, seed=ord(p or "-")) for p in ("", "a", "b")}
    )


class Tried(CompiledBlocks):
    """Blocks that `auto` tries on a CPU too."""

    def _sensible(self, device: torch.device) -> bool:
        return self.wanted is not False


def with_compiled(model: NamedModel, wanted: Any = True, backend: Any = "aot_eager") -> NamedModel:
    blocks = model.transformer.transformer_blocks
    model.compiled = Tried(blocks, model._plan, model.group, wanted, backend)
    counters.clear()  # those of the trial of the compiler
    return model


def predict(model: NamedModel, count: int, timestep: int = 500) -> Tensor:
    """Velocities of plain attention for one branch, with a reference for more."""
    frames = 4 if model.transformer.config.patch_size_t else 3
    latents = draw(count, frames, 16, 8, 12)
    if count == 1:
        return model.predict([Branch(latents[0], "a")], timestep)[0][0]
    branches = [Branch(x, "ab"[i % 2], "") for i, x in enumerate(latents)]
    velocities, own = model.predict(branches, timestep, draw(frames, 16, 8, 12, seed=9))
    return torch.stack([*velocities, own[""]])


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def fails(error: Exception) -> Callable[..., Any]:
    """A backend that raises when it is to compile a block, and compiles what is smaller."""

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        if len(list(graph.graph.nodes)) > 10:
            raise error
        return graph.forward

    return backend


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_share_two_graphs_for_each_number_of_branches(family: str) -> None:
    model = small_model(family)
    expected = {count: predict(model, count) for count in (1, 3)}
    with_compiled(model)
    for count, made in ((1, 2), (3, 4), (1, 4), (3, 4)):
        assert torch.equal(predict(model, count), expected[count])
        assert model.compiled.used
        assert graphs() == made
        assert not counters["graph_break"]
    predict(model, 3, timestep=20)
    model.predict([Branch(draw(expected[1].shape[0], 16, 8, 12), "b")], 20)
    model.max_branches = 1
    assert torch.equal(predict(model, 3), expected[3])
    assert graphs() == 4


def test_the_window_of_blocks_with_references_needs_no_other_graph() -> None:
    model = small_model("5b")
    branches = [Branch(x, "a", "") for x in draw(2, 3, 16, 8, 12)]
    source = draw(3, 16, 8, 12, seed=9)
    expected = model.predict(branches, 500, source, blocks=(1, 2))[0]
    with_compiled(model)
    predict(model, 2)
    made = graphs()
    velocities = model.predict(branches, 500, source, blocks=(1, 2))[0]
    assert torch.equal(torch.stack(velocities), torch.stack(expected))
    assert graphs() == made


@pytest.mark.soak
def test_inductor_compiles_the_blocks_within_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "MIN_GAIN", 0.0)
    model = small_model("5b", blocks=1)
    expected = predict(model, 1)
    with_compiled(model, "auto", "inductor")
    velocity = predict(model, 1)
    assert model.compiled.used
    assert graphs() == 2
    assert list(tmp_path.rglob("*.so"))
    assert (velocity - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("wanted", ["auto", False])
def test_nothing_is_compiled_on_a_cpu_unless_it_is_asked_for(wanted: Any) -> None:
    model = VelocityModel(make_transformer("2b"), speed=Speed(compile=wanted))
    blocks = model.transformer.transformer_blocks
    assert model.compiled.wanted == wanted
    model.compiled.prepare(92, *[draw(1, 4, 4)] * 3, None)
    assert not model.compiled.used
    assert not any("forward" in block.__dict__ for block in blocks)
    assert not graphs()


def test_hooks_on_compiled_blocks_are_called() -> None:
    model = with_compiled(small_model())
    called: list[Any] = []
    for block in model.transformer.transformer_blocks:
        block.register_forward_hook(lambda block, *_: called.append(block))
    predict(model, 1)
    assert called == list(model.transformer.transformer_blocks)
    assert graphs() == 2


def test_a_compilation_beats_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BEAT_S", 0.01)
    beaten = threading.Event()

    def slow(graph: torch.fx.GraphModule, _: Any) -> Any:
        assert beaten.wait(60)
        return graph.forward

    model, did = small_model(), list[str]()
    beaten.set()  # for the trial of the compiler
    with_compiled(model, True, slow)
    beaten.clear()
    model.compiled.pulse, model.compiled.progress = beaten.set, did.append
    predict(model, 1)
    assert model.compiled.used
    assert did == [
        "the forward before blocks are compiled for 92 tokens",
        "the compilation of blocks for 92 tokens",
    ]
    assert threading.active_count() == 1 or not any(
        "beat" in thread.name for thread in threading.enumerate()
    )


def test_a_thread_that_compiles_later_has_the_same_limits() -> None:
    """What torch is told of these holds for the thread that tells it."""
    limits: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        limits.append(torch._dynamo.config.recompile_limit)
        return graph.forward

    model = with_compiled(small_model(), True, backend)
    predict(model, 1)
    made = len(limits)
    thread = threading.Thread(target=predict, args=(model, 3))
    thread.start()
    thread.join()
    assert len(limits) == made + 2
    assert min(limits) >= 8 * compiled.SHAPES


def test_auto_keeps_the_operations_of_diffusers_where_the_compiler_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = small_model()
    expected = predict(model, 3)
    with_compiled(model, "auto", fails(RuntimeError("no Triton here")))
    for _ in range(2):
        assert torch.equal(predict(model, 3), expected)
    assert not model.compiled.used
    assert capsys.readouterr().err.count("no Triton here") == 1


def test_compile_true_without_a_compiler_fails_at_the_start() -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no Triton here")

    with pytest.raises(ValueError, match="no Triton here.*set speed.compile to auto"):
        with_compiled(small_model(), True, backend)


def test_compile_true_fails_where_blocks_cannot_be_compiled() -> None:
    model = with_compiled(small_model(), True, fails(RuntimeError("no such operation")))
    with pytest.raises(RowError, match=r"no such operation.*auto or false"):
        predict(model, 1)


def test_memory_that_a_compilation_does_not_find_costs_nothing_but_the_compilation() -> None:
    model = small_model()
    expected = predict(model, 3)
    with_compiled(model, True, fails(torch.OutOfMemoryError("CUDA out of memory")))
    assert torch.equal(predict(model, 3), expected)
    assert not model.compiled.used


def test_a_graph_with_other_numbers_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(graph: torch.fx.GraphModule, _: Any) -> Any:
        return lambda *inputs: tuple(1.2 * x for x in graph.forward(*inputs))

    model = small_model()
    expected = predict(model, 3)
    with_compiled(model, "auto", wrong)
    assert torch.equal(predict(model, 3), expected)
    assert "compiled blocks are off by 0.2" in capsys.readouterr().err


@pytest.mark.parametrize(("needed", "used"), [(0.0, True), (1e6, False)])
def test_auto_keeps_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, needed: float, used: bool
) -> None:
    monkeypatch.setattr(compiled, "MIN_GAIN", needed)
    model = with_compiled(small_model(), "auto")
    predict(model, 1)
    assert model.compiled.used is used
    blocks = model.transformer.transformer_blocks
    assert all(("forward" in block.__dict__) is used for block in blocks)


def test_ranks_of_which_one_gains_nothing_use_no_compiled_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "MIN_GAIN", 0.01)
    for other, used in ((Trial(0.001), False), (Trial(problem="none"), False), (Trial(2.0), True)):

        class Two(OneRank):
            def gather_objects(self, value: Any, other: Trial = other) -> list[Any]:
                return [value, other] if isinstance(value, Trial) else [value, value]

        model = small_model()
        model.group = Two()
        with_compiled(model, "auto")
        predict(model, 1)
        assert model.compiled.used is used


def test_beyond_the_most_shapes_blocks_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "SHAPES", 1)
    model = small_model()
    expected = predict(model, 3)
    with_compiled(model)
    model.max_branches = 1
    assert torch.equal(predict(model, 3), expected)
    model.max_branches = 2
    for _ in range(2):
        assert torch.equal(predict(model, 3), expected)
    assert graphs() == 2
    assert capsys.readouterr().err.count("blocks are not compiled for 2 branches at once") == 1


def test_another_model_of_the_same_transformer_starts_without_compiled_blocks() -> None:
    model = with_compiled(small_model())
    predict(model, 1)
    other = NamedModel(model.transformer, model.prompts)
    assert not any("forward" in block.__dict__ for block in other.transformer.transformer_blocks)
    predict(other, 1)
    assert not other.compiled.used
