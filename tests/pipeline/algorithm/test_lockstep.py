"""Edits that are not alike in one lockstep: each joins at its level, and is what it is alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.algorithm.inversion import invert
from pipeline.algorithm.reconstruction import mixed, seeded_noise
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import denoising_steps, edit_plans, highest_stored, start_latents
from pipeline.records import EditSpec
from pipeline.settings import Reconstruction, Speed, Variation
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import make_transformer, scheduler

STEPS = 5
EDITS = [Edit("a", "worse"), Edit("b", guidance_scale=1.0), Edit("b"), Edit("a", seed=4)]
UNLIKE = [
    Reconstruction(start=0.6, guidance_steps=(0, 1)),
    Reconstruction(start="inverted", inject_steps=(0, 0.5)),
    Reconstruction(start=0.4, guidance_steps=(0, 0.5), inject_steps=(0.5, 1)),
    Reconstruction(start="noise", guidance_steps=(0, 0)),
]


class Video:
    """A small model with the trajectory of a clip."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        transformer = make_transformer("5b", num_layers=2)
        tokens = transformer.config.max_text_seq_length
        prompts = {
            name: torch.randn(tokens, 32, generator=draw) for name in ("", "worse", "a", "b")
        }
        self.model = NamedModel(transformer, prompts)
        self.schedule = schedule_from_config(scheduler("5b"), STEPS)
        clean = torch.randn(3, 16, 8, 12, generator=draw)
        self.trajectory = invert(self.model.velocity(), clean, self.schedule)
        self.read: list[int] = []

    def fetch(self, level: int) -> Tensor:
        self.read.append(level)
        return self.trajectory[level]

    def edit(self, numbers: list[int], **changes: object) -> Tensor:
        self.model.forwards = ForwardCounter()
        how = [replace(UNLIKE[n], **changes) for n in numbers]  # type: ignore[arg-type]
        edits = [EDITS[n] for n in numbers]
        return edit_with(self.model, self.fetch, edits, self.schedule, how).latents


@pytest.fixture(scope="module")
def video() -> Video:
    return Video()


@pytest.mark.parametrize("reference", ["empty", "shared", "script", "none"])
@pytest.mark.parametrize("residual", [False, True])
def test_unlike_edits_in_lockstep_are_the_same_bytes_as_alone(
    video: Video, reference: str, residual: bool
) -> None:
    changes = {"reference": reference, "residual": residual}
    together = video.edit([0, 1, 2, 3], **changes)
    for number in range(4):
        assert torch.equal(video.edit([number], **changes)[0], together[number]), number


def test_unlike_edits_skip_with_a_step_cache_what_they_skip_alone(video: Video) -> None:
    video.model.speed = Speed(step_cache=0.4, step_cache_steps=(0.0, 1.0))
    try:
        together = video.edit([0, 1, 2, 3])
        alone = [video.edit([number])[0] for number in range(4)]
        video.model.speed = Speed()
        computed = video.edit([0, 1, 2, 3])
    finally:
        video.model.speed = Speed()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(computed, together), "nothing was skipped; take another threshold"


def test_the_reference_is_computed_once_a_level_for_those_that_attend(video: Video) -> None:
    video.edit([0, 0, 0])
    alike = video.model.forwards
    assert (alike.plain, alike.injected) == (3, 3 * 3 * 2)  # 3 levels, guided in all
    video.edit([0, 1])
    # edit 1: 5 levels, no guidance, attends in the first 3 (5, 4, 3); edit 0 from level 3 on
    assert (video.model.forwards.plain, video.model.forwards.injected) == (5 + 2, 3 + 3 * 2)


def test_an_edit_waits_at_its_start_until_its_level_comes(video: Video) -> None:
    seen: list[tuple[int, Tensor]] = []
    edit_with(
        video.model,
        video.fetch,
        EDITS[:2],
        video.schedule,
        UNLIKE[:2],
        on_step=lambda level, x: seen.append((level, x)),
    )
    levels, latents = zip(*seen, strict=True)
    assert levels == (4, 3, 2, 1, 0)
    waits = [torch.equal(x[0], video.trajectory[3]) for x in latents]
    assert waits == [True, True, False, False, False]


def test_each_edit_has_its_own_steps() -> None:
    steps = denoising_steps(UNLIKE, STEPS, [2.0, 1.0, 3.0, 2.0])
    assert [step.level for step in steps] == [5, 4, 3, 2, 1]
    assert [step.scales for step in steps] == [
        (None, 1.0, None, 1.0),
        (None, 1.0, None, 1.0),
        (2.0, 1.0, None, 1.0),
        (2.0, 1.0, 3.0, 1.0),
        (2.0, 1.0, 1.0, 1.0),
    ]
    assert [step.injects for step in steps] == [
        (False, True, False, True),
        (False, True, False, True),
        (True, True, False, True),
        (True, False, False, True),
        (True, False, True, True),
    ]


# Candidates


EDIT = EditSpec("a", edit_id="e", guidance_scale=2.0, seed=7)
CANDIDATES = Reconstruction(
    start=0.4,
    candidates=(
        Variation(noise=0.5),
        Variation(start=0.8, guidance_scale=5.0, mask="auto"),
        Variation(noise=0.5, seed=3),
        Variation(start="noise"),
    ),
)


def test_an_edit_is_made_with_its_own_settings_and_with_each_variation() -> None:
    plans = edit_plans(CANDIDATES, [EDIT, replace(EDIT, seed=8)])
    assert [(p.source, p.number) for p in plans] == [(s, n) for s in (0, 1) for n in range(5)]
    own, noisy, higher, seeded, anew = plans[:5]
    assert own.edit == EDIT
    assert own.settings == replace(CANDIDATES, candidates=())
    assert (noisy.settings.noise, noisy.settings.start) == (0.5, 0.4)
    assert (higher.settings.start, higher.edit.guidance_scale, higher.mask) == (0.8, 5, "auto")
    assert (higher.settings.noise, own.mask) == (0.0, None)
    assert seeded.edit.seed == 3
    assert anew.settings.start == "noise"
    seeds = [plan.edit.seed for plan in plans if plan.number in (1, 4)]
    assert len({*seeds, 7, 8}) == 6  # each draws its own noise


def test_a_later_round_makes_only_what_another_seed_changes() -> None:
    first = {plan.number: plan for plan in edit_plans(CANDIDATES, [EDIT])}
    later = edit_plans(CANDIDATES, [EDIT], 1)
    assert [plan.number for plan in later] == [5 + 1, 5 + 4]  # counted on
    for plan in later:
        assert plan.settings == first[plan.number - 5].settings
        assert plan.edit.seed != first[plan.number - 5].edit.seed
    again = edit_plans(CANDIDATES, [EDIT], 2)
    assert [p.edit.seed for p in again] != [p.edit.seed for p in later]


def test_the_trajectory_reaches_the_highest_start_of_all_candidates() -> None:
    assert highest_stored(replace(CANDIDATES, candidates=()), 10) == 4
    assert highest_stored(replace(CANDIDATES, candidates=CANDIDATES.candidates[:3]), 10) == 8
    assert highest_stored(CANDIDATES, 10) == 10


def test_edits_without_candidates_start_where_they_did(video: Video) -> None:
    plain = Reconstruction(start=0.6)
    (plan,) = edit_plans(plain, [EDIT])
    (x,) = start_latents([plan], video.trajectory, video.schedule)
    assert torch.equal(x, video.trajectory[3])


# Noise


def test_noise_that_is_mixed_in_keeps_signal_and_variance() -> None:
    alpha, clean = 0.3, seeded_noise((3, 16, 32, 32), 0)
    x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * seeded_noise(clean.shape, 1)
    noise = seeded_noise(clean.shape, 2)
    for part in (0.0, 0.3, 0.8, 1.0):
        made = mixed(x, clean, noise, part, alpha)
        rest = (made - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        assert abs(rest.std().item() - 1) < 0.01
        assert abs((rest * noise).mean().item() - part) < 0.02  # so much of it is the new noise
        assert abs((made * clean).mean().item() - alpha**0.5) < 0.02
    assert torch.equal(mixed(x, clean, noise, 0.0, alpha), x)
    assert torch.allclose(mixed(x, clean, noise, 1.0, 0.0), noise, atol=1e-6)


def test_noise_starts_from_the_level_of_the_trajectory(video: Video) -> None:
    how = Reconstruction(start=0.6, candidates=(Variation(noise=0.5), Variation(noise=1.0)))
    plans = edit_plans(how, [EDIT])
    own, half, all_new = start_latents(plans, video.trajectory, video.schedule)
    assert torch.equal(own, video.trajectory[3])
    noise = seeded_noise(own.shape, plans[2].edit.seed or 0)
    alpha = video.schedule.levels[3].alpha
    expected = alpha**0.5 * video.trajectory[0] + (1 - alpha) ** 0.5 * noise
    assert torch.allclose(all_new, expected, atol=1e-5)
    assert not torch.allclose(half, own, atol=0.1)
