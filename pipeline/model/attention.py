"""Reference attention: an edit's queries see their own keys and values and the reference's.

This is the mutual self-attention of MasaCtrl (Cao et al., ICCV 2023) as the public CogVideoX script
has it: in every chosen block the edit branch attends to `[own; reference]`, text tokens included,
while the reference branch attends to itself.

In each block the reference branches go ahead. Their keys and values wait for the edit branches, of
which branch i sees those of reference `reference_index[i]`. The exchange between ranks happens
around `with_references` (`pipeline/model/parallel/group.py`), so it serves one process and many,
and a reference travels between ranks once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

References = dict[int, list[tuple[Tensor, Tensor]]]
"""The keys and values [1, heads, tokens, head_dim] of each of a block's reference branches, by the
step in which attention meets this share of the tokens: a ring's steps, or 0 alone."""

Exchange = Callable[[Tensor, Tensor, Tensor, Sequence[int], References | None], Tensor]
"""(q, k, v [B, heads, tokens, head_dim], reference_index, references) -> attention output like q;
the last two as in `with_references`."""


@dataclass
class AttentionPlan:
    """What the processors of all blocks share for the length of one forward.

    Args:
        reference_index: for each branch of the batch, the reference branch that it sees; empty
            where they are references themselves, or see none.
        first_block, last_block: reference attention happens in blocks first <= i < last.
        exchange: attention over the tokens of all ranks.
        references: the keys and values of the reference branches that went through this block;
            None where there are none.
    """

    reference_index: Sequence[int] = ()
    first_block: int = 0
    last_block: int = 1 << 30
    exchange: Exchange = field(default_factory=lambda: attend)
    references: References | None = None


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
        injected = self.plan.first_block <= self.block < self.plan.last_block
        references = self.plan.references if injected else None
        out = self.plan.exchange(q, k, v, self.plan.reference_index, references)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        text, video = out.split([text_tokens, out.shape[1] - text_tokens], dim=1)
        return video, text


def attend(
    q: Tensor, k: Tensor, v: Tensor, reference_index: Sequence[int], references: References | None
) -> Tensor:
    """Attention in one process: the exchange of one rank. Arguments as for `with_references`."""
    return F.scaled_dot_product_attention(q, *with_references(k, v, reference_index, references))


def with_references(
    k: Tensor,
    v: Tensor,
    reference_index: Sequence[int],
    references: References | None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Keys and values that each branch sees: `[own; its reference's]` along the tokens.

    Args:
        k, v: [B, heads, tokens, head_dim], of the branches themselves.
        reference_index: for each branch, the index of the reference that it sees. Empty: every
            branch sees itself alone, and is a reference of those to come; it joins `references`.
        references: keys and values of the reference branches so far; None where no branch sees one.
        step: whose share of the tokens this is, in the order in which ring brings them.
    """
    if references is None:
        return k, v
    seen = references.setdefault(step, [])
    if not reference_index:
        seen.extend(zip(k.split(1), v.split(1), strict=True))
        return k, v
    seen_k = torch.cat([seen[i][0] for i in reference_index])
    seen_v = torch.cat([seen[i][1] for i in reference_index])
    return torch.cat([k, seen_k], dim=2), torch.cat([v, seen_v], dim=2)


def _rotate_video(x: Tensor, text_tokens: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    text, video = x[:, :, :text_tokens], x[:, :, text_tokens:]
    return torch.cat([text, rotate(video, *rotary)], dim=2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of queries or keys; each pair of neighbouring values is turned.

    Source: `apply_rotary_emb` in diffusers `models/embeddings.py`.

    Args:
        x: [B, heads, tokens, head_dim].
        cos, sin: [tokens, head_dim], float32.
    """
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
