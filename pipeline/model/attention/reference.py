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
from torch import Tensor

from pipeline.model.attention.choice import Shape
from pipeline.model.attention.kernels import Kernel, sdpa


@dataclass
class References:
    """The keys and values that a block's reference branches leave for its edit branches.

    With one reference they wait where attention reads them: `buffers` hold `[own; reference]` for
    each edit branch that goes through a block at once. The reference's half is written once a
    block, an edit's own half when it comes, and nothing is concatenated. They last for a whole
    forward. With several references, or under ring, whose steps bring other tokens each, they are
    stored as they are and concatenated for each edit branch.

    Bytes moved for a 5b edit branch in a block (17,776 tokens of 48 heads x 64 in bf16: its keys
    are 109 MB, as many as its values), read and written, beside those of the kernel itself:
    concatenation 1.31 GB (the reference gathered by its index, then the two joined), the buffers
    0.44 GB and 0.44 GB a block for the reference. Two partial attentions merged by their
    logsumexp need none of it, but read both outputs and write the merged one, 0.33 GB in a kernel
    of its own and over 1.5 GB as torch's float32 operations, write one more output, need a kernel
    that returns the logsumexp, and round otherwise. Side by side on one CPU core, in float32, the
    buffers cost a tenth of the concatenation: 0.5 against 5.1 of a branch's 169 ms (2,000 tokens, 8
    heads), 1.3 against 11.5 ms (8,000 tokens, 4 heads). The merge was as fast as the buffers,
    within 2%. Untried on a GPU.

    Args:
        buffers: for keys and for values [edit branches at once, heads, 2 * tokens, head_dim]; None
            where references are stored as they are.
        stored: [1, heads, tokens, head_dim] of each reference, by the step in which attention meets
            this share of the tokens: a ring's steps, or 0 alone.
    """

    buffers: tuple[Tensor, Tensor] | None = None
    stored: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: Shape, references: int, edits: int) -> References:
        """Room for a forward's references, and for so many edit branches at once."""
        if references != 1 or shape.logsumexp:
            return cls()
        size = (edits, shape.heads, shape.keys, shape.head_dim)
        keys, values = (torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in "kv")
        return cls((keys, values))

    def emptied(self) -> References:
        """For the next block: the same buffers, and no reference yet."""
        return References(self.buffers)

    def add(self, k: Tensor, v: Tensor, step: int) -> None:
        """Keep the keys and values [B, heads, tokens, head_dim] of reference branches."""
        if self.buffers is None:
            self.stored.setdefault(step, []).extend(zip(k.split(1), v.split(1), strict=True))
            return
        for buffer, x in zip(self.buffers, (k, v), strict=True):
            buffer[:, :, x.shape[2] :] = x

    def joined(
        self, k: Tensor, v: Tensor, reference_index: Sequence[int], step: int
    ) -> tuple[Tensor, Tensor]:
        """`[own; reference]` along the tokens, for the keys and the values of edit branches."""
        keys, values = (
            buffer[: len(k)] for buffer in self.buffers or self._gathered(k, reference_index, step)
        )
        keys[:, :, : k.shape[2]], values[:, :, : v.shape[2]] = k, v
        return keys, values

    def _gathered(
        self, k: Tensor, reference_index: Sequence[int], step: int
    ) -> tuple[Tensor, Tensor]:
        """Buffers for this call alone, with the stored references in their half."""
        branches, heads, tokens, head_dim = k.shape
        keys, values = (k.new_empty(branches, heads, 2 * tokens, head_dim) for _ in "kv")
        for branch, i in enumerate(reference_index):
            seen_k, seen_v = self.stored[step][i]
            keys[branch, :, tokens:], values[branch, :, tokens:] = seen_k[0], seen_v[0]
        return keys, values


Exchange = Callable[[Tensor, Tensor, Tensor, Sequence[int], References | None, Kernel], Tensor]
"""(q, k, v [B, heads, tokens, head_dim], reference_index, references, kernel) -> attention output
like q; reference_index and references as in `with_references`."""


@dataclass
class AttentionPlan:
    """What the processors of all blocks share for the length of one forward.

    Args:
        reference_index: for each branch of the batch, the reference branch that it sees; empty
            where they are references themselves, or see none.
        exchange: attention over the tokens of all ranks.
        kernel: computes it.
        references: the keys and values of the reference branches that went through this block;
            None where there are none, and in a block without reference attention.
    """

    reference_index: Sequence[int] = ()
    exchange: Exchange = field(default_factory=lambda: attend)
    kernel: Kernel = sdpa
    references: References | None = None


class ReferenceAttention:
    """A diffusers attention processor for CogVideoX blocks; the numbers are upstream's.

    Source: `CogVideoXAttnProcessor2_0` in diffusers `models/attention_processor.py`, whose steps
    (project, normalise, rotate the video tokens, attend, project) it keeps. One serves all blocks:
    a number of its own in each would make `torch.compile` compile each block anew.
    """

    def __init__(self, plan: AttentionPlan) -> None:
        self.plan = plan

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = queries_keys_values(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        plan = self.plan
        out = plan.exchange(q, k, v, plan.reference_index, plan.references, plan.kernel)
        del q, k, v  # here and below: what is not used any more makes room
        out = out.transpose(1, 2).flatten(2)
        return project_attended(attn, out, encoder_hidden_states.shape[1])


def queries_keys_values(
    attn: Any, video: Tensor, text: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, tokens, head_dim] of tokens [B, N, D], the text's first.

    Args:
        attn: a block's attention layer.
        rotary: cosines and sines [video tokens, head_dim].
    """
    x = torch.cat([text, video], dim=1)
    q, k, v = _projected(attn, x)
    del x
    if attn.norm_q is not None:
        q = attn.norm_q(q)
        k = attn.norm_k(k)
    if rotary is not None:
        q = _rotate_video(q, text.shape[1], rotary)
        k = _rotate_video(k, text.shape[1], rotary)
    return q, k, v


def project_attended(attn: Any, out: Tensor, text_tokens: int) -> tuple[Tensor, Tensor]:
    """What attention found for tokens [B, N, D], the text's first: for the video, for the text."""
    text, video = attn.to_out[0](out).split([text_tokens, out.shape[1] - text_tokens], dim=1)
    return video, text


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reference_index: Sequence[int],
    references: References | None,
    kernel: Kernel = sdpa,
) -> Tensor:
    """Attention in one process: the exchange of one rank. Arguments as for `with_references`."""
    return kernel(q, *with_references(k, v, reference_index, references))[0]


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
        references: of the reference branches so far; None where no branch sees one.
        step: whose share of the tokens this is, in the order in which ring brings them.
    """
    if references is None:
        return k, v
    if not reference_index:
        references.add(k, v, step)
        return k, v
    return references.joined(k, v, reference_index, step)


def _projected(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, tokens, head_dim] of hidden states [B, tokens, D].

    Inside of the caller a generator would hold `x`, where `torch.compile` cannot let it go.
    """
    q, k, v = (
        project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    return q, k, v


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
    # Products with float32 are float32, as after `float()`, and take no copy of the input.
    return (x * cos).add_(turned * sin).to(x.dtype)
