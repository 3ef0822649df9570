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
from torch import Tensor

from pipeline.algorithm.branches import Branch, Prompt, Velocity
from pipeline.errors import ErrorCode, RowError
from pipeline.model.attention.choice import KernelChoice, shape_of
from pipeline.model.attention.reference import AttentionPlan, ReferenceAttention, References
from pipeline.model.footprint import GROUP_MARGIN, TOKENS_AT_ONCE, transformer_bytes
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.memory import (
    DeviceMemory,
    Memory,
    gigabytes,
    out_of_memory_text,
    usable,
)
from pipeline.model.transformer.batch import (
    Batch,
    Part,
    needed_references,
    split_batch,
    split_branches,
)
from pipeline.model.transformer.compiled import CompiledBlocks
from pipeline.model.transformer.counter import ForwardCounter
from pipeline.model.transformer.step_cache import CachedStep, StepCache
from pipeline.model.transformer.tokens import rotary_embedding, unpatchify
from pipeline.settings import Speed


@dataclass
class VelocityModel:
    """A CogVideoX transformer as the algorithms see it.

    Args:
        transformer: a `CogVideoXTransformer3DModel`; its attention processors are replaced.
        group: the ranks that compute together.
        max_branches: so many go through a block at once, equal on all ranks; None leaves it to the
            device and its memory. One process halves it when memory runs out. No forwards change.
        memory: of the device of the weights, by default.
        speed: what makes it faster.
    """

    transformer: Any
    group: TokenGroup = field(default_factory=OneRank)
    max_branches: int | None = None
    forwards: ForwardCounter = field(default_factory=ForwardCounter)
    memory: Memory | None = None
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        self._plan = AttentionPlan()
        self._kernels = KernelChoice(self.speed.attention)
        self._rotary: dict[tuple[int, int, int, torch.device], tuple[Tensor, Tensor] | None] = {}
        self._at_once: dict[tuple[Any, ...], int] = {}
        blocks = self.transformer.transformer_blocks
        self.compiled = CompiledBlocks(blocks, self._plan, self.group, self.speed.compile)
        processor = ReferenceAttention(self._plan)
        for block in blocks:
            block.attn1.set_processor(processor)

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and the velocities that `predict` returns."""
        return torch.device(self.transformer.proj_out.weight.device)

    def check_attention(self) -> None:
        """Raise ValueError where the kernel that `speed.attention` names does not work here."""
        self._kernels.check(shape_of(self.transformer, 1024, self.group.degrees))

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
        cache: StepCache | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The velocities of all branches (`pipeline.algorithm.branches.Denoiser`).

        Where the group has two cfg ranks, each computes its share of the branches and all get the
        whole. On a CPU a velocity's bytes do not depend on the branches beside it. On a GPU they do
        where parts differ in size (never for clips above half of `TOKENS_AT_ONCE`), within
        rounding.

        Args:
            cache: of these edits; where it ends them all after the first block, the velocity of
                their reference is not computed.

        Raises:
            RowError: the memory is too small for one branch, or on one rank of several for a part.
        """
        shares = split_branches(branches, self.group.cfg_ranks)
        mine = shares[self.group.cfg_rank % len(shares)]
        cache = cache if cache and cache.works_for(branches, timestep) else None
        batch = Batch.of(mine, reference, share, cached=cache is not None)
        kind = (
            len(branches),
            bool(batch.reference_index),
            share,
            batch.cached,
            self._tokens(batch),
        )
        size = min(len(batch.latents), self._branches_at_once(batch, kind))
        while True:
            step = CachedStep(cache, self.group, shares, timestep, share) if cache else None
            try:
                out = self._forward(batch, timestep, blocks, size, step)
                break
            except Exception as error:
                why = out_of_memory_text(error)
            step = None  # and what it had begun to keep
            memory = self._memory
            memory.release()
            # The other ranks of a group wait for this one inside an exchange: they would never
            # hear of a second try.
            if size == 1 or self.group.ranks > 1:
                raise self._too_small(batch, size, memory, why)
            self._at_once[kind] = size = (size + 1) // 2
        return self._answer(out, shares, step, share)

    def _answer(
        self,
        out: Tensor,
        shares: Sequence[Sequence[Branch]],
        step: CachedStep | None,
        share: bool,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What `predict` returns, from what this rank computed; counts the forwards of all ranks.

        Args:
            out: the velocities [B, F, C, H, W] of this rank's branches, then of its references.
            shares: the branches of each cfg rank.
        """
        number = self.group.cfg_rank % len(shares)
        if self.compiled.used and self.group.cfg_ranks > len(shares):
            # Each cfg rank computed all. Compiled kernels are tuned on each GPU by itself and may
            # round otherwise on the next one: all take the first one's numbers.
            out = self.group.gather_cfg(out, [len(out)] * self.group.cfg_ranks)[: len(out)]
        computed = step.computed if step else [[True] * len(branches) for branches in shares]
        names = [needed_references(*each, share) for each in zip(shares, computed, strict=True)]
        count = len(shares[number])
        velocities, own = list(out[:count]), dict(zip(names[number], out[count:], strict=True))
        self.forwards.add(shares, computed, share)
        return (velocities, own) if len(shares) == 1 else self._join(shares, names, velocities, own)

    def _join(
        self,
        shares: Sequence[Sequence[Branch]],
        names: Sequence[Sequence[str]],
        velocities: list[Tensor],
        own: dict[str, Tensor],
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What both cfg ranks predicted, from what this one did.

        Args:
            names: the texts of the references that each of them computed.
        """
        texts = [list(dict.fromkeys(some)) for some in names]
        counts = [len(b) + len(some) for b, some in zip(shares, texts, strict=True)]
        both = self.group.gather_cfg(torch.stack(velocities + list(own.values())), counts)
        joined: list[Tensor] = []
        joined_own: dict[str, Tensor] = {}
        for branches, some, values in zip(shares, texts, both.split(counts), strict=True):
            joined.extend(values[: len(branches)])
            for text, value in zip(some, values[len(branches) :], strict=True):
                joined_own.setdefault(text, value)
        return joined, joined_own

    @property
    def _memory(self) -> Memory:
        return self.memory or DeviceMemory(self.device)

    def _branches_at_once(self, batch: Batch, kind: tuple[Any, ...]) -> int:
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

    def _that_fit(self, batch: Batch) -> int:
        """How many of a batch's branches this GPU's memory takes at once, and its tokens fill."""
        allowed = usable(self._memory, self.device)
        if self.group.ranks > 1:
            allowed /= GROUP_MARGIN
        size = max(1, TOKENS_AT_ONCE["gpu"] // self._tokens(batch))
        while size > 1 and self._bytes(batch, size) > allowed:
            size -= 1
        return size

    def _bytes(self, batch: Batch, size: int) -> int:
        """Bytes of activations where `size` branches of a batch go through a block at once."""
        return transformer_bytes(
            self.transformer.config,
            self._tokens(batch),
            min(size, len(batch.latents)),
            self.transformer.proj_out.weight.element_size(),
            batch=len(batch.latents),
            references=len(batch.references),
            cached=batch.cached,
        )

    def _video_tokens(self, batch: Batch) -> int:
        """Of one branch, on all ranks."""
        config = self.transformer.config
        patch = config.in_channels * config.patch_size**2 * (config.patch_size_t or 1)
        return batch.latents[0].numel() // patch

    def _tokens(self, batch: Batch) -> int:
        """Of one branch on the rank that holds most: all ranks must split a batch alike."""
        ranks = self.group.ranks // self.group.cfg_ranks
        counts = batch.prompts.shape[1], self._video_tokens(batch)
        return sum(-(-count // ranks) for count in counts)

    def _too_small(self, batch: Batch, size: int, memory: Memory, why: str) -> RowError:
        alone, count = self.group.ranks == 1, len(batch.latents)
        part = "1 branch" if size == 1 else f"{size} branches"
        cached = ", keep nothing between steps (speed.step_cache: 0)" if batch.cached else ""
        return RowError(
            ErrorCode.OUT_OF_MEMORY,
            f"the transformer ran out of memory with {part} of {count} in a block at once "
            f"({why}): that takes about {gigabytes(self._bytes(batch, size))} beside the "
            f"weights, and {gigabytes(memory.free())} are free. Make the clip smaller "
            "(video.height, video.width, video.frames), make fewer edits at once "
            f"(reconstruction.edits_at_once){cached}, take larger groups, which split the "
            "tokens, or a device with more memory",
            needs_restart=not alone,
        )

    def _forward(
        self,
        batch: Batch,
        timestep: int,
        blocks: tuple[int, int] | None,
        size: int,
        step: CachedStep | None,
    ) -> Tensor:
        """Velocities of a batch, [B, F, C, H, W], float32; `size` branches at once.

        Args:
            step: ends edits after the first block, and references that only these attend to; the
                latter have no velocity.
        """
        parts = self._embedded(batch, size)
        text_tokens, video_tokens = batch.prompts.shape[1], self._video_tokens(batch)
        time, rotary = self._time(timestep), self._rotary_embedding(batch)
        shape = shape_of(self.transformer, text_tokens + video_tokens, self.group.degrees)
        self._plan.exchange = self.group.exchange(text_tokens, video_tokens)
        self._plan.kernel = self._kernels.kernel(shape, self.group.gather_objects)
        first, last = blocks or (0, len(self.transformer.transformer_blocks))
        at_once = max(len(part.seen) for part in parts)
        count = len(batch.references)
        references = References.of(shape, count, at_once) if count else None
        self.compiled.prepare(self._tokens(batch), parts[0].video, parts[0].text, time, rotary)
        entered = [part.video for part in parts] if step else []
        # All parts of a batch go through one block, then through the next: so edits find their
        # references' keys and values, and only one block's are in memory.
        try:
            for number, block in enumerate(self.transformer.transformer_blocks):
                # Outside of the window branches see themselves alone.
                seen = references if first <= number < last else None
                self._plan.references = seen.emptied() if seen else None
                for part in parts:
                    self._plan.reference_index = part.seen
                    part.video, part.text = block(
                        hidden_states=part.video,
                        encoder_hidden_states=part.text,
                        temb=time,
                        image_rotary_emb=rotary,
                    )
                if step and number == 0:
                    parts = step.after_first(parts, entered, video_tokens)
        finally:
            self._plan.references = None  # keys and values, also where memory ran out
        return self._velocities(step.finish(parts) if step else parts, batch, time)

    def _embedded(self, batch: Batch, size: int) -> list[Part]:
        """The parts of a batch in front of the first block, those of the references ahead."""
        model, seen = self.transformer, batch.reference_index
        weight, text_tokens = model.proj_out.weight, batch.prompts.shape[1]
        prompts, latents = (
            y.to(weight.device, weight.dtype) for y in (batch.prompts, batch.latents)
        )
        parts = []
        for rows in split_batch(len(latents), len(latents) - len(batch.references), size):
            tokens = model.patch_embed(prompts[rows], latents[rows])
            text, video = tokens[:, :text_tokens], tokens[:, text_tokens:]
            numbers = list(range(rows.start, rows.stop))
            split = self.group.split
            parts.append(Part(numbers, split(video), split(text), seen[rows]))
        return parts

    def _velocities(self, parts: Sequence[Part], batch: Batch, time: Tensor) -> Tensor:
        """The velocities of the branches behind the last block, in the batch's order."""
        model = self.transformer
        rows: dict[int, Tensor] = {}
        for part in parts:
            out = model.proj_out(model.norm_out(model.norm_final(part.video), temb=time))
            rows |= zip(part.rows, out, strict=True)
        ordered = torch.stack([rows[row] for row in sorted(rows)])
        velocity = self.group.gather(ordered, self._video_tokens(batch))
        frames, _, height, width = batch.latents.shape[1:]
        return unpatchify(velocity, model.config, (frames, height, width)).float()

    def _time(self, timestep: int) -> Tensor:
        """The embedding of a timestep, [1, D].

        One row for all branches, which stand at one level: with a row for each, BLAS would round it
        differently for batches of different sizes, and an edit's bytes would depend on them.
        """
        model, weight = self.transformer, self.transformer.proj_out.weight
        times = torch.full((1,), timestep, device=weight.device)
        embedding: Tensor = model.time_embedding(model.time_proj(times).to(weight.dtype))
        return embedding

    def _rotary_embedding(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The rotary embedding of this rank's video tokens."""
        frames, _, height, width = batch.latents.shape[1:]
        key = (frames, height, width, self.device)
        if key not in self._rotary:
            self._rotary[key] = rotary_embedding(self.transformer.config, key[:3], self.device)
        table = self._rotary[key]
        if table is None:
            return None
        cosines, sines = (self.group.split(values[None])[0] for values in table)
        return cosines, sines
