"""Compiled blocks: what a block does to each token is compiled, attention between tokens is not.

A block is two graphs, what comes before attention and what comes after it, with the block itself as
an argument: its weights are inputs of a graph, so all blocks share these two. Attention stays
outside: it picks its kernel, keeps references for other branches and exchanges tokens with other
ranks, and its time is in a kernel that compiling leaves as it is.

Shapes are fixed: each number of branches and tokens has two graphs of its own. Forward hooks on
blocks are called as before.

Source of the two pieces: `CogVideoXBlock.forward` in diffusers
`models/transformers/cogvideox_transformer_3d.py`.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import ErrorCode, RowError
from pipeline.model.attention.reference import (
    AttentionPlan,
    project_attended,
    queries_keys_values,
)
from pipeline.model.group import TokenGroup
from pipeline.model.memory import is_out_of_memory, wait_for
from pipeline.redaction import log
from pipeline.timing import OnProgress, unheard

MIN_GAIN = 1.03
"""`auto` keeps compiled blocks where they are so many times as fast. Below that a trial's noise
would decide."""
TRIAL_ROUNDS = 5
TOLERANCE = 5e-2
"""Of a compiled piece's output, in multiples of its largest value: above the rounding to 16 or 8
bits, which fused operations do less often, and far below what a wrong graph gives."""
SHAPES = 16
"""So many shapes are compiled in a process; further ones run as they are. A shape costs seconds to
minutes and the code of two graphs."""
BEAT_S = 1.0
COMPILE_DEADLINE_S = 1200.0
"""So long a compilation counts as going on. One that hangs is a stall after that."""

Rotary = tuple[Tensor, Tensor] | None
Piece = Callable[..., Any]
Backend = str | Callable[..., Any]


def before_attention(
    block: Any, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary
) -> tuple[Tensor, ...]:
    """A block up to its attention: queries, keys and values, and the gates of video and text.

    Args:
        block: a `CogVideoXBlock`.
        video, text: tokens [B, N, D].
        temb: the embedded timestep [1, time_embed_dim].
        rotary: cosines and sines [video tokens, head_dim].
    """
    normed_video, normed_text, gate, text_gate = block.norm1(video, text, temb)
    q, k, v = queries_keys_values(block.attn1, normed_video, normed_text, rotary)
    return q, k, v, gate, text_gate


def after_attention(
    block: Any,
    out: Tensor,
    video: Tensor,
    text: Tensor,
    temb: Tensor,
    gate: Tensor,
    text_gate: Tensor,
) -> tuple[Tensor, Tensor]:
    """The rest of a block: its video and text tokens [B, N, D].

    Args:
        out: of attention, [B, tokens, D], the text's first.
        gate, text_gate: from `before_attention`; the others as they came into the block.
    """
    text_tokens = text.shape[1]
    attended, attended_text = project_attended(block.attn1, out, text_tokens)
    video, text = video + gate * attended, text + text_gate * attended_text
    normed_video, normed_text, gate, text_gate = block.norm2(video, text, temb)
    out = block.ff(torch.cat([normed_text, normed_video], dim=1))
    return video + gate * out[:, text_tokens:], text + text_gate * out[:, :text_tokens]


def settings_of_the_compiler() -> None:
    """Set what torch keeps for each thread: whichever compiles must have it."""
    import torch._dynamo.config as dynamo

    # Each shape is a recompilation of the same function; SHAPES bounds them, for each model of a
    # process, and beyond its own limit torch would raise.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * SHAPES)
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        import torch._inductor.config as inductor

        # By default every rank starts up to 32 processes with a torch of their own, for some ten
        # kernels.
        inductor.compile_threads = 1


def compile_pieces(backend: Backend) -> tuple[Piece, Piece]:
    """Both pieces of a block, compiled for each shape at its first call."""
    before, after = (
        torch.compile(piece, fullgraph=True, dynamic=False, backend=backend)
        for piece in (before_attention, after_attention)
    )
    return before, after


def check_compiler(device: torch.device, backend: Backend = "inductor") -> None:
    """Compile something small.

    Raises:
        ValueError: the compiler does not work here; says why.
    """
    x = torch.ones(8, device=device)
    settings_of_the_compiler()
    try:
        torch.compile(lambda y: torch.nn.functional.silu(y) + 1, backend=backend)(x)
    except Exception as error:
        raise ValueError(
            f"speed.compile is true, and torch cannot compile on {device} ({_first_line(error)}). "
            "Install what it names (on a GPU Triton, which needs a C compiler; on a CPU g++), or "
            "set speed.compile to auto"
        ) from error


@dataclass(frozen=True)
class Trial:
    """What trying the compiled pieces on one shape gave on one rank.

    Args:
        gain: how many times as fast as the same operations one by one; 0 where it was not timed.
        problem: why they cannot be used; empty where they can.
        passing: whether the problem is no fault of the compiler: memory ran out, or shapes did.
    """

    gain: float = 0.0
    problem: str = ""
    passing: bool = False


@dataclass
class CompiledBlocks:
    """The blocks of one transformer, compiled where that pays.

    Each number of tokens is decided on once, by all ranks of a group together. With `auto` that is
    a trial, on a GPU of capability 8.0 or above. On a CPU `auto` compiles nothing, so that an edit
    stays the same to the last bit: there it gained 4 to 10% on the embedded checkpoint (212 tokens)
    and 5 to 17% on a model of 8 x 64 heads (2,170 tokens), side by side on one core, for 6 to 20 s
    of compilation a shape; where inductor's cache had it 0.8 to 3.4 s, but 7.4 s of 8.0 s for
    three branches at once of 2,170 tokens.

    Args:
        blocks: `CogVideoXBlock`s, whose `forward` is replaced once one shape is compiled.
        plan: of the attention between the pieces.
        wanted: `speed.compile`.
        backend: of `torch.compile`.
        progress: told before and after a compilation.
        pulse: called each second while something is compiled.
    """

    blocks: Sequence[Any]
    plan: AttentionPlan
    group: TokenGroup
    wanted: Literal["auto"] | bool = "auto"
    backend: Backend = "inductor"
    progress: OnProgress = unheard
    pulse: Callable[[], None] = lambda: None
    used: bool = field(default=False, init=False)
    _decided: dict[tuple[Any, ...], bool] = field(default_factory=dict, init=False)
    _usable: dict[tuple[Any, ...], bool] = field(default_factory=dict, init=False)
    _pieces: tuple[Piece, Piece] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for block in self.blocks:  # another model of the same transformer may have set it
            block.__dict__.pop("forward", None)
        if self.wanted is True and self.blocks:
            check_compiler(self.blocks[0].norm1.linear.weight.device, self.backend)

    def prepare(
        self, tokens: int, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary
    ) -> None:
        """Decide whether the next forward goes through compiled blocks: `used` says so then.

        All ranks of a group call this together. The first call for a number of tokens may take a
        minute, in which blocks are compiled and timed.

        Args:
            tokens: of one branch on the rank with most, the same number on all ranks.
            video, text, temb, rotary: what a block is going to be given.

        Raises:
            RowError: they cannot be compiled, and `wanted` says that they must be.
        """
        self.used = False
        if not self._sensible(video.device):
            return
        key = (tokens, video.dtype, video.device)
        if key not in self._decided:
            self._decided[key] = self._decide(tokens, video, text, temb, rotary)
        self.used = self._decided[key]

    def _sensible(self, device: torch.device) -> bool:
        if self.wanted != "auto":
            return self.wanted
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

    def _decide(
        self, tokens: int, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary
    ) -> bool:
        self.progress(f"the forward before blocks are compiled for {tokens} tokens")
        trial = self._try(_dense(video), _dense(text), temb, rotary, timed=True)
        trials: list[Trial] = self.group.gather_objects(trial)
        self.progress(f"the compilation of blocks for {tokens} tokens")
        for one in trials:
            if one.problem:
                self._refuse(one, f"{tokens} tokens")
                return False
        gain = min(one.gain for one in trials)
        keep = self.wanted is True or gain >= MIN_GAIN
        if self.group.rank == 0:
            use = "they are used" if keep else "they are not used"
            log(f"compiled blocks are {gain:.2f} times as fast for {tokens} tokens; {use}")
        if keep:
            for block in self.blocks:
                block.forward = partial(self._forward, block)
        return keep

    def _forward(
        self,
        block: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary = None,
    ) -> tuple[Tensor, Tensor]:
        """In the place of `CogVideoXBlock.forward`."""
        video, text = _dense(hidden_states), _dense(encoder_hidden_states)
        before, after = self._pieces_for(video, text, temb, image_rotary_emb)
        q, k, v, gate, text_gate = before(block, video, text, temb, image_rotary_emb)
        plan = self.plan
        out = plan.exchange(q, k, v, plan.reference_index, plan.references, plan.kernel)
        del q, k, v
        out = _joined_heads(out)
        tokens: tuple[Tensor, Tensor] = after(block, out, video, text, temb, gate, text_gate)
        return tokens

    def _pieces_for(
        self, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary
    ) -> tuple[Piece, Piece]:
        if not self.used:
            return PLAIN
        shape = _shape(video, text)
        if shape not in self._usable:
            # Another number of branches. The other ranks are not asked: their numbers may be
            # others, and what this one computes is the same but for rounding.
            trial = self._try(video, text, temb, rotary, timed=False)
            if trial.problem:
                self._refuse(trial, f"{len(video)} branches at once")
        return self._pieces if self._pieces and self._usable[shape] else PLAIN

    def _try(self, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary, timed: bool) -> Trial:
        """Compile the pieces for one shape; the block whose turn it is does not matter."""
        if len(self._usable) >= SHAPES:
            trial = Trial(problem=f"{SHAPES} other shapes were", passing=True)
        else:
            with beating(self.pulse):
                trial = self._tried(video, text, temb, rotary, timed)
        self._usable[_shape(video, text)] = not trial.problem
        return trial

    def _tried(
        self, video: Tensor, text: Tensor, temb: Tensor, rotary: Rotary, timed: bool
    ) -> Trial:
        try:
            settings_of_the_compiler()
            self._pieces = self._pieces or compile_pieces(self.backend)
            v, gate, text_gate = self._check(0, video, text, temb, rotary)[2:]
            out = _joined_heads(v)
            del v
            self._check(1, out, video, text, temb, gate, text_gate)
            if not timed:
                return Trial()
            before = self._seconds(0, video, text, temb, rotary)
            after = self._seconds(1, out, video, text, temb, gate, text_gate)
        except Exception as error:
            return Trial(problem=_first_line(error), passing=is_out_of_memory(_cause(error)))
        return Trial(gain=(before[0] + after[0]) / (before[1] + after[1]))

    def _check(self, which: int, *arguments: Any) -> tuple[Tensor, ...]:
        """The outputs of a compiled piece; raises where they are wrong."""
        assert self._pieces is not None
        expected = PLAIN[which](self.blocks[0], *arguments)
        outputs = self._pieces[which](self.blocks[0], *arguments)
        for output, right in zip(outputs, expected, strict=True):
            error = (output - right).abs().max() / right.abs().max().clamp_min(1e-6)
            if not error <= TOLERANCE:  # not `error > TOLERANCE`, which is false for NaN
                raise RuntimeError(f"compiled blocks are off by {float(error):.2g}")
        return tuple(outputs)

    def _seconds(self, which: int, *arguments: Any) -> tuple[float, float]:
        """Of a piece, its operations one by one and compiled: medians of rounds in turn."""
        assert self._pieces is not None
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(TRIAL_ROUNDS):
            for times, piece in zip(spent, (PLAIN[which], self._pieces[which]), strict=True):
                wait_for(arguments[0].device)
                start = time.perf_counter()
                piece(self.blocks[0], *arguments)
                wait_for(arguments[0].device)
                times.append(time.perf_counter() - start)
        return statistics.median(spent[0]), statistics.median(spent[1])

    def _refuse(self, trial: Trial, what: str) -> None:
        """Say that a shape is not compiled; raises where it must be and could be."""
        if self.wanted is True and not trial.passing:
            raise RowError(
                ErrorCode.INTERNAL,
                f"speed.compile is true, and the blocks cannot be compiled for {what}: "
                f"{trial.problem}. Set speed.compile to auto or false",
                needs_restart=self.group.ranks > 1,
            )
        log(f"blocks are not compiled for {what}: {trial.problem}")


PLAIN: tuple[Piece, Piece] = before_attention, after_attention


@contextmanager
def beating(pulse: Callable[[], None]) -> Iterator[None]:
    """Call `pulse` each second from a thread, for what is one long call: so it is no stall."""
    done = threading.Event()

    def beat() -> None:
        end = time.monotonic() + COMPILE_DEADLINE_S
        while not done.wait(BEAT_S) and time.monotonic() < end:
            pulse()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _dense(x: Tensor) -> Tensor:
    """A tensor in one piece, with the strides of one: graphs are chosen by strides too.

    A dimension of size 1 may have any stride in what is contiguous; flattening forgets it.
    """
    return x.contiguous().flatten().view(x.shape)


def _joined_heads(out: Tensor) -> Tensor:
    """[B, heads, tokens, head_dim] -> [B, tokens, D]; whatever the kernel's strides."""
    return _dense(out.transpose(1, 2).flatten(2))


def _shape(video: Tensor, text: Tensor) -> tuple[Any, ...]:
    return (*video.shape, text.shape[1], video.dtype, video.device)


def _cause(error: BaseException) -> BaseException:
    """What a backend raised, out of what Dynamo makes of it."""
    return getattr(error, "inner_exception", error)


def _first_line(error: BaseException) -> str:
    error = _cause(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
