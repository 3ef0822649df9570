"""One velocity prediction for a batch of branches, on one process or on many.

Only what differs is computed: reference branches with the same prompt are one. A batch goes through
each block in parts, references first, so that its size bounds nothing but the latents and their
tokens.

The forward below is `CogVideoXTransformer3DModel.forward` opened up between the patch embedding and
the blocks: there the tokens are split over the ranks of a group, and gathered before they become a
latent again. Latents stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from pipeline.algorithm.branches import Branch, Prompt, Velocity
from pipeline.errors import ErrorCode, RowError
from pipeline.model.attention import AttentionPlan, ReferenceAttention
from pipeline.model.footprint import transformer_bytes
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.memory import (
    DeviceMemory,
    Memory,
    gigabytes,
    out_of_memory_text,
    usable,
)

TOKENS_AT_ONCE = {"cpu": 2048, "gpu": 16384}
"""As many tokens of a rank keep the device busy: more branches than that do not go through a block
at once, on a GPU fewer where its memory is short. At native sizes that is one branch, so that an
edit does not depend on what is beside it. On a CPU the pages for tensors above 32 MB took a quarter
of the time of 13 branches; the GPU's is untried."""

GROUP_MARGIN = 2
"""In a group the parts may take so many times less than in one process: memory that runs out in an
exchange costs the group a restart, in one process it costs a second try."""


@dataclass
class ForwardCounter:
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


@dataclass
class VelocityModel:
    """A CogVideoX transformer as the algorithms see it.

    Args:
        transformer: a `CogVideoXTransformer3DModel`; its attention processors are replaced.
        group: the ranks that compute together.
        max_branches: so many go through a block at once, equal on all ranks; None leaves it to the
            device and its memory. One process halves it when memory runs out. No forwards change.
        memory: of the device of the weights, by default.
    """

    transformer: Any
    group: TokenGroup = field(default_factory=OneRank)
    max_branches: int | None = None
    forwards: ForwardCounter = field(default_factory=ForwardCounter)
    memory: Memory | None = None

    def __post_init__(self) -> None:
        self._plan = AttentionPlan()
        self._rotary: dict[tuple[int, int, int, torch.device], tuple[Tensor, Tensor] | None] = {}
        self._at_once: dict[tuple[Any, ...], int] = {}
        for i, block in enumerate(self.transformer.transformer_blocks):
            block.attn1.set_processor(ReferenceAttention(self._plan, i))

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and the velocities that `predict` returns."""
        return torch.device(self.transformer.proj_out.weight.device)

    def velocity(self, prompt: Prompt) -> Velocity:
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
        blocks: tuple[int, int] | None = None,
        share: bool = True,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The velocities of all branches (`pipeline.algorithm.branches.Denoiser`).

        Where the group has two cfg ranks, each computes its share of the branches and all get the
        whole. On a CPU a velocity's bytes do not depend on the branches beside it. On a GPU they do
        where parts differ in size (never for clips above half of `TOKENS_AT_ONCE`), within
        rounding.

        Raises:
            RowError: the memory is too small for one branch, or on one rank of several for a part.
        """
        shares = split_branches(branches, self.group.cfg_ranks)
        mine = shares[self.group.cfg_rank % len(shares)]
        batch = _Batch.of(mine, reference, share)
        kind = (len(branches), bool(batch.reference_index), share, self._tokens(batch))
        size = min(len(batch.latents), self._branches_at_once(batch, kind))
        while True:
            try:
                out = self._forward(batch, timestep, blocks, size)
                break
            except Exception as error:
                why = out_of_memory_text(error)
            memory = self._memory
            memory.release()
            # The other ranks of a group wait for this one inside an exchange: they would never
            # hear of a second try.
            if size == 1 or self.group.ranks > 1:
                raise self._too_small(batch, size, memory, why)
            self._at_once[kind] = size = (size + 1) // 2
        velocities = list(out[: len(mine)])
        own = dict(zip(batch.references, out[len(mine) :], strict=True))
        self._count(shares, share)
        return (velocities, own) if len(shares) == 1 else self._join(shares, velocities, own)

    def _join(
        self, shares: Sequence[Sequence[Branch]], velocities: list[Tensor], own: dict[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What both cfg ranks predicted, from what this one did."""
        texts = [_references(branches, share=True)[1] for branches in shares]
        counts = [len(b) + len(names) for b, names in zip(shares, texts, strict=True)]
        both = self.group.gather_cfg(torch.stack(velocities + list(own.values())), counts)
        joined: list[Tensor] = []
        joined_own: dict[str, Tensor] = {}
        for branches, names, values in zip(shares, texts, both.split(counts), strict=True):
            joined.extend(values[: len(branches)])
            for name, value in zip(names, values[len(branches) :], strict=True):
                joined_own.setdefault(name.text, value)
        return joined, joined_own

    @property
    def _memory(self) -> Memory:
        return self.memory or DeviceMemory(self.device)

    def _branches_at_once(self, batch: _Batch, kind: tuple[Any, ...]) -> int:
        """How many branches go through a block at once: as many on every rank of the group.

        Args:
            kind: the same for calls with batches of one size, and on every rank.
        """
        size = self._at_once.get(kind)
        if self.max_branches:
            return min(self.max_branches, size or self.max_branches)
        if size is None:
            if self.device.type == "cpu":
                size = max(1, TOKENS_AT_ONCE["cpu"] // self._tokens(batch))
            else:
                # All ranks ask each other here, at the same call.
                size = min(self.group.gather_objects(self._that_fit(batch)))
            self._at_once[kind] = size
        return size

    def _that_fit(self, batch: _Batch) -> int:
        """How many of a batch's branches this GPU's memory takes at once, and its tokens fill."""
        allowed = usable(self._memory, self.device)
        if self.group.ranks > 1:
            allowed /= GROUP_MARGIN
        size = max(1, TOKENS_AT_ONCE["gpu"] // self._tokens(batch))
        while size > 1 and self._bytes(batch, size) > allowed:
            size -= 1
        return size

    def _bytes(self, batch: _Batch, size: int) -> int:
        """Bytes of activations where `size` branches of a batch go through a block at once."""
        return transformer_bytes(
            self.transformer.config,
            self._tokens(batch),
            min(size, len(batch.latents)),
            self.transformer.proj_out.weight.element_size(),
            batch=len(batch.latents),
            references=len(batch.references),
        )

    def _tokens(self, batch: _Batch) -> int:
        """Of one branch on the rank that holds most: all ranks must split a batch alike."""
        config = self.transformer.config
        patch = config.in_channels * config.patch_size**2 * (config.patch_size_t or 1)
        ranks = self.group.ranks // self.group.cfg_ranks
        counts = batch.prompts.shape[1], batch.latents[0].numel() // patch
        return sum(-(-count // ranks) for count in counts)

    def _too_small(self, batch: _Batch, size: int, memory: Memory, why: str) -> RowError:
        alone, count = self.group.ranks == 1, len(batch.latents)
        part = "1 branch" if size == 1 else f"{size} branches"
        return RowError(
            ErrorCode.OUT_OF_MEMORY,
            f"the transformer ran out of memory with {part} of {count} in a block at once "
            f"({why}): that takes about {gigabytes(self._bytes(batch, size))} beside the "
            f"weights, and {gigabytes(memory.free())} are free. Make the clip smaller "
            "(video.height, video.width, video.frames), make fewer edits at once "
            "(reconstruction.edits_at_once), take larger groups, which split the tokens, or a "
            "device with more memory",
            needs_restart=not alone,
        )

    def _count(self, shares: Sequence[Sequence[Branch]], share: bool) -> None:
        """Add the forwards of all ranks; a reference that both cfg ranks compute counts once."""
        for branches in shares:
            keys, unique = _references(branches, share)
            self.forwards.injected += len(keys)
            self.forwards.plain += len(branches) - len(keys) + len(unique)
        if share and len(shares) == 2:
            negative, positive = (set(_references(b, share)[1]) for b in shares)
            self.forwards.plain -= len(negative & positive)

    def _forward(
        self, batch: _Batch, timestep: int, blocks: tuple[int, int] | None, size: int
    ) -> Tensor:
        """Velocities [B, F, C, H, W], float32, of a batch; `size` branches at once."""
        model, group = self.transformer, self.group
        weight = model.proj_out.weight
        count, frames, _, height, width = batch.latents.shape
        text_tokens, seen = batch.prompts.shape[1], batch.reference_index
        parts = split_batch(count, len(seen), size)
        prompts, latents = (
            y.to(weight.device, weight.dtype) for y in (batch.prompts, batch.latents)
        )
        tokens = [model.patch_embed(prompts[rows], latents[rows]) for rows in parts]
        video_tokens = tokens[0].shape[1] - text_tokens
        # One row for all branches, which stand at one level: with a row for each, BLAS would round
        # it differently for batches of different sizes, and an edit's bytes would depend on them.
        times = torch.full((1,), timestep, device=weight.device)
        embedded = model.time_embedding(model.time_proj(times).to(weight.dtype))
        self._plan.exchange = group.exchange(text_tokens, video_tokens)
        self._plan.first_block, self._plan.last_block = blocks or (0, 1 << 30)
        rotary = self._rotary_embedding(frames, height, width, weight.device)
        if rotary is not None:
            cosines, sines = (group.split(table[None])[0] for table in rotary)
            rotary = cosines, sines
        video = [group.split(x[:, text_tokens:]) for x in tokens]
        text = [group.split(x[:, :text_tokens]) for x in tokens]
        del tokens  # the blocks' outputs take their place
        # All parts of a batch go through one block, then through the next: so edits find their
        # references' keys and values, and only one block's are in memory.
        try:
            for block in model.transformer_blocks:
                self._plan.references = {} if seen else None
                for i, rows in enumerate(parts):
                    self._plan.reference_index = seen[rows]
                    video[i], text[i] = block(
                        hidden_states=video[i],
                        encoder_hidden_states=text[i],
                        temb=embedded,
                        image_rotary_emb=rotary,
                    )
        finally:
            self._plan.references = None  # keys and values, also where memory ran out
        out = [model.proj_out(model.norm_out(model.norm_final(y), temb=embedded)) for y in video]
        ahead = sum(rows.start >= len(seen) for rows in parts)  # the references' parts
        velocity = group.gather(torch.cat(out[ahead:] + out[:ahead]), video_tokens)
        return unpatchify(velocity, model.config, (frames, height, width)).float()

    def _rotary_embedding(
        self, frames: int, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        key = (frames, height, width, device)
        if key not in self._rotary:
            self._rotary[key] = rotary_embedding(self.transformer.config, key[:3], device)
        return self._rotary[key]


def split_batch(batch: int, edits: int, size: int) -> list[slice]:
    """The rows of a batch `[edits | references]` in parts, the references' parts first."""
    starts = [*range(edits, batch, size), *range(0, edits, size)]
    return [slice(i, min(i + size, edits if i < edits else batch)) for i in starts]


def split_branches(branches: Sequence[Branch], cfg_ranks: int) -> list[Sequence[Branch]]:
    """The branches of each cfg rank: an edit's negative one on the first, its positive on the next.

    Of several edits the first ones go to the first rank, so that each has fewer references to
    compute. One branch alone cannot be split: every rank computes it.
    """
    if cfg_ranks == 1 or len(branches) < cfg_ranks:
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


def _references(branches: Sequence[Branch], share: bool) -> tuple[list[Prompt], list[Prompt]]:
    """The prompt of each branch's reference, and those of the references to compute."""
    asked = [b.reference for b in branches if b.reference is not None]
    return asked, list({p.text: p for p in asked}.values()) if share else asked


@dataclass(frozen=True)
class _Batch:
    """Branches and the references that they attend to, side by side.

    Args:
        latents: [B, F, C, H, W], the branches' first.
        prompts: embeddings [B, L, D].
        references: the texts of the references' prompts.
        reference_index: for each branch, the reference that it attends to; empty where none does.
    """

    latents: Tensor
    prompts: Tensor
    references: list[str]
    reference_index: list[int]

    @classmethod
    def of(cls, branches: Sequence[Branch], reference: Tensor | None, share: bool) -> _Batch:
        asked, unique = _references(branches, share)
        if asked and (reference is None or len(asked) != len(branches)):
            raise ValueError("either every branch of a call attends to a reference or none")
        texts = [prompt.text for prompt in unique]
        index = [texts.index(p.text) for p in asked] if share else list(range(len(asked)))
        sources = [b.latents for b in branches] + [reference] * len(unique)
        prompts = [b.prompt for b in branches] + unique
        return cls(
            torch.stack([x for x in sources if x is not None]),
            torch.stack([prompt.embedding for prompt in prompts]),
            texts,
            index,
        )
