"""Attention kernels for a group of ranks: the fastest one at hand that is right.

Ring attention merges what each rank's keys give, and needs the logsumexp of the scores for it.
`torch.nn.functional.scaled_dot_product_attention` does not return it, so the kernels behind it are
called by their own names. Which of them runs depends on the GPU, the dtype and what is installed;
what form the logsumexp has depends on the kernel. So each is tried on a few tokens before use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(q, k, v [B, heads, tokens, head_dim]) -> attention output like q, and the logsumexp of its
scores [B, heads, tokens], float32; None from a kernel that does not return it."""

TOLERANCE = 2e-2
"""Largest error of a trial: above 16-bit rounding, far below a logsumexp in base 2 or misplaced."""


def pick_kernel(kernels: Mapping[str, Kernel], like: Tensor, *, logsumexp: bool) -> Kernel:
    """The first kernel that is right for tensors of this dtype, head_dim and device.

    Args:
        kernels: by name, the preferred ones first.
        like: [B, heads, tokens, head_dim].
        logsumexp: whether it must be returned too.

    Raises:
        RuntimeError: says why each of them was passed over.
    """
    reasons: list[str] = []
    for name, kernel in kernels.items():
        reason = _reason_against(kernel, like, logsumexp)
        if reason is None:
            return kernel
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(
        f"no attention kernel works for {like.dtype} with head_dim {like.shape[-1]} on "
        f"{like.device} ({'; '.join(reasons)}); use one rank, or another precision"
    )


def torch_kernels(device: torch.device, *, logsumexp: bool) -> dict[str, Kernel]:
    """What torch brings, the preferred ones first."""
    if not logsumexp:
        return {"sdpa": _sdpa}
    if device.type == "cpu":
        return {"flash for cpu": _flash_for_cpu}
    return {"flash": _flash, "cudnn": _cudnn, "efficient": _efficient}


def _reason_against(kernel: Kernel, like: Tensor, logsumexp: bool) -> str | None:
    # 40 queries are no multiple of 32: the efficient kernel pads its logsumexp to one.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, tokens, like.shape[-1], generator=generator).to(like)
        for tokens in (40, 72, 72)
    )
    try:
        out, lse = kernel(q, k, v)
    except Exception as error:
        return str(error).partition("\n")[0] or type(error).__name__
    scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
    off = (out.float() - scores.softmax(-1) @ v.float()).abs().max()
    if not off <= TOLERANCE:  # not `off > TOLERANCE`, which is false for NaN
        return "wrong output"
    if not logsumexp:
        return None
    expected = scores.logsumexp(-1)
    if lse is None or lse.shape != expected.shape:
        return "no logsumexp"
    return None if (lse - expected).abs().max() <= TOLERANCE else "wrong logsumexp"


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    return F.scaled_dot_product_attention(q, k, v), None


def _flash_for_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.reshape(q.shape[:3])


def _efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse[..., : q.shape[2]]
