"""The step cache: what is skipped, what that saves, and what stays as it is without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.algorithm.inversion import invert
from pipeline.algorithm.schedule import Schedule
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import ForwardCounter
from pipeline.model.transformer.step_cache import (
    CachedStep,
    Residuals,
    StepCache,
    with_step_cache,
)
from pipeline.plan import skippable
from pipeline.settings import Reconstruction, Speed
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import make_transformer, scheduler

STEPS, LAYERS = 10, 4
EDITS = [Edit("a", "worse"), Edit("b", guidance_scale=3.0), Edit("b", guidance_scale=1.0)]
ALL_STEPS = (0.0, 1.0)
ALWAYS = 1.0
"""A threshold that the first block of a small random model never reaches."""
MIXED = 0.45
"""One that some of its edits come below in a step in which others do not."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Video:
    """An inverted video, and a model that counts what goes through its blocks."""

    model: NamedModel
    trajectory: Tensor
    schedule: Schedule
    blocks: list[int] = field(default_factory=list)

    def edit(self, speed: Speed | None, edits: Sequence[Edit] = EDITS, **settings: Any) -> Tensor:
        """The latents of edits, made with a step cache where `speed` is given."""
        self.model.forwards = ForwardCounter()
        self.model.speed = speed or Speed()
        self.blocks[:] = [0] * LAYERS
        how = Reconstruction(**{"start": "inverted", "guidance_steps": (0, 1), **settings})
        trajectory = self.trajectory
        made = edit_with(self.model, lambda level: trajectory[level], edits, self.schedule, how)
        self.largest = made.largest_residual
        return made.latents


@pytest.fixture(scope="module")
def video() -> Video:
    transformer = make_transformer("5b", num_layers=LAYERS)
    prompts = {p: draw(20, 32, seed=i) for i, p in enumerate(["", "a", "b", "worse"])}
    model = NamedModel(transformer, prompts)
    schedule = schedule_from_config(scheduler("5b"), STEPS)
    video = Video(model, invert(model.velocity(), draw(3, 16, 4, 6), schedule), schedule)
    for number, block in enumerate(transformer.transformer_blocks):

        def count(_: Any, __: Any, kwargs: Any, number: int = number) -> None:
            video.blocks[number] += len(kwargs["hidden_states"])

        block.register_forward_pre_hook(count, with_kwargs=True)
    return video


def db(found: Tensor, expected: Tensor) -> float:
    return (10 * (expected.square().mean() / (found - expected).square().mean()).log10()).item()


# What stays as it is


def test_without_a_threshold_or_a_step_to_skip_the_model_itself_denoises(video: Video) -> None:
    model = video.model
    for threshold, levels in ((0.0, [[5]]), (0.1, [[]])):
        model.speed = Speed(step_cache=threshold)
        assert with_step_cache(model, video.schedule, levels) is model


@pytest.mark.parametrize("reference", ["empty", "shared", "script", "none"])
def test_edits_that_never_come_below_the_threshold_are_the_same_bytes(
    video: Video, reference: str
) -> None:
    plain = video.edit(None, reference=reference)
    spent, residual = video.model.forwards, video.largest
    cached = video.edit(Speed(step_cache=1e-6, step_cache_steps=ALL_STEPS), reference=reference)
    assert torch.equal(cached, plain)
    assert (video.model.forwards, video.largest) == (spent, residual)


# What is skipped


@pytest.mark.parametrize("reference", ["empty", "shared", "script", "none"])
def test_skipped_branches_and_their_references_end_after_the_first_block(
    video: Video, reference: str
) -> None:
    video.edit(None, reference=reference)
    plan = video.model.forwards
    video.edit(Speed(step_cache=ALWAYS, step_cache_steps=ALL_STEPS), reference=reference)
    spent = video.model.forwards
    assert (spent.plain, spent.injected) == (plan.plain // STEPS, plan.injected // STEPS)
    assert spent.skipped == plan.total - spent.total
    assert video.blocks == [plan.total] + [spent.total] * (LAYERS - 1)


def test_the_steps_outside_of_the_window_are_computed(video: Video) -> None:
    """The first 0.1 and the last 0.1 of ten steps, and the first step that finds nothing kept."""
    video.edit(None, EDITS[:1])
    plan = video.model.forwards
    video.edit(Speed(step_cache=ALWAYS), EDITS[:1])
    computed = 2
    assert video.model.forwards.total == computed * plan.total / STEPS
    seen: list[tuple[bool, bool]] = []
    cache = StepCache(ALWAYS, frozenset({500, 400}))
    for timestep in (600, 500, 400, 300):
        branch = Branch(draw(3, 16, 4, 6), "a", edit=0)  # type: ignore[arg-type]
        seen.append((cache.may_skip(timestep), cache.works_for([branch], timestep)))
    assert seen == [(False, True), (True, True), (True, True), (False, False)]


def test_a_skipped_step_adds_what_the_blocks_added_in_the_last_computed_one(video: Video) -> None:
    model = video.model
    cache = StepCache(ALWAYS, frozenset({500}))
    x, there = draw(3, 16, 4, 6, seed=5), draw(3, 16, 4, 6, seed=6)
    near = x + 0.01 * draw(3, 16, 4, 6, seed=7)
    for latents, timestep in ((x, 600), (near, 500)):
        before = dict(cache.residuals)
        branches = [Branch(latents, "a", "", edit=0)]  # type: ignore[arg-type]
        (found,), own = model.predict(branches, timestep, there, cache=cache)
        (exact,), _ = model.predict(branches, timestep, there)
        assert (own == {}) == (timestep == 500)
        assert torch.equal(found, exact) == (timestep == 600)
        assert db(found, exact) > 15
    assert before.keys() == {(0, False)}
    assert cache.residuals == {}, "no later step needs anything"


def test_a_higher_threshold_skips_more_and_costs_more(video: Video) -> None:
    plain = video.edit(None)
    found = []
    for threshold in (0.3, 0.4, 0.5):
        edited = video.edit(Speed(step_cache=threshold, step_cache_steps=ALL_STEPS))
        found.append((video.model.forwards.skipped, db(edited, plain)))
    skipped, loss = zip(*found, strict=True)
    assert 0 < skipped[0] < skipped[1] < skipped[2]
    assert loss[0] > loss[1] > loss[2]


# Edits by themselves


@pytest.mark.parametrize("reference", ["empty", "shared"])
def test_an_edit_does_not_depend_on_those_beside_it(video: Video, reference: str) -> None:
    speed = Speed(step_cache=MIXED, step_cache_steps=ALL_STEPS)
    together = video.edit(speed, reference=reference)
    steps = set()
    for place, edit in enumerate(EDITS):
        alone = video.edit(speed, [edit], reference=reference)
        assert torch.equal(alone[0], together[place])
        steps.add(video.model.forwards.injected / (1 + (edit.guidance_scale > 1)))
    assert len(steps) > 1, "all edits decide alike; take another threshold"


def test_edits_in_parts_are_the_same_bytes(video: Video) -> None:
    speed = Speed(step_cache=MIXED, step_cache_steps=ALL_STEPS)
    whole = video.edit(speed)
    video.model.max_branches = 2
    parts = video.edit(speed)
    video.model.max_branches = None
    assert torch.equal(whole, parts)


def test_both_branches_of_an_edit_are_skipped_or_none() -> None:
    branches: list[Any] = [
        Branch(torch.zeros(1), None, edit=edit, negative=negative)  # type: ignore[arg-type]
        for edit, negative in ((0, True), (0, False), (1, True), (1, False), (2, False))
    ]
    cache = StepCache(0.1, frozenset())
    sizes = [(0.05, 1.0), (0.2, 1.0), (0.09, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert cache.skipped(branches, sizes) == [False, False, True, True, False]
    nan = float("nan")
    assert cache.skipped(branches[:2], [(nan, 1.0), (0.0, nan)]) == [False, False]


def test_a_branch_that_went_to_another_rank_is_forgotten_here() -> None:
    negative, positive = (
        Branch(torch.zeros(1), None, edit=0, negative=one)  # type: ignore[arg-type]
        for one in (True, False)
    )
    kept = Residuals(torch.zeros(1, 1), torch.zeros(1, 1))
    cache = StepCache(0.1, frozenset({1}), residuals={(0, True): kept, (0, False): kept})
    group: Any = SimpleNamespace(cfg_rank=1)
    CachedStep(cache, group, [[negative], [positive]], 1, True)
    assert list(cache.residuals) == [(0, False)]


@pytest.mark.parametrize("window", ["inject_steps", "guidance_steps"])
def test_the_step_in_which_a_window_ends_is_computed(video: Video, window: str) -> None:
    speed = Speed(step_cache=ALWAYS, step_cache_steps=ALL_STEPS)
    for edits in (EDITS[:1], EDITS[2:]):  # guided and unguided ones alike
        skipped = []
        for end in (0.5, 1.0):
            video.edit(speed, edits, **{window: (0, end)})
            skipped.append(video.blocks[0] - video.blocks[1])
        assert skipped[0] < skipped[1]
    spent = {"inject_steps": (2, 1), "guidance_steps": (2, 2)}[window]
    video.edit(speed, EDITS[2:], **{window: (0, 0.5)})
    assert (video.model.forwards.plain, video.model.forwards.injected) == spent


def test_which_steps_may_be_skipped_is_the_same_for_every_edit() -> None:
    how = Reconstruction(start="inverted", guidance_steps=(0.2, 0.6), inject_steps=(0, 0.5))
    assert skippable(how, Speed(), 10) == [9, 7, 6, 3, 2]
    assert skippable(how, Speed(step_cache_steps=(0.5, 0.5)), 10) == []


# The reference's own velocity


def test_the_residual_has_its_reference_in_every_step(video: Video) -> None:
    video.edit(None, EDITS[:1], residual=True)
    exact = video.largest
    video.edit(Speed(step_cache=ALWAYS, step_cache_steps=ALL_STEPS), EDITS[:1], residual=True)
    assert video.largest == exact
    assert video.model.forwards.plain == STEPS


def test_without_the_residual_the_largest_is_that_of_the_computed_steps(video: Video) -> None:
    video.edit(None, EDITS[:1])
    exact = video.largest
    video.edit(Speed(step_cache=ALWAYS, step_cache_steps=ALL_STEPS), EDITS[:1])
    assert exact is not None
    assert video.largest is not None
    assert 0 < video.largest <= exact


# What is kept


def test_nothing_goes_from_one_reconstruction_to_the_next(video: Video) -> None:
    speed = Speed(step_cache=MIXED, step_cache_steps=ALL_STEPS)
    first = video.edit(speed)
    spent = video.model.forwards
    assert torch.equal(video.edit(speed), first)
    assert video.model.forwards == spent


def test_inversion_never_skips(video: Video) -> None:
    video.model.speed = Speed(step_cache=ALWAYS, step_cache_steps=ALL_STEPS)
    trajectory = invert(video.model.velocity(), draw(3, 16, 4, 6), video.schedule)
    assert torch.equal(trajectory, video.trajectory)


def test_where_memory_runs_out_behind_the_decision_the_next_try_computes(
    video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed(step_cache=MIXED, step_cache_steps=ALL_STEPS)
    whole = video.edit(speed)
    block = video.model.transformer.transformer_blocks[-1]
    failed: list[int] = []

    def tight(*, hidden_states: Tensor, real: Any = block.forward, **how: Any) -> Any:
        if len(hidden_states) > 2:
            failed.append(len(hidden_states))
            raise torch.OutOfMemoryError("full")
        return real(hidden_states=hidden_states, **how)

    video.model._at_once.clear()
    monkeypatch.setattr(block, "forward", tight)
    found = video.edit(speed)
    video.model._at_once.clear()
    assert failed
    assert torch.equal(found, whole)
