"""One way to pick the attention kernel: right ones only, the fastest, the same on all ranks."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.model.attention import choice
from pipeline.model.attention.choice import (
    KernelChoice,
    Shape,
    choose_kernel,
    fastest,
    seconds_of,
    shape_of,
)
from pipeline.model.attention.kernels import (
    PACKAGES,
    Kernel,
    kernels_for,
    sdpa,
    torch_kernels,
)
from pipeline.model.parallel.degrees import Degrees
from pipeline.settings import Speed
from tests.pipeline.model.attention.test_kernels import not_a_number, right, silent, unscaled
from tests.small_models import make_transformer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = Shape(4, 10, 20, 64, torch.float32, CPU)


def other(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    return right(q, k, v)


def rough(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Wrong as a kernel in 8 bits is."""
    out, lse = right(q, k, v)
    assert lse is not None
    return out + 0.05, lse + 0.05


def broken(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    raise RuntimeError("built for another GPU")


def alone(found: Any) -> list[Any]:
    return [found]


def taking(seconds: dict[Kernel, float]) -> choice.Seconds:
    return lambda kernel, _: seconds[kernel]


# The fastest that is right


def test_the_fastest_right_kernel_is_taken() -> None:
    kernels = {"wrong": unscaled, "slow": right, "fast": other, "nan": not_a_number}
    times = taking({right: 2.0, other: 1.0})
    assert fastest(kernels, SHAPE, "auto", alone, times) is other


def test_the_one_that_is_named_is_taken_though_it_is_slower() -> None:
    kernels = {"flash": right, "cudnn": other}
    times = taking({right: 2.0, other: 1.0})
    assert fastest(kernels, SHAPE, "flash", alone, times) is right


def test_a_named_kernel_that_does_not_work_is_refused_with_those_that_do() -> None:
    kernels = {"flash_3": broken, "cudnn": right, "sage": rough}
    with pytest.raises(
        ValueError,
        match=r"^speed.attention is flash_3, which does not work here \(built for another GPU\); "
        r"at hand for 10 queries and 20 keys in 4 heads of 64, float32, on cpu: cudnn. "
        r"Take one of them, or auto$",
    ):
        fastest(kernels, SHAPE, "flash_3", alone, taking({right: 1.0}))
    with pytest.raises(ValueError, match=r"speed.attention is efficient.*\(it is not installed\)"):
        fastest(kernels, SHAPE, "efficient", alone, taking({right: 1.0}))


def test_sage_is_taken_only_where_it_is_asked_for_and_may_be_less_exact() -> None:
    kernels = {"sage": rough, "cudnn": right}
    times = taking({rough: 1.0, right: 2.0})
    assert fastest(kernels, SHAPE, "auto", alone, times) is right
    assert fastest(kernels, SHAPE, "sage", alone, times) is rough
    with pytest.raises(ValueError, match="wrong output"):
        fastest({"sage": unscaled, "cudnn": right}, SHAPE, "sage", alone, times)
    with pytest.raises(ValueError, match="wrong output"):
        fastest({"cudnn": rough, "flash": right}, SHAPE, "cudnn", alone, times)


def test_where_none_is_right_torch_chooses_unless_ring_needs_the_logsumexp(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fastest({"flash": broken}, SHAPE, "auto", alone) is sdpa
    said = capsys.readouterr().err
    assert "attention by torch's own choice" in said
    assert "flash: built for another GPU" in said
    ring = Shape(4, 10, 20, 64, torch.float32, CPU, logsumexp=True)
    with pytest.raises(RuntimeError, match=r"float32 with head_dim 64 on cpu \(flash: built for"):
        fastest({"flash": broken}, ring, "auto", alone)


def test_a_kernel_that_fails_at_the_real_size_is_passed_over() -> None:
    def tight(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        if q.shape[1] == SHAPE.heads:  # which a trial on few tokens does not have
            raise RuntimeError("too many resources requested for launch")
        return right(q, k, v)

    assert fastest({"tight": tight, "right": right}, SHAPE, "auto", alone) is right


@pytest.mark.parametrize("wrong", [0.0, float("nan"), 2.0])
def test_a_kernel_that_is_wrong_at_the_real_size_only_is_passed_over(wrong: float) -> None:
    def lost(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        out, lse = right(q, k, v)
        if q.shape[1] == SHAPE.heads:
            out[:, -1, -1] *= wrong
        return out, lse

    assert fastest({"lost": lost, "right": right}, SHAPE, "auto", alone) is right
    with pytest.raises(ValueError, match="wrong output at this size"):
        fastest({"sage": lost, "right": right}, SHAPE, "sage", alone)


# Ranks


def test_ranks_take_the_least_mean_of_their_times_and_none_that_fails_on_one() -> None:
    kernels = {"a": right, "b": other, "c": silent}

    def with_another_rank(found: dict[str, float | str]) -> list[dict[str, float | str]]:
        return [found, {"a": 4.0, "b": 1.0, "c": "no memory"}]

    times = taking({right: 1.0, other: 2.0, silent: 0.1})
    assert fastest(kernels, SHAPE, "auto", alone, times) is silent
    assert fastest(kernels, SHAPE, "auto", with_another_rank, times) is other


def test_a_kernel_that_another_rank_lacks_is_taken_by_none() -> None:
    def with_another_rank(found: dict[str, float | str]) -> list[dict[str, float | str]]:
        return [found, {"b": 9.0}]

    kernels, times = {"a": right, "b": other}, taking({right: 1.0, other: 2.0})
    assert fastest(kernels, SHAPE, "auto", with_another_rank, times) is other
    lacking = {"b": other}  # as that rank sees it
    for some in (kernels, lacking):
        ranks = [{"a": 1.0, "b": 2.0}, {"b": 9.0}]
        with pytest.raises(ValueError, match=r"a, .*\(it is not installed for every rank\)"):
            fastest(some, SHAPE, "a", lambda _, ranks=ranks: ranks, times)  # type: ignore[misc]
    assert fastest(lacking, SHAPE, "auto", lambda _: [{"a": 1.0, "b": 2.0}, {"b": 9.0}]) is other


def test_the_log_has_the_mean_of_the_ranks_times(capsys: pytest.CaptureFixture[str]) -> None:
    times = taking({right: 0.002})
    fastest({"flash": right}, SHAPE, "auto", lambda found: [found, {"flash": 0.004}], times)
    assert "flash 3.00 ms" in capsys.readouterr().err


def test_a_rank_that_finds_no_kernel_still_answers_the_others() -> None:
    asked: list[Any] = []

    def other_rank(found: Any) -> list[Any]:
        asked.append(found)
        return [found, {"flash": 1.0}]

    with pytest.raises(ValueError, match="built for another GPU"):
        fastest({"flash": broken}, SHAPE, "flash", other_rank)
    assert asked == [{"flash": "built for another GPU"}]


def test_a_ranks_shape_has_its_heads_and_its_part_of_the_tokens() -> None:
    transformer = make_transformer("5b", num_attention_heads=6)
    shape = shape_of(transformer, 101, Degrees(ulysses=3, ring=2))
    assert (shape.heads, shape.queries, shape.keys, shape.logsumexp) == (2, 51, 102, True)
    shape = shape_of(transformer, 101, Degrees(cfg=2))
    assert (shape.heads, shape.queries, shape.keys, shape.logsumexp) == (6, 101, 202, False)


# Times


def test_the_whole_shape_is_timed_twice_where_that_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int, int]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        seen.append((q.shape[1], q.shape[2], k.shape[2]))
        return right(q, k, v)

    monkeypatch.setattr("time.perf_counter", iter(range(100)).__next__)
    assert seconds_of(kernel, SHAPE) == 1
    assert seen == [(4, 10, 10), *[(4, 10, 20)] * 3], "one of each kind is looked at before"


def test_where_memory_runs_out_fewer_tokens_are_timed_and_at_last_none() -> None:
    seen: list[tuple[int, int]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, most: int = 5) -> tuple[Tensor, Tensor | None]:
        seen.append((q.shape[2], k.shape[2]))
        if q.shape[2] > most:
            raise torch.OutOfMemoryError("full")
        return right(q, k, v)

    assert 0 < seconds_of(kernel, SHAPE) < 60
    assert seen[:3] == [(10, 10), (5, 5), (5, 10)]
    with pytest.raises(MemoryError, match="full"):
        seconds_of(lambda q, k, v: kernel(q, k, v, 0), SHAPE)
    assert seen[-1] == (1, 1)


def test_a_shape_is_timed_once_and_logged_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = {"flash": right, "cudnn": other, "flash_3": broken}
    gathered: list[Any] = []
    monkeypatch.setattr(choice, "kernels_for", lambda *_, **__: kernels)
    monkeypatch.setattr(choice, "_on_gpu", lambda _: True)
    monkeypatch.setattr(choice, "seconds_of", taking({right: 0.002, other: 0.001}))
    chosen = KernelChoice()
    for _ in range(2):
        kernel = chosen.kernel(SHAPE, lambda found: gathered.append(found) or [found])
        assert kernel is other
    assert len(gathered) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "attention by cudnn (speed.attention auto) for 10 queries and 20 keys in 4 heads of 64, "
        "float32, on cpu: cudnn 1.00 ms, flash 2.00 ms; flash_3: built for another GPU"
    )


# Devices


def test_a_cpu_has_one_kernel_which_nothing_is_asked_about() -> None:
    def no_rank(_: Any) -> list[Any]:
        raise AssertionError("asked")

    assert choose_kernel(SHAPE, "auto", no_rank) is sdpa
    ring = Shape(4, 10, 20, 64, torch.float32, CPU, logsumexp=True)
    expected = torch_kernels(CPU, logsumexp=True)["flash for cpu"]
    assert choose_kernel(ring, "auto", no_rank) is expected


@pytest.mark.parametrize("wanted", ["flash_3", "flash_4", "cudnn", "flash", "efficient", "sage"])
def test_a_kernel_for_gpus_is_refused_on_a_cpu(wanted: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"speed.attention is {wanted}, a kernel for GPUs, and the model is on cpu, "
        "which has one kernel; make it auto",
    ):
        KernelChoice(wanted).check(SHAPE)


def test_on_a_gpu_torch_brings_three_and_packages_that_are_installed_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(kernels_for(GPU, logsumexp=False)) == ["cudnn", "flash", "efficient"]
    monkeypatch.setitem(sys.modules, "sageattention", _package("sageattention", sageattn=_sage))
    monkeypatch.setitem(
        sys.modules, "flash_attn_interface", _package("flash_attn_interface", flash_attn_func=_fa3)
    )
    for logsumexp in (True, False):
        kernels = kernels_for(GPU, logsumexp=logsumexp)
        assert list(kernels) == ["flash_3", "sage", "cudnn", "flash", "efficient"]
        shape = Shape(4, 10, 20, 64, torch.float32, CPU, logsumexp)
        for name in ("flash_3", "sage"):
            found = fastest({name: kernels[name]}, shape, name, alone)
            assert found is kernels[name]


def test_a_package_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", _package("flash_attn_interface"))
    kernels = kernels_for(GPU, logsumexp=False)
    with pytest.raises(ValueError, match=r"AttributeError: module 'flash_attn_interface' has no"):
        fastest({"flash_3": kernels["flash_3"]}, SHAPE, "flash_3", alone)


def test_every_kernel_that_auto_may_take_can_be_named() -> None:
    for name in (*PACKAGES, *torch_kernels(GPU, logsumexp=False)):
        assert Speed(attention=name).attention == name  # type: ignore[arg-type]


def _package(name: str, **functions: Any) -> ModuleType:
    from importlib.machinery import ModuleSpec

    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(functions)
    return module


def _fa3(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, return_attn_probs: bool = False):  # type: ignore[no-untyped-def]
    """As flash_attn_interface of 2026: heads inside of tokens."""
    out, lse = right(*(x.transpose(1, 2) for x in (q, k, v)))
    return (out.transpose(1, 2), lse) if return_attn_probs else out.transpose(1, 2)


def _sage(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str, is_causal: bool, **how: bool):  # type: ignore[no-untyped-def]
    assert (tensor_layout, is_causal) == ("HND", False)
    out, lse = rough(q, k, v)
    return (out, lse) if how.get("return_lse") else out
