"""Attention as the training stages run it: alone, or with a reference.

The numbers are those of diffusers' own processor. It is written out here because on a CPU the
backward pass of attention is a sixth of a step cheaper in float32, with the rotation of queries and
keys as one complex product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TrainingAttention:
    """A processor for `transformer.set_attn_processor`.

    With `reference`, the batch is `[edit | reference]` in equal halves, and the edit half sees its
    own and the reference's keys and values; the reference half sees its own only.
    """

    reference: bool = False

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden_states` [B, video tokens, D] and `encoder_hidden_states` [B, text tokens, D]."""
        if image_rotary_emb is None:
            raise ValueError("no rotary embedding: the recipe trains rotary checkpoints only")
        text = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(both).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        with torch.autocast(query.device.type, enabled=False):
            query = rotate(attn.norm_q(query.float()), image_rotary_emb, text)
            key = rotate(attn.norm_k(key.float()), image_rotary_emb, text)
            attended = self._attend(query, key, value.float())
        out = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return out[:, text:], out[:, :text]

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if not self.reference:
            return F.scaled_dot_product_attention(query, key, value)
        edit, reference = query.chunk(2)
        both_keys, both_values = torch.cat(key.chunk(2), dim=2), torch.cat(value.chunk(2), dim=2)
        return torch.cat(
            [
                F.scaled_dot_product_attention(edit, both_keys, both_values),
                F.scaled_dot_product_attention(reference, key.chunk(2)[1], value.chunk(2)[1]),
            ]
        )


def rotate(tokens: torch.Tensor, rotary: Rotary, text: int) -> torch.Tensor:
    """Rotary embedding of all tokens [B, H, N, D] but the first `text` ones."""
    cos, sin = rotary
    turn = torch.complex(cos[:, ::2], sin[:, ::2])
    turn = torch.cat([torch.ones(text, turn.shape[1], dtype=turn.dtype), turn])
    pairs = torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)
