"""Reconstruction: edits at once are edits one by one, for fewer forwards, from any start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithm.inversion import invert
from pipeline.algorithm.reconstruction import (
    DenoisingStep,
    Edited,
    EditPrompts,
    reconstruct,
    seeded_noise,
)
from pipeline.algorithm.schedule import Schedule
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import denoising_steps, highest_stored, injects, start_level
from pipeline.quality.metrics import signal_to_error_db
from pipeline.settings import Reconstruction
from tests.benchmarks.cost import script_plan
from tests.gaussian_mixture import GaussianMixture, MixtureModel
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import FAMILIES, make_transformer, scheduler

STEPS = 4
PROMPTS = ("", "negative", "source", *(f"edit {i}" for i in range(8)))
GUIDED = Reconstruction(start="noise", guidance_steps=(0, 1))
FROM_NOISE = replace(GUIDED, reference="shared")
EDITS = [
    Edit("edit 0", guidance_scale=6.0, seed=3),
    Edit("edit 1", "negative", guidance_scale=2.5, seed=4),
    Edit("edit 2", guidance_scale=1.0, seed=5),
    Edit("edit 3", guidance_scale=6.0, seed=3, source_prompt="source"),
]


def small_model(family: str = "5b", **changes: Any) -> NamedModel:
    transformer = make_transformer(family, **changes)
    draw = torch.Generator().manual_seed(1)
    tokens = transformer.config.max_text_seq_length
    return NamedModel(
        transformer, {prompt: torch.randn(tokens, 32, generator=draw) for prompt in PROMPTS}
    )


class Video:
    """A model with the trajectory of one video."""

    def __init__(self, family: str = "5b", steps: int = STEPS) -> None:
        self.model = small_model(family)
        self.schedule: Schedule = schedule_from_config(scheduler(family), steps)
        frames = 4 if family == "1.5-5b" else 3
        clean = torch.randn(frames, 16, 8, 12, generator=torch.Generator().manual_seed(2))
        self.trajectory = invert(self.model.velocity(), clean, self.schedule)
        self.read: list[int] = []
        self.model.forwards = ForwardCounter()

    def fetch(self, level: int) -> Tensor:
        self.read.append(level)
        return self.trajectory[level]

    def edit(self, edits: Sequence[Edit], settings: Reconstruction, **options: Any) -> Edited:
        return edit_with(self.model, self.fetch, edits, self.schedule, settings, **options)


@pytest.fixture(scope="module")
def video() -> Video:
    return Video()


# Sharing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reference", ["shared", "empty", "source", "script", "none"])
def test_edits_at_once_are_the_edits_one_by_one(family: str, reference: Any) -> None:
    video = Video(family, steps=3)
    settings = Reconstruction(start="noise", reference=reference)
    together = video.edit(EDITS, settings).latents
    apart = torch.cat([video.edit([edit], settings).latents for edit in EDITS])
    assert (together - apart).abs().max() < 1e-5


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("reference", ["shared", "empty", "script"])
def test_a_batch_split_for_memory_gives_the_same_edits(
    video: Video, most: int, reference: Any
) -> None:
    settings = Reconstruction(start="inverted", reference=reference)
    video.model.forwards = ForwardCounter()
    whole = video.edit(EDITS, settings).latents
    spent = replace(video.model.forwards)
    try:
        video.model.max_branches = most
        split = video.edit(EDITS, settings).latents
    finally:
        video.model.max_branches = None
    assert (whole - split).abs().max() < 1e-5
    video.model.forwards.plain -= spent.plain
    video.model.forwards.injected -= spent.injected
    assert spent == video.model.forwards


def test_the_shared_reference_is_the_scripts(video: Video) -> None:
    shared, script = (
        video.edit(EDITS, replace(FROM_NOISE, reference=r)).latents for r in ("shared", "script")
    )
    assert (shared - script).abs().max() < 1e-5


def test_the_source_prompt_conditions_the_reference_only_where_it_is_asked_to(video: Video) -> None:
    source, empty = (replace(FROM_NOISE, reference=r) for r in ("source", "empty"))
    with_source, without = video.edit(EDITS[2:], source).latents
    assert torch.allclose(without, video.edit(EDITS[3:], source).latents[0], atol=1e-5)
    assert torch.allclose(with_source, video.edit(EDITS[2:3], empty).latents[0], atol=1e-5)
    assert not torch.allclose(without, video.edit(EDITS[3:], empty).latents[0], atol=1e-3)


# Determinism


def test_the_same_seeds_give_the_same_bytes_in_any_order_and_batch(video: Video) -> None:
    for reference in ("shared", "empty", "none"):
        settings = replace(FROM_NOISE, reference=reference)
        forwards = list(video.edit(EDITS, settings).latents)
        backwards = list(video.edit(EDITS[::-1], settings).latents)[::-1]
        pairs = [x for i in (0, 2) for x in video.edit(EDITS[i : i + 2], settings).latents]
        alone = [video.edit([edit], settings).latents[0] for edit in EDITS]
        for others in (backwards, pairs, alone):
            assert all(torch.equal(a, b) for a, b in zip(forwards, others, strict=True))


def test_another_seed_is_another_edit_from_noise_and_the_same_from_the_trajectory(
    video: Video,
) -> None:
    seeds = [replace(EDITS[0], seed=seed) for seed in (3, 3, 4)]
    a, b, c = video.edit(seeds, FROM_NOISE).latents
    assert torch.equal(a, b)
    assert (a - c).abs().max() > 0.1
    a, b, c = video.edit(seeds, replace(FROM_NOISE, start="inverted")).latents
    assert torch.equal(a, b)
    assert torch.equal(a, c)


def test_an_edit_that_says_only_its_prompt_has_the_documented_defaults() -> None:
    scale = Reconstruction().guidance_scale
    assert Edit("a fox") == Edit("a fox", negative_prompt="", guidance_scale=scale, seed=0)
    assert Edit("a fox").source_prompt == ""


def test_seeded_noise_is_standard_normal_and_its_seeds_own() -> None:
    x = seeded_noise((20, 16, 8, 12), 7)
    assert torch.equal(x, seeded_noise((20, 16, 8, 12), 7))
    assert abs(x.mean().item()) < 0.02
    assert x.std().item() == pytest.approx(1, abs=0.02)
    assert (x - seeded_noise((20, 16, 8, 12), 8)).abs().mean() > 1


# Cost


S, C = STEPS, 1.49
PLANS: dict[str, tuple[Reconstruction, Callable[[int], float]]] = {
    "invert once": (
        replace(GUIDED, reference="script"),
        lambda n: S / n + S * (2 + 2 * C),
    ),
    "shared": (
        replace(GUIDED, reference="shared"),
        lambda n: 2 * S / n + S * (1 + 2 * C),
    ),
    "empty": (
        GUIDED,
        lambda n: 2 * S / n + 2 * S * C,
    ),
    "empty in the first half": (
        replace(GUIDED, inject_steps=(0, 0.5)),
        lambda n: (S + S / 2) / n + S * C + S,
    ),
    "shared from half of the levels": (
        replace(GUIDED, start=0.5, reference="shared"),
        lambda n: 0.5 * (2 * S / n + S * (1 + 2 * C)),
    ),
    "empty from half of the levels": (
        replace(GUIDED, start=0.5),
        lambda n: 0.5 * (2 * S / n + 2 * S * C),
    ),
    "empty from half of the levels, in the first half": (
        replace(GUIDED, start=0.5, inject_steps=(0, 0.5)),
        lambda n: 0.5 * ((S + S / 2) / n + S * C + S),
    ),
}


@pytest.mark.parametrize("edits", [1, 4, 8])
@pytest.mark.parametrize("plan", PLANS)
def test_the_forwards_are_those_of_the_formula(video: Video, plan: str, edits: int) -> None:
    settings, formula = PLANS[plan]
    model = small_model(num_layers=1)
    invert(
        model.velocity(),
        video.trajectory[0],
        video.schedule,
        method="ddim",
        highest=highest_stored(settings, video.schedule.steps),
    )
    several = [Edit(f"edit {i}", seed=i) for i in range(edits)]
    edit_with(model, video.fetch, several, video.schedule, settings)
    an_edit = (model.forwards.plain + C * model.forwards.injected) / edits
    assert an_edit == pytest.approx(formula(edits))


def test_the_scripts_plan_costs_what_the_formula_says(video: Video) -> None:
    model = small_model(num_layers=1)
    script_plan(model, video.trajectory[0], Edit("edit 0"), steps=STEPS)
    assert (model.forwards.plain, model.forwards.injected) == (4 * S, 2 * S)


def test_the_default_inversion_costs_one_forward_more_than_a_step_each() -> None:
    model = small_model(num_layers=1)
    invert(model.velocity(), torch.zeros(3, 16, 8, 12), schedule_from_config(scheduler(), 7))
    assert (model.forwards.plain, model.forwards.injected) == (8, 0)


def test_guidance_of_one_costs_no_negative_half(video: Video) -> None:
    for dynamic in (False, True):
        for scale, halves in ((1.0, STEPS), (0.0, STEPS), (1.01, 2 * STEPS - dynamic)):
            model = small_model(num_layers=1)
            edits = [Edit(f"edit {i}", guidance_scale=scale) for i in range(3)]
            settings = replace(FROM_NOISE, reference="empty", dynamic_guidance=dynamic)
            edit_with(model, video.fetch, edits, video.schedule, settings)
            assert (model.forwards.plain, model.forwards.injected) == (STEPS, 3 * halves)


def test_a_window_without_blocks_costs_what_no_reference_does(video: Video) -> None:
    spent = []
    for changes in ({"inject_blocks": (1, 1)}, {"reference": "none"}):
        model = small_model()
        settings = replace(FROM_NOISE, **changes)  # type: ignore[arg-type]
        edit_with(model, video.fetch, EDITS[:1], video.schedule, settings)
        spent.append(model.forwards)
    assert spent[0] == spent[1]
    assert spent[0].injected == 0


# Guidance


def test_guidance_mixes_the_halves_in_the_given_proportion(video: Video) -> None:
    last = replace(FROM_NOISE, reference="none", start=0.25)

    def result(edit: Edit) -> Tensor:
        return video.edit([edit], last).latents[0]

    negative = result(Edit("negative", guidance_scale=1))
    positive = result(Edit("edit 1", guidance_scale=1))
    guided = result(Edit("edit 1", "negative", guidance_scale=4))
    # one step is linear in the velocity
    assert torch.allclose(guided, negative + 4 * (positive - negative), atol=1e-5)
    assert (positive - negative).abs().max() > 0.01


def test_outside_of_the_guided_steps_there_is_no_guidance_and_no_cost() -> None:
    schedule = schedule_from_config(scheduler(), 10)
    settings = replace(GUIDED, guidance_steps=(0.25, 0.7), reference="none")
    scales = [step.scales[0] for step in denoising_steps(settings, schedule.steps, [6.0])]
    assert scales == [1, 1, 1, 6, 6, 6, 6, 1, 1, 1]
    model = small_model(num_layers=1)
    trajectory = torch.zeros(11, 3, 16, 8, 12)
    edit_with(model, lambda level: trajectory[level], EDITS[:1], schedule, settings)
    assert model.forwards.plain == 10 + 4


@pytest.mark.parametrize("start", [0.04, 0.1, 0.6, "inverted"])
def test_the_first_denoising_step_is_guided_by_default(start: Any) -> None:
    schedule = schedule_from_config(scheduler(), 25)
    settings = Reconstruction(start=start)
    top = start_level(settings, schedule.steps)
    steps = denoising_steps(settings, schedule.steps, [6.0])
    guided = [step.level for step in steps if step.scales[0] > 1]
    assert guided == list(range(top, top - math.ceil(0.4 * top), -1))


# Start


@pytest.mark.parametrize(("start", "top"), [("inverted", 10), (1.0, 10), (0.6, 6), (0.01, 1)])
def test_denoising_starts_at_its_level_of_the_trajectory(start: Any, top: int) -> None:
    video = Video(steps=10)
    reached: list[int] = []
    settings = Reconstruction(start=start, reference="none")
    # With the empty prompt and no guidance the steps follow the trajectory down.
    video.edit(
        [Edit("", guidance_scale=1)], settings, on_step=lambda level, _: reached.append(level)
    )
    assert video.read == [top]
    assert reached == list(range(top - 1, -1, -1))
    assert video.model.forwards.plain == top


def test_a_start_from_noise_takes_the_given_noise_or_the_seeds(video: Video) -> None:
    drawn = seeded_noise(video.trajectory.shape[1:], EDITS[0].seed)
    by_seed = video.edit(EDITS[:1], FROM_NOISE).latents
    given_noise = video.edit([replace(EDITS[0], seed=99)], FROM_NOISE, noise=drawn).latents
    assert torch.equal(by_seed, given_noise)
    by_shape = video.edit(EDITS[:1], FROM_NOISE, shape=tuple(drawn.shape)).latents
    assert torch.equal(by_seed, by_shape)


@given(
    steps=st.integers(1, 12),
    start=st.one_of(st.sampled_from(["noise", "inverted"]), st.floats(0.01, 1)),
    reference=st.sampled_from(["empty", "shared", "none"]),
    window=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
    residual=st.booleans(),
)
def test_no_edit_reads_above_the_level_where_the_inversion_may_stop(
    steps: int, start: Any, reference: Any, window: list[float], residual: bool
) -> None:
    mixture = GaussianMixture(scheduler(), std=0.5)
    schedule = schedule_from_config(scheduler(), steps)
    read: list[int] = []

    def fetch(level: int) -> Tensor:
        read.append(level)
        return torch.zeros(1, 1, 1, mixture.WIDTH)

    settings = Reconstruction(
        start=start, reference=reference, inject_steps=(window[0], window[1]), residual=residual
    )
    model: Any = MixtureModel(mixture)
    edit_with(model, fetch, EDITS[:1], schedule, settings, shape=(1, 1, 1, mixture.WIDTH))
    assert max(read, default=0) == highest_stored(settings, schedule.steps)


# Reference


def test_the_windows_of_steps_and_blocks_bound_the_injection(video: Video) -> None:
    def result(settings: Reconstruction) -> Tensor:
        return video.edit(EDITS[:1], settings).latents

    everywhere, nowhere = result(FROM_NOISE), result(replace(FROM_NOISE, reference="none"))
    assert torch.allclose(result(replace(FROM_NOISE, inject_blocks=(0, 2))), everywhere)
    assert torch.allclose(result(replace(FROM_NOISE, inject_blocks=(1, 1))), nowhere, atol=1e-5)
    assert torch.allclose(result(replace(FROM_NOISE, inject_steps=(0.5, 0.5))), nowhere, atol=1e-5)
    partial = [
        result(replace(FROM_NOISE, inject_blocks=(0, 1))),
        result(replace(FROM_NOISE, inject_blocks=(1, 2))),
        result(replace(FROM_NOISE, inject_steps=(0, 0.5))),
        result(replace(FROM_NOISE, inject_steps=(0.5, 1))),
    ]
    for i, one in enumerate([everywhere, nowhere, *partial]):
        for other in [everywhere, nowhere, *partial][:i]:
            assert (one - other).abs().max() > 1e-3


def test_the_window_is_of_the_denoising_steps() -> None:
    settings = Reconstruction(inject_steps=(0.25, 0.75))
    assert [level for level in range(8, 0, -1) if injects(settings, 8, level)] == [6, 5, 4, 3]
    assert [level for level in range(4, 0, -1) if injects(settings, 4, level)] == [3, 2]


# Residual


@pytest.mark.parametrize("method", ["pec", "script"])
def test_the_residual_leads_the_empty_prompt_back_to_the_source(method: Any) -> None:
    video = Video(steps=8)
    if method == "script":
        video.schedule = script_schedule(scheduler(), 8)
    clean = video.trajectory[0]
    video.trajectory = invert(video.model.velocity(), clean, video.schedule, method=method)
    found = {}
    for residual in (True, False):
        settings = Reconstruction(start="inverted", reference="empty", residual=residual)
        made = video.edit([Edit("", guidance_scale=1)], settings)
        found[residual] = signal_to_error_db(clean, made.latents[0])
        assert made.largest_residual is not None
        assert made.largest_residual > 1e-4
    assert found[True] >= 60
    assert found[True] > found[False] + 20


def test_the_residual_asks_for_its_reference_where_the_step_has_none() -> None:
    video = Video()
    plain = video.edit(EDITS[:2], Reconstruction(start="inverted", reference="none"))
    assert plain.largest_residual is None
    without = video.model.forwards.plain
    settings = Reconstruction(start="inverted", reference="none", residual=True)
    made = video.edit(EDITS[:2], settings)
    assert video.model.forwards.plain == 2 * without + STEPS
    assert made.largest_residual is not None
    assert not torch.allclose(made.latents, plain.latents, atol=1e-4)


def test_a_reference_that_is_not_the_inversions_certifies_nothing(video: Video) -> None:
    """`Edit 1` has a negative prompt, so no branch of its reference has the empty one."""
    settings = Reconstruction(start="inverted", reference="shared")
    assert video.edit(EDITS[1:2], settings).largest_residual is None
    assert video.edit(EDITS[:1], settings).largest_residual is not None


def direct(video: Video, edits: int, scales: Sequence[float], **options: Any) -> Edited:
    """One step from the top with reference attention, with no settings."""
    model, top = video.model, video.schedule.steps
    empty, prompt = model.named(""), model.named("edit 0")
    x = torch.stack([video.trajectory[top]] * edits)
    prompts = [EditPrompts(prompt, empty, empty, empty)] * edits
    step = DenoisingStep(top, tuple(scales), (True,) * edits)
    return reconstruct(
        model, x, video.fetch, prompts, [step], video.schedule, empty=empty, **options
    )


def test_references_are_shared_unless_it_is_asked_otherwise(video: Video) -> None:
    plain = []
    for options in ({}, {"share": True}, {"share": False}):
        video.model.forwards = ForwardCounter()
        direct(video, 2, (2.0, 2.0), **options)
        plain.append(video.model.forwards.plain)
    assert plain == [1, 1, 4]


def test_the_residual_is_added_where_it_is_asked_for(video: Video) -> None:
    bare, without, added = (
        direct(video, 1, (1.0,), **options).latents
        for options in ({}, {"residual": False}, {"residual": True})
    )
    assert torch.equal(bare, without)
    assert not torch.equal(bare, added)


def test_every_edit_has_a_guidance_scale(video: Video) -> None:
    with pytest.raises(ValueError, match="zip"):
        direct(video, 2, (2.0,))


def test_the_largest_residual_is_that_of_the_steps(video: Video) -> None:
    made = direct(video, 1, (1.0,))
    top = video.schedule.steps
    x, velocity = video.trajectory[top], video.model.velocity()
    reached = video.schedule.descend(x, velocity(x, video.schedule.levels[top].timestep), top)
    missed = (video.trajectory[top - 1] - reached).square().mean().sqrt().item()
    assert made.largest_residual == pytest.approx(missed, rel=1e-4)
    assert 0 < missed < 1


def test_no_gradient_is_kept_of_a_model_that_could_have_one(video: Video) -> None:
    class Trained(MixtureModel):
        def predict(self, *arguments: Any, **options: Any) -> Any:
            velocities, own = super().predict(*arguments, **options)
            weight = torch.ones((), requires_grad=True)
            return [weight * v for v in velocities], own

    mixture = GaussianMixture(scheduler(), std=0.5)
    schedule = schedule_from_config(scheduler(), 2)
    entries = invert(mixture.velocity, mixture.points(1), schedule)
    settings = Reconstruction(start="inverted", reference="none")
    made = edit_with(Trained(mixture), lambda level: entries[level], [Edit("")], schedule, settings)
    assert not made.latents.requires_grad
