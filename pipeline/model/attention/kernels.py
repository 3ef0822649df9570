"""Attention kernels by name, each tried on a few tokens before use.

`torch.nn.functional.scaled_dot_product_attention` takes the first of its kernels that can run, not
the fastest, and does not return the logsumexp of the scores, by which ring attention merges what
each rank's keys give. So the kernels behind it are called by their own names; `torch.compile` knows
these. Which of them runs depends on the GPU, the dtype and what is installed; what form the
logsumexp has depends on the kernel. `choice.py` beside this takes the fastest that is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(q, k, v [B, heads, tokens, head_dim]) -> attention output like q, and the logsumexp of its
scores [B, heads, tokens], float32; None from a kernel that does not return it."""

TOLERANCE = 2e-2
"""Largest error of a trial: above 16-bit rounding, far below a logsumexp in base 2 or misplaced."""
ROUGH_TOLERANCE = {"sage": 0.1}
"""That of kernels in 8 bits, by name: scores wrong by a factor are off by more than twice this."""

PACKAGES = {
    "flash_3": ("flash_attn_interface", "flash_attn_func"),
    "flash_4": ("flash_attn.cute.interface", "flash_attn_func"),
    "sage": ("sageattention", "sageattn"),
}
"""Kernels that torch does not bring: the package's module and its function."""


def pick_kernel(kernels: Mapping[str, Kernel], like: Tensor, *, logsumexp: bool) -> Kernel:
    """The first kernel that is right for tensors of this dtype, head_dim and device.

    Args:
        kernels: by name, the preferred ones first.
        like: [B, heads, tokens, head_dim].
        logsumexp: whether it must be returned too.

    Raises:
        RuntimeError: says why each of them was passed over.
    """
    reasons: dict[str, str] = {}
    for name, kernel in kernels.items():
        reason = fault(kernel, like, logsumexp=logsumexp, tolerance=tolerance_of(name))
        if reason is None:
            return kernel
        reasons[name] = reason
    raise RuntimeError(no_kernel(reasons, like.dtype, like.shape[-1], like.device))


def no_kernel(
    reasons: Mapping[str, str], dtype: torch.dtype, head_dim: int, device: torch.device
) -> str:
    """What an error says where no kernel is right, and why each is not."""
    reported = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return (
        f"no attention kernel works for {dtype} with head_dim {head_dim} on {device} ({reported}); "
        "use one rank, or another precision"
    )


def kernels_for(device: torch.device, *, logsumexp: bool) -> dict[str, Kernel]:
    """Those that `auto` chooses from on a device, the preferred ones first, and `sage`."""
    if device.type != "cuda":
        return torch_kernels(device, logsumexp=logsumexp)
    installed = [name for name in PACKAGES if _is_installed(name)]
    return {
        **{name: _packaged(name, logsumexp=logsumexp) for name in installed},
        **torch_kernels(device, logsumexp=logsumexp),
    }


def torch_kernels(device: torch.device, *, logsumexp: bool) -> dict[str, Kernel]:
    """What torch brings, the preferred ones first."""
    if device.type == "cuda":
        return {
            "cudnn": partial(_cudnn, logsumexp=logsumexp),
            "flash": _flash,
            "efficient": partial(_efficient, logsumexp=logsumexp),
        }
    return {"flash for cpu": _flash_for_cpu} if logsumexp else {"sdpa": sdpa}


def tolerance_of(name: str) -> float:
    """The largest error that a trial allows the kernel of this name."""
    return ROUGH_TOLERANCE.get(name, TOLERANCE)


def fault(kernel: Kernel, like: Tensor, *, logsumexp: bool, tolerance: float) -> str | None:
    """Why a kernel cannot be taken for tensors like this one; None where it can.

    Args:
        like: of the dtype, head_dim and device in question, [B, heads, tokens, head_dim].
    """
    # 40 queries are no multiple of 32: the efficient kernel pads its logsumexp to one. Heads stand
    # inside of tokens, as the projections of a block leave them.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, tokens, 2, like.shape[-1], generator=generator).to(like).transpose(1, 2)
        for tokens in (40, 72, 72)
    )
    try:
        out, lse = kernel(q, k, v)
        scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
        off = (out.float() - scores.softmax(-1) @ v.float()).abs().max()
    except Exception as error:
        return str(error).partition("\n")[0] or type(error).__name__
    if not off <= tolerance:  # not `off > tolerance`, which is false for NaN
        return "wrong output"
    if not logsumexp:
        return None
    expected = scores.logsumexp(-1)
    if lse is None or lse.shape != expected.shape:
        return "no logsumexp"
    return None if (lse - expected).abs().max() <= tolerance else "wrong logsumexp"


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Torch's own choice; it has a way for every dtype and head_dim, and no logsumexp."""
    return F.scaled_dot_product_attention(q, k, v), None


def _flash_for_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse


def _cudnn(
    q: Tensor, k: Tensor, v: Tensor, *, logsumexp: bool = True
) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, logsumexp)
    return out, lse.reshape(q.shape[:3]) if logsumexp else None


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, *, logsumexp: bool = True
) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, logsumexp)
    return out, lse[..., : q.shape[2]] if logsumexp else None


def _is_installed(name: str) -> bool:
    try:
        return find_spec(PACKAGES[name][0]) is not None
    except (ImportError, ValueError):  # of the packages above the module
        return False


def _packaged(name: str, *, logsumexp: bool) -> Kernel:
    """A kernel of a package; where the package cannot be imported, one that says why.

    FlashAttention 3 and 4 (Dao-AILab/flash-attention, `hopper/` and `flash_attn/cute/`) take heads
    inside of tokens; versions differ in whether they return the logsumexp unasked. SageAttention
    (thu-ml/SageAttention) takes our order.
    """
    module, function = PACKAGES[name]
    try:
        attention: Any = getattr(import_module(module), function)
    except Exception as error:  # a package built for another GPU, CUDA or torch raises all kinds
        return partial(_unusable, f"{type(error).__name__}: {error}")
    asked: dict[str, Any] = {}
    if logsumexp and name != "flash_4":
        asked = {"return_lse" if name == "sage" else "return_attn_probs": True}

    def inside_tokens(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        made = attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=False, **asked)
        out, lse = made[:2] if isinstance(made, tuple) else (made, None)
        return out.transpose(1, 2), lse

    def outside_tokens(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        made = attention(q, k, v, tensor_layout="HND", is_causal=False, **asked)
        return made if isinstance(made, tuple) else (made, None)

    return outside_tokens if name == "sage" else inside_tokens


def _unusable(why: str, *_: Tensor) -> tuple[Tensor, Tensor | None]:
    raise RuntimeError(why)
