from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.model.attention.kernels import Kernel, pick_kernel, torch_kernels

CPU = torch.device("cpu")
HALVES = (torch.float16, torch.bfloat16)
LIKE = torch.zeros(1, 1, 1, 64)


def right(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def missing(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    raise NameError("name 'flash_attn_func_3' is not defined")


def in_base_two(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse = right(q, k, v)
    assert lse is not None
    return out, lse * 1.442695


def padded(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse = right(q, k, v)
    assert lse is not None
    return out, torch.nn.functional.pad(lse, (0, 24))


def silent(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    return right(q, k, v)[0], None


def unscaled(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    return right(q * 2, k, v)


def not_a_number(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    return right(q, k, v)[0] * math.nan, right(q, k, v)[1]


def without_a_sum(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse = right(q, k, v)
    assert lse is not None
    return out, lse * math.nan


@pytest.mark.parametrize(
    "wrong", [missing, in_base_two, padded, silent, unscaled, not_a_number, without_a_sum]
)
def test_a_kernel_that_is_missing_or_wrong_is_passed_over(wrong: Kernel) -> None:
    assert pick_kernel({"wrong": wrong, "right": right}, LIKE, logsumexp=True) is right


def test_a_kernel_without_a_logsumexp_serves_where_none_is_needed() -> None:
    assert pick_kernel({"silent": silent, "right": right}, LIKE, logsumexp=False) is silent


def test_where_no_kernel_works_each_ones_reason_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"64 on cpu \(a: name 'flash.*; b: no logsumexp"):
        pick_kernel({"a": missing, "b": silent}, LIKE, logsumexp=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logsumexp", [True, False])
def test_torch_has_a_kernel_for_the_cpu_in_every_precision(
    dtype: torch.dtype, logsumexp: bool
) -> None:
    kernels = torch_kernels(CPU, logsumexp=logsumexp)
    assert pick_kernel(kernels, LIKE.to(dtype), logsumexp=logsumexp) in kernels.values()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "efficient"),
        *((dtype, name) for dtype in HALVES for name in ("flash", "cudnn", "efficient")),
    ],
)
def test_torch_has_kernels_with_a_logsumexp_for_the_gpu(dtype: torch.dtype, name: str) -> None:
    device = torch.device("cuda")
    kernel = torch_kernels(device, logsumexp=True)[name]
    assert pick_kernel({name: kernel}, LIKE.to(device, dtype), logsumexp=True) is kernel


def test_picking_a_kernel_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    pick_kernel({"right": right}, LIKE, logsumexp=True)
    assert torch.equal(torch.get_rng_state(), before)
