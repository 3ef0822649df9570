"""This rank's end of a rank group: tokens split, exchanged and gathered by xfuser.

A group of ulysses * ring * cfg ranks predicts one velocity together. The tokens of a latent are
split over ulysses * ring ranks after the patch embedding. In every attention layer xfuser's `USP`
brings together what attention must see (Ulysses trades tokens for heads, ring passes keys and
values round) and calls `_reference_attention`, registered as an attention backend. With cfg 2
each cfg rank computes its share of the branches; they exchange finished velocities only.

The same code runs on NCCL and on gloo. Importing xfuser takes seconds: that happens in `start`, for
a group of several ranks, and nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.imports import large_imports
from pipeline.model.attention.kernels import Kernel
from pipeline.model.attention.reference import Exchange, References, attend, with_references
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.parallel.degrees import Degrees

BACKEND = "retake"
"""The key under which xfuser knows `_reference_attention`."""

RENDEZVOUS = "RETAKE_RENDEZVOUS"
"""The environment variable that names the file where a node's ranks find each other. A port that is
free when the owner picks it may be taken by the time torch has been imported; a new file is not."""


def start(
    ulysses: int = 1, ring: int = 1, cfg: int = 1, device: str | torch.device = "cpu"
) -> TokenGroup:
    """Join the group of which this process is a rank; returns when all ranks have joined.

    Reads what torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, and MASTER_ADDR and MASTER_PORT where
    `RENDEZVOUS` names no file.

    Args:
        device: `cpu` exchanges over gloo, `cuda` over NCCL, on the GPU numbered LOCAL_RANK.

    Raises:
        ValueError: if the degrees do not make WORLD_SIZE ranks.
    """
    degrees = Degrees(ulysses, ring, cfg)
    if degrees.ranks == 1:
        return OneRank()
    rank, ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if ranks != degrees.ranks:
        raise ValueError(f"{degrees} makes {degrees.ranks} ranks, but WORLD_SIZE is {ranks}")
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", local)
    xfuser = import_xfuser(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    rendezvous = os.environ.get(RENDEZVOUS)
    # With a CUDA build of torch xfuser would select a GPU here, for a group on the CPU too.
    with _torch_cuda_version(torch.version.cuda if device.type == "cuda" else None):
        xfuser.state.init_distributed_environment(
            ranks,
            rank,
            f"file://{rendezvous}" if rendezvous else "env://",
            local_rank=local,
            backend=backend,
        )
        xfuser.state.initialize_model_parallel(
            classifier_free_guidance_degree=cfg,
            sequence_parallel_degree=degrees.token_ranks,
            ulysses_degree=ulysses,
            ring_degree=ring,
            backend=backend,
        )
    return RankGroup(degrees, device, xfuser)


class RankGroup:
    """A group of several ranks, as one of them sees it; what it does is documented at `TokenGroup`.

    Tokens are dealt out evenly: of N tokens on R ranks the first N mod R ranks hold one more than
    the others, which are padded by one. So no rank holds padding alone, and attention drops the
    padding from keys and values by its place: exact for every count.
    """

    def __init__(self, degrees: Degrees, device: torch.device, xfuser: Xfuser) -> None:
        self.degrees, self.device = degrees, device
        self._xfuser = xfuser
        world, tokens, cfg = xfuser.groups()
        self.rank, self.ranks = world.rank_in_group, world.world_size
        self.cfg_rank, self.cfg_ranks = cfg.rank_in_group, cfg.world_size
        self._place = tokens.rank_in_group
        self._world, self._tokens, self._cfg = (x.device_group for x in (world, tokens, cfg))
        self._objects = world.cpu_group
        self._chunks: dict[tuple[int, int], list[Tensor | None]] = {}

    def split(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> this rank's [B, ceil(N / token ranks), D]; zero padding comes last."""
        shares = split_evenly(tokens.shape[1], self.degrees.token_ranks)
        first, count = sum(shares[: self._place]), shares[self._place]
        return F.pad(tokens[:, first : first + count], (0, 0, 0, shares[0] - count))

    def gather(self, tokens: Tensor, count: int) -> Tensor:
        """This rank's [B, n, D] -> all [B, count, D], padding dropped."""
        shares = split_evenly(count, self.degrees.token_ranks)
        parts = _all_gather(tokens, self._tokens)
        return torch.cat([part[:, :n] for part, n in zip(parts, shares, strict=True)], dim=1)

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        """Attention over the tokens of all ranks, for so many tokens without padding.

        Raises:
            ValueError: if there are fewer video tokens than ranks.
        """
        if self.degrees.token_ranks == 1:
            return attend
        if video_tokens < self.degrees.token_ranks:
            raise ValueError(
                f"{self.degrees} splits the tokens over {self.degrees.token_ranks} ranks, "
                f"but there are {video_tokens}; take a smaller group"
            )
        chunks = self._real_places(text_tokens, video_tokens)

        def attend_over_ranks(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            reference_index: Sequence[int],
            references: References | None,
            kernel: Kernel,
        ) -> Tensor:
            call = _Call(reference_index, references, enumerate(chunks), kernel)
            out: Tensor = self._xfuser.usp.USP(
                q, k, v, backend=BACKEND, attention_kwargs={BACKEND: call}
            )
            return out

        return attend_over_ranks

    def gather_cfg(self, latents: Tensor, counts: Sequence[int]) -> Tensor:
        """This cfg rank's [counts[cfg_rank], ...] -> [sum(counts), ...], the first's ahead."""
        return _gather_uneven(latents, counts, self._cfg)

    def gather_values(self, values: Tensor, counts: list[int]) -> Tensor:
        """This rank's flat values -> those of all ranks, `counts[r]` from rank r, bit for bit.

        They come back on the device where they came from.
        """
        return _gather_uneven(values.to(self.device), counts, self._world).to(values.device)

    def gather_objects(self, value: Any) -> list[Any]:
        """A small Python object of each rank, in order, on every rank."""
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self._objects)
        return values

    def stop(self) -> None:
        """Leave the group; a process may join another one then."""
        self._xfuser.state.destroy_model_parallel()
        self._xfuser.state._PP = None  # the one group that xfuser 0.7 does not forget
        self._xfuser.state.destroy_distributed_environment()

    def _real_places(self, text_tokens: int, video_tokens: int) -> list[Tensor | None]:
        """Where real tokens stand in each chunk of keys, in the order in which ring brings them.

        In its i-th step a rank sees what the rank i places before it in the ring held at first.
        """
        key = (text_tokens, video_tokens)
        if key not in self._chunks:
            ring, own = self.degrees.ring, self._place // self.degrees.ulysses
            chunks = [
                real_places(text_tokens, video_tokens, self.degrees, (own - i) % ring)
                for i in range(ring)
            ]
            self._chunks[key] = [
                None if places is None else torch.tensor(places, device=self.device)
                for places in chunks
            ]
        return self._chunks[key]


def split_evenly(count: int, ranks: int) -> list[int]:
    """How many of `count` tokens each rank holds; the first ranks hold one more."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def real_places(
    text_tokens: int, video_tokens: int, degrees: Degrees, chunk: int
) -> list[int] | None:
    """The places without padding in a ring rank's sequence after the Ulysses exchange.

    That sequence is `[text | video]` of each of its Ulysses ranks, one after the other, each padded
    to the same length.

    Args:
        chunk: the ring rank that held the sequence at first.

    Returns:
        None where there is no padding.
    """
    texts = split_evenly(text_tokens, degrees.token_ranks)
    videos = split_evenly(video_tokens, degrees.token_ranks)
    length = texts[0] + videos[0]
    places: list[int] = []
    for i in range(degrees.ulysses):
        rank, text, video = chunk * degrees.ulysses + i, i * length, i * length + texts[0]
        places.extend(range(text, text + texts[rank]))
        places.extend(range(video, video + videos[rank]))
    return None if len(places) == degrees.ulysses * length else places


@dataclass
class _Call:
    """One attention layer's call, as the backend sees it.

    Args:
        reference_index, references: as for `with_references`. A reference's keys and values are
            stored as they come out of the exchange: those of all tokens, as in one process, for
            this rank's heads.
        chunks: each ring step, and the places of real tokens in its keys.
    """

    reference_index: Sequence[int]
    references: References | None
    chunks: Iterator[tuple[int, Tensor | None]]
    kernel: Kernel


def _reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    attention_kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """xfuser's attention backend: what `attend` does in one process, on exchanged tokens.

    Ulysses calls it once for a layer, with all tokens and some of the heads; ring calls it once for
    each rank's keys and merges the answers by their logsumexp.
    """
    call: _Call = attention_kwargs[BACKEND]
    step, places = next(call.chunks)
    if places is not None:
        key, value = key[:, :, places], value[:, :, places]
    keys, values = with_references(key, value, call.reference_index, call.references, step)
    return call.kernel(query, keys, values)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Each rank's x -> [ranks, *x.shape], moved as bytes: bit for bit, and in any dtype."""
    data = x.flatten().view(torch.uint8)
    ranks = dist.get_world_size(group)
    gathered = data.new_empty(ranks, len(data))
    dist.all_gather(list(gathered.unbind()), data, group=group)
    return gathered.view(x.dtype).view(ranks, *x.shape)


def _gather_uneven(x: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Each rank's [its count, ...] -> [sum(counts), ...]."""
    padding = x.new_zeros(max(counts) - len(x), *x.shape[1:])
    parts = _all_gather(torch.cat([x, padding]), group)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


@dataclass(frozen=True)
class Xfuser:
    """The modules of xfuser that a group uses."""

    state: Any
    usp: Any

    def groups(self) -> tuple[Any, Any, Any]:
        """Its groups of all ranks, of those that share tokens, and of those that share branches."""
        return self.state.get_world_group(), self.state.get_sp_group(), self.state.get_cfg_group()


def import_xfuser(device: torch.device) -> Xfuser:
    """xfuser's modules, ready for a group on this device."""
    # With a CPU build of torch xfuser 0.7 raises at import, since it finds no accelerator.
    cpu_build = torch.version.cuda is None and torch.version.hip is None
    version = "0.0" if cpu_build else torch.version.cuda
    with large_imports(), _torch_cuda_version(version):
        from xfuser.core.distributed import (
            attention_backend,
            group_coordinator,
            parallel_state,
            runtime_state,
        )
        from xfuser.model_executor.layers import usp
    from torch.distributed.tensor.experimental._attention import set_rotate_method

    # Ring is torch's, which by default gathers the keys and values of all ranks on each of them at
    # once. Passed from rank to rank they take two ranks' room, and travel while the kernel runs.
    set_rotate_method("alltoall")
    # All of its loggers share one handler, which would write to stdout for every group.
    logging.getLogger("xfuser").handlers[0].setLevel(logging.WARNING)
    if device.type == "cpu":
        import yunchang.globals

        # Without a GPU xfuser takes yunchang for missing. It only keeps the process groups of
        # Ulysses and ring, on which `USP` exchanges.
        parallel_state.HAS_LONG_CTX_ATTN = group_coordinator.HAS_LONG_CTX_ATTN = True
        usp.PROCESS_GROUP = yunchang.globals.PROCESS_GROUP
    # `USP` reads three settings from it. xfuser makes one from the arguments of its own pipelines.
    runtime_state._RUNTIME = SimpleNamespace(
        fp8_comms=None,
        attention_backend=BACKEND,
        runtime_config=SimpleNamespace(use_spargeattn_head_balance=False),
    )
    attention_backend.register_attention_function(BACKEND)(_reference_attention)
    return Xfuser(parallel_state, usp)


@contextmanager
def _torch_cuda_version(version: str | None) -> Iterator[None]:
    """xfuser tells by `torch.version.cuda` which kind of machine it is on."""
    before = torch.version.cuda
    torch.version.cuda = version
    try:
        yield
    finally:
        torch.version.cuda = before
