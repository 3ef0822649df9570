"""Reference attention: an edit's queries see their own keys and values and the reference's.

This is the mutual self-attention of MasaCtrl (Cao et al., ICCV 2023) as the public CogVideoX script
has it: in every chosen block the edit branch attends to `[own; reference]`, text tokens included,
while the reference branch attends to itself.

A batch holds the edit branches first and the reference branches behind them; `attends[i]` says
which reference branch edit branch i sees. The exchange between ranks happens around `attend`
(`pipeline/parallel.py`), so the same function serves one process and many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

Exchange = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(q, k, v [B, heads, tokens, head_dim], attends) -> attention output of the same shape as q."""


@dataclass
class AttentionPlan:
    """What the processors of all blocks share for the length of one forward.

    Args:
        attends: for each edit branch, the reference branch that it sees; empty where none is.
        first_block, last_block: reference attention happens in blocks first <= i < last.
        exchange: attention over the tokens of all ranks.
        kept: the keys and values [R, heads, tokens, head_dim] of the block's reference branches,
            where they go through it ahead of the edit branches; None where they stand behind them
            in one batch.
    """

    attends: Sequence[int] = ()
    first_block: int = 0
    last_block: int = 1 << 30
    exchange: Exchange = field(default_factory=lambda: attend)
    kept: list[tuple[Tensor, Tensor]] | None = None


class ReferenceAttention:
    """A diffusers attention processor for CogVideoX blocks; the numbers are upstream's.

    Source: `CogVideoXAttnProcessor2_0` in diffusers `models/attention_processor.py`, whose steps
    (project, normalise, rotate the video tokens, attend, project) it keeps.
    """

    def __init__(self, plan: AttentionPlan, block: int) -> None:
        self.plan = plan
        self.block = block

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            q, k = (_rotate_video(y, text_tokens, image_rotary_emb) for y in (q, k))
        out = self._exchange(q, k, v)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        text, video = out.split([text_tokens, out.shape[1] - text_tokens], dim=1)
        return video, text

    def _exchange(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        plan = self.plan
        injected = plan.first_block <= self.block < plan.last_block
        attends = plan.attends if injected else ()
        if plan.kept is not None and not plan.attends:
            plan.kept.append((k, v))
        elif plan.kept is not None and attends:
            kept_k, kept_v = zip(*plan.kept, strict=True)
            k, v = torch.cat([k, *kept_k]), torch.cat([v, *kept_v])
        return plan.exchange(q, k, v, attends)


def attend(q: Tensor, k: Tensor, v: Tensor, attends: Sequence[int]) -> Tensor:
    """Attention of a batch `[edit branches | reference branches]` in one process.

    Args:
        q: [B, heads, tokens, head_dim]; of the edit branches alone, it is answered for them alone.
        k, v: the same, of all branches.
        attends: for each of the first len(attends) branches, the index among the others of the
            reference branch that it sees. Empty: every branch attends to itself alone.
    """
    edits = len(attends)
    if not edits:
        return F.scaled_dot_product_attention(q, k, v)
    out = torch.empty_like(q)
    keys, values = with_reference(k, v, attends)
    out[:edits] = F.scaled_dot_product_attention(q[:edits], keys, values)
    if len(q) > edits:
        out[edits:] = F.scaled_dot_product_attention(q[edits:], k[edits:], v[edits:])
    return out


def with_reference(k: Tensor, v: Tensor, attends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys and values that the edit branches see: `[own; reference]` along the tokens."""
    edits = len(attends)
    seen = [edits + i for i in attends]
    return torch.cat([k[:edits], k[seen]], dim=2), torch.cat([v[:edits], v[seen]], dim=2)


def _rotate_video(x: Tensor, text_tokens: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    text, video = x[:, :, :text_tokens], x[:, :, text_tokens:]
    return torch.cat([text, apply_rotary_emb(video, rotary)], dim=2)
