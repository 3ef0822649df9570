"""One velocity prediction for a batch of branches, on one process or on many.

A branch is a latent with a prompt: an edit's positive or negative half, or the reference. All
branches of a call stand at the same noise level. Only what differs is computed: reference branches
with the same prompt are one. A batch goes through each block in parts, references first, so that
its size bounds nothing but the latents and their tokens.

The forward below is `CogVideoXTransformer3DModel.forward` opened up between the patch embedding and
the blocks: there the tokens are split over the ranks of a group, and gathered before they become a
latent again. Latents stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from pipeline.model.attention import AttentionPlan, Exchange, ReferenceAttention, attend

TOKENS_AT_ONCE = {"cpu": 2048, "gpu": 16384}
"""So many tokens of a rank go through a block at once; more cost room for activations. On a CPU the
pages for tensors above 32 MB took a quarter of the time of 13 branches; the GPU's is untried."""


@dataclass(frozen=True)
class Branch:
    """One forward that a step needs.

    Args:
        latents: [F, C, H, W], float32.
        prompt: which of the prompts conditions it.
        reference: the prompt of the reference branch that it attends to; None for plain attention.
    """

    latents: Tensor
    prompt: str
    reference: str | None = None


@dataclass
class Forwards:
    """How many forwards of one latent were computed, by what they cost.

    Args:
        plain: branches that attend to themselves.
        injected: branches that attend to a reference too (about 1.5 times a plain one).
    """

    plain: int = 0
    injected: int = 0

    @property
    def total(self) -> int:
        return self.plain + self.injected


class TokenGroup(Protocol):
    """The ranks that share the tokens, and perhaps the branches, of one prediction.

    Args:
        rank, ranks: this rank's number in the group, and how many there are.
        half, halves: which part of the branches this rank computes, of 1 or 2.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    @property
    def half(self) -> int: ...

    @property
    def halves(self) -> int: ...

    def gather_values(self, values: Tensor, counts: list[int]) -> Tensor:
        """This rank's flat values -> those of all ranks, `counts[r]` from rank r, in order."""

    def gather_objects(self, value: Any) -> list[Any]:
        """A small Python object of each rank, in order, on every rank."""

    def split(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> this rank's [B, ceil(N / ranks), D], padded where N does not divide."""

    def gather(self, tokens: Tensor, count: int) -> Tensor:
        """This rank's [B, n, D] -> all [B, count, D], padding dropped."""

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        """Attention over the tokens of all ranks, for so many tokens without padding."""

    def gather_halves(self, latents: Tensor, counts: Sequence[int]) -> Tensor:
        """This half's [counts[half], ...] -> [sum(counts), ...], the first half's ahead."""

    def stop(self) -> None:
        """Leave the group; nothing of it may be used any more."""


class OneRank:
    """The group of one process: nothing to split, gather or exchange."""

    rank, ranks = 0, 1
    half, halves = 0, 1

    def split(self, tokens: Tensor) -> Tensor:
        return tokens

    def gather(self, tokens: Tensor, count: int) -> Tensor:
        return tokens

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        return attend

    def gather_values(self, values: Tensor, counts: list[int]) -> Tensor:
        return values

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]

    def gather_halves(self, latents: Tensor, counts: Sequence[int]) -> Tensor:
        return latents

    def stop(self) -> None:
        pass


@dataclass
class VelocityModel:
    """A CogVideoX transformer as the algorithms see it.

    Args:
        transformer: a `CogVideoXTransformer3DModel`; its attention processors are replaced.
        prompts: the embedding [L, D] of every prompt that will be named.
        group: the ranks that compute together.
        max_branches: so many go through a block at once, equal on all ranks; None takes as many as
            keep the device busy. One process halves it when memory runs out. No forwards change.
        blocks: reference attention happens in blocks first <= i < last; None means all.
    """

    transformer: Any
    prompts: dict[str, Tensor]
    group: TokenGroup = field(default_factory=OneRank)
    max_branches: int | None = None
    blocks: tuple[int, int] | None = None
    forwards: Forwards = field(default_factory=Forwards)

    def __post_init__(self) -> None:
        self._plan = AttentionPlan()
        self._rotary: dict[tuple[int, int, int], tuple[Tensor, Tensor] | None] = {}
        for i, block in enumerate(self.transformer.transformer_blocks):
            block.attn1.set_processor(ReferenceAttention(self._plan, i))

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and the velocities that `predict` returns."""
        return torch.device(self.transformer.proj_out.weight.device)

    def velocity(self, prompt: str = "") -> Callable[[Tensor, int], Tensor]:
        """The model as inversion sees it: `(x [F, C, H, W], timestep) -> v [F, C, H, W]`."""

        def predict_one(x: Tensor, timestep: int) -> Tensor:
            return self.predict([Branch(x, prompt)], timestep)[0][0].to(x.device)

        return predict_one

    @torch.no_grad()
    def predict(
        self,
        branches: Sequence[Branch],
        timestep: int,
        reference: Tensor | None = None,
        *,
        share: bool = True,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The velocities of all branches.

        Where the group has two halves, each computes half of the branches and all get the whole.
        On a CPU a velocity's bytes do not depend on the branches beside it. On a GPU they do where
        parts differ in size (never for clips above half of `TOKENS_AT_ONCE`), within rounding.

        Args:
            branches: at least one.
            timestep: the training timestep of their common level.
            reference: the source's latent at this level, [F, C, H, W], where branches attend to it.
            share: compute reference branches of the same prompt once (exact); False computes one
                for each branch, as the public script does.

        Returns:
            The velocity of each branch, [F, C, H, W] float32, and the reference's own velocity by
            its prompt. The same on every rank of a group.
        """
        halves = split_halves(branches, self.group.halves)
        mine = halves[self.group.half % len(halves)]
        velocities, own = self._predict_within_memory(mine, timestep, reference, share)
        self._count(halves, share)
        return (velocities, own) if len(halves) == 1 else self._join(halves, velocities, own)

    def _join(
        self, halves: Sequence[Sequence[Branch]], velocities: list[Tensor], own: dict[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What both halves predicted, from what this one did."""
        keys = [_references(half, share=True)[1] for half in halves]
        counts = [len(h) + len(k) for h, k in zip(halves, keys, strict=True)]
        both = self.group.gather_halves(torch.stack(velocities + list(own.values())), counts)
        joined: list[Tensor] = []
        joined_own: dict[str, Tensor] = {}
        for half, names, values in zip(halves, keys, both.split(counts), strict=True):
            joined.extend(values[: len(half)])
            for name, value in zip(names, values[len(half) :], strict=True):
                joined_own.setdefault(name, value)
        return joined, joined_own

    def _predict_within_memory(
        self, branches: Sequence[Branch], timestep: int, reference: Tensor | None, share: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        keys, unique = _references(branches, share)
        if keys and (reference is None or len(keys) != len(branches)):
            raise ValueError("either every branch of a call attends to a reference or none")
        attends = [unique.index(k) for k in keys] if share else list(range(len(keys)))
        sources = [b.latents for b in branches] + [reference] * len(unique)
        latents = torch.stack([x for x in sources if x is not None])
        names = [b.prompt for b in branches] + unique
        prompts = torch.stack([self.prompts[name] for name in names])
        size = min(len(names), self.max_branches or self._branches_at_once(latents, prompts))
        while True:
            try:
                out = self._forward(latents, prompts, timestep, attends, size)
                own = zip(unique, out[len(branches) :], strict=True)
                return list(out[: len(branches)]), dict(own)
            except torch.OutOfMemoryError:
                # The other ranks of a group wait for this one inside an exchange: they would
                # never hear of a second try.
                if size == 1 or self.group.ranks > 1:
                    raise
                torch.cuda.empty_cache()
                self.max_branches = size = (size + 1) // 2

    def _branches_at_once(self, latents: Tensor, prompts: Tensor) -> int:
        config = self.transformer.config
        patch = config.in_channels * config.patch_size**2 * (config.patch_size_t or 1)
        ranks = self.group.ranks // self.group.halves
        # The most that a rank holds: all ranks must split a batch alike.
        tokens = sum(-(-n // ranks) for n in (prompts.shape[1], latents[0].numel() // patch))
        return max(1, TOKENS_AT_ONCE["cpu" if self.device.type == "cpu" else "gpu"] // tokens)

    def _count(self, halves: Sequence[Sequence[Branch]], share: bool) -> None:
        """Add the forwards of all halves; a reference that both of them compute counts once."""
        for half in halves:
            keys, unique = _references(half, share)
            self.forwards.injected += len(keys)
            self.forwards.plain += len(half) - len(keys) + len(unique)
        if share and len(halves) == 2:
            negative, positive = (set(_references(half, share)[1]) for half in halves)
            self.forwards.plain -= len(negative & positive)

    def _forward(
        self, latents: Tensor, prompts: Tensor, timestep: int, attends: Sequence[int], size: int
    ) -> Tensor:
        """[B, F, C, H, W] -> velocities [B, F, C, H, W], float32; `size` branches at once."""
        model, group = self.transformer, self.group
        weight = model.proj_out.weight
        batch, frames, _, height, width = latents.shape
        text_tokens = prompts.shape[1]
        parts = split_batch(batch, len(attends), size)
        prompts, latents = (y.to(weight.device, weight.dtype) for y in (prompts, latents))
        tokens = [model.patch_embed(prompts[rows], latents[rows]) for rows in parts]
        video_tokens = tokens[0].shape[1] - text_tokens
        # One row for all branches, which stand at one level: with a row for each, BLAS would round
        # it differently for batches of different sizes, and an edit's bytes would depend on them.
        times = torch.full((1,), timestep, device=weight.device)
        embedded = model.time_embedding(model.time_proj(times).to(weight.dtype))
        self._plan.exchange = group.exchange(text_tokens, video_tokens)
        self._plan.first_block, self._plan.last_block = self.blocks or (0, 1 << 30)
        rotary = self._rotary_embedding(frames, height, width, weight.device)
        if rotary is not None:
            cosines, sines = (group.split(table[None])[0] for table in rotary)
            rotary = cosines, sines
        video = self._through_blocks(
            [group.split(x[:, text_tokens:]) for x in tokens],
            [group.split(x[:, :text_tokens]) for x in tokens],
            [attends[rows] for rows in parts],
            embedded,
            rotary,
        )
        out = [model.proj_out(model.norm_out(model.norm_final(y), temb=embedded)) for y in video]
        ahead = sum(rows.start >= len(attends) for rows in parts)  # the references' parts
        velocity = group.gather(torch.cat(out[ahead:] + out[:ahead]), video_tokens)
        return unpatchify(velocity, model.config, (frames, height, width)).float()

    def _through_blocks(
        self,
        video: list[Tensor],
        text: list[Tensor],
        attends: Sequence[Sequence[int]],
        embedded: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> list[Tensor]:
        """All parts of a batch through one block, then through the next.

        So edits find their references' keys and values, and no more than one block's are kept.
        """
        for block in self.transformer.transformer_blocks:
            self._plan.kept = {} if any(attends) else None
            for i, seen in enumerate(attends):
                self._plan.attends = seen
                video[i], text[i] = block(
                    hidden_states=video[i],
                    encoder_hidden_states=text[i],
                    temb=embedded,
                    image_rotary_emb=rotary,
                )
        self._plan.kept = None
        return video

    def _rotary_embedding(
        self, frames: int, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        shape = (frames, height, width)
        if shape not in self._rotary:
            self._rotary[shape] = rotary_embedding(self.transformer.config, shape, device)
        return self._rotary[shape]


def split_batch(batch: int, edits: int, size: int) -> list[slice]:
    """The rows of a batch `[edits | references]` in parts, the references' parts first."""
    starts = [*range(edits, batch, size), *range(0, edits, size)]
    return [slice(i, min(i + size, edits if i < edits else batch)) for i in starts]


def split_halves(branches: Sequence[Branch], halves: int) -> list[Sequence[Branch]]:
    """The branches of each half: an edit's negative one in the first, its positive in the second.

    Of several edits the first ones go to the first half, so that each half has fewer references to
    compute. One branch alone cannot be split: every rank computes it.
    """
    if halves == 1 or len(branches) < halves:
        return [branches]
    middle = (len(branches) + 1) // 2
    return [branches[:middle], branches[middle:]]


def rotary_embedding(
    config: Any, shape: tuple[int, int, int], device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines [video tokens, head_dim] of the 3D rotary embedding; None for 2b.

    Source: diffusers `CogVideoXPipeline._prepare_rotary_positional_embeddings`.

    Args:
        shape: latent frames, height and width.
    """
    if not config.use_rotary_positional_embeddings:
        return None
    frames, height, width = shape
    patch = config.patch_size
    grid = (height // patch, width // patch)
    base_width, base_height = config.sample_width // patch, config.sample_height // patch
    if config.patch_size_t is None:
        crops = get_resize_crop_region_for_grid(grid, base_width, base_height)
        table = get_3d_rotary_pos_embed(
            config.attention_head_dim, crops, grid, temporal_size=frames, device=device
        )
    else:
        table = get_3d_rotary_pos_embed(
            config.attention_head_dim,
            None,
            grid,
            temporal_size=frames // config.patch_size_t,
            grid_type="slice",
            max_size=(max(base_height, grid[0]), max(base_width, grid[1])),
            device=device,
        )
    return table[0], table[1]


def unpatchify(tokens: Tensor, config: Any, shape: tuple[int, int, int]) -> Tensor:
    """Video tokens [B, N, D] to a latent [B, F, C, H, W]; the inverse of the patch embedding.

    Source: the end of diffusers `CogVideoXTransformer3DModel.forward`.
    """
    frames, height, width = shape
    p, p_t = config.patch_size, config.patch_size_t
    rows, columns = height // p, width // p
    if p_t is None:
        x = tokens.unflatten(1, (frames, rows, columns)).unflatten(-1, (-1, p, p))
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
    x = tokens.unflatten(1, (frames // p_t, rows, columns)).unflatten(-1, (-1, p_t, p, p))
    return x.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)


def _references(branches: Sequence[Branch], share: bool) -> tuple[list[str], list[str]]:
    """The prompt of each branch's reference, and those of the references to compute."""
    keys = [b.reference for b in branches if b.reference is not None]
    return keys, list(dict.fromkeys(keys)) if share else keys
