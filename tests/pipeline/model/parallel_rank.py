"""What the ranks of `test_parallel.py` compute.

Run as `python -m tests.pipeline.parallel_rank FOLDER`, an empty one. Every rank of every group
leaves what it computed there; the answers of one process are there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.algorithm.inversion import invert
from pipeline.algorithm.masks import AutoMask, GivenMask
from pipeline.algorithm.schedule import Schedule
from pipeline.model.attention.choice import Shape, fastest
from pipeline.model.attention.kernels import Kernel, sdpa
from pipeline.model.group import OneRank, TokenGroup
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import ForwardCounter
from pipeline.model.transformer.compiled import CompiledBlocks
from pipeline.settings import Reconstruction, Speed
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.rank_processes import run_groups
from tests.small_models import FAMILIES, make_transformer, scheduler

GROUPS = [
    ((0, 1, 2), Degrees(ulysses=3)),
    ((0, 1, 2), Degrees(ring=3)),
    ((0, 1), Degrees(ulysses=2)),
    ((2, 3), Degrees(ring=2)),
    ((0, 1), Degrees(cfg=2)),
    ((0, 1, 2, 3), Degrees(ulysses=2, ring=2)),
    ((0, 1, 2, 3), Degrees(ulysses=2, cfg=2)),
]
SIZES = {
    # text tokens, and frames, height and width of the latents (1.5-5b: twice the frames)
    "divides": (12, (3, 8, 12)),  # 72 video tokens
    "does not divide": (7, (5, 10, 10)),  # 125
    "hardly any": (2, (1, 2, 10)),  # 5: some ranks hold no text at all
}
COMPILED = (Degrees(ulysses=2), Degrees(ring=2), Degrees(cfg=2))
"""Groups that predict with compiled blocks, too."""
CHANNELS, TEXT_DIM, STEPS = 16, 32, 2
AT_ONCE = (1, 2)
SKIP_SOME = {"divides": 0.357, "does not divide": 0.3808, "hardly any": 0.4}
"""Thresholds that some edits come below in the second step, and some do not."""


def main() -> None:
    folder = Path(sys.argv[1])

    def work(group: TokenGroup, degrees: Degrees) -> None:
        answers = compute(group) | gathered(group)
        if degrees in COMPILED:
            answers |= compiled(group)
        if degrees.ring > 1:
            answers["ring order"] = ring_order()
        torch.save(answers, answers_file(folder, degrees, group.rank))

    def alone() -> None:
        answers = compute(OneRank()) | compiled(OneRank())
        answers["xfuser imported"] = torch.tensor("xfuser" in sys.modules)
        torch.save(answers, folder / "alone.pt")

    run_groups(GROUPS, folder, work, alone)


def answers_file(folder: Path, degrees: Degrees, rank: int) -> Path:
    return folder / f"{degrees}, rank {rank}.pt"


def compute(group: TokenGroup) -> dict[str, Tensor]:
    """Invert and reconstruct with every family at every size."""
    answers: dict[str, Tensor] = {}
    for family in FAMILIES:
        for size in SIZES:
            for name, answer in _invert_and_reconstruct(family, size, group).items():
                answers[f"{family}, {size}, {name}"] = answer
    return answers


def _invert_and_reconstruct(family: str, size: str, group: TokenGroup) -> dict[str, Tensor]:
    text_tokens, (frames, height, width) = SIZES[size]
    frames *= 2 if family == "1.5-5b" else 1
    clean = noise(9, frames, CHANNELS, height, width)
    # Six heads, which Ulysses can split over 2 and over 3.
    transformer = make_transformer(
        family,
        num_attention_heads=6,
        max_text_seq_length=text_tokens,
        sample_frames=4 * (frames - 1) + 1,
        sample_height=height,
        sample_width=width,
    )
    schedule = schedule_from_config(scheduler(family), STEPS)
    model = NamedModel(transformer, {}, group=group)
    model.prompts = {
        prompt: noise(i, text_tokens, TEXT_DIM) for i, prompt in enumerate(["", "a", "b", "worse"])
    }
    trajectory = invert(model.velocity(), clean, schedule)
    answers = {"trajectory": trajectory}
    # Three edits make five branches, which are no two equal halves.
    edits = [Edit("a", "worse"), Edit("b", guidance_scale=5.0), Edit("a", guidance_scale=1.0)]
    for reference in ("shared", "empty"):
        settings = Reconstruction(
            start="inverted", reference=reference, residual=reference == "empty"
        )
        edited = edit_with(model, lambda level: trajectory[level], edits, schedule, settings)
        answers[f"edits, {reference} reference"] = edited.latents
    if family == "5b":
        answers |= _edits_with_a_step_cache(model, trajectory, edits, schedule, SKIP_SOME[size])
        answers |= _edits_with_masks(model, trajectory, edits, schedule)
    branches = [Branch(clean, "worse", "worse"), Branch(clean, "a", "a")]
    for prompt, velocity in model.predict(branches, 500, clean)[1].items():
        answers[f"own velocity, {prompt}"] = velocity
    branches = [Branch(x, "ab"[i % 2], ["", "a"][i % 2]) for i, x in enumerate(trajectory)]
    for at_once in AT_ONCE:
        model.max_branches = at_once
        velocities, own = model.predict(branches, 500, clean)
        answers[f"{at_once} at once"] = torch.stack([*velocities, *own.values()])
    answers["forwards"] = torch.tensor([model.forwards.plain, model.forwards.injected])
    return answers


def compiled(group: TokenGroup) -> dict[str, Tensor]:
    """What compiled blocks predict, and how many graphs that took."""
    from torch._dynamo.utils import counters

    transformer = make_transformer("5b", num_attention_heads=6, max_text_seq_length=7)
    model = NamedModel(transformer, {"": noise(0, 7, TEXT_DIM), "a": noise(1, 7, TEXT_DIM)})
    model.group = group
    model.compiled = CompiledBlocks(
        transformer.transformer_blocks, model._plan, group, True, "aot_eager"
    )
    counters.clear()
    clean = noise(9, 5, CHANNELS, 10, 10)
    with torch.no_grad():
        alone = model.predict([Branch(clean, "")], 500)[0]
        branches = [Branch(clean, "", ""), Branch(clean, "a", "")]
        both, own = model.predict(branches, 500, clean)
    return {
        "compiled blocks": torch.stack([*alone, *both, own[""]]),
        "graphs": torch.tensor(counters["stats"]["unique_graphs"]),
        "graph breaks": torch.tensor(len(counters["graph_break"])),
    }


def _edits_with_a_step_cache(
    model: NamedModel,
    trajectory: Tensor,
    edits: list[Edit],
    schedule: Schedule,
    threshold: float,
) -> dict[str, Tensor]:
    """Edits of which the second step skips some, and what was computed of them."""
    before, model.forwards = model.forwards, ForwardCounter()
    model.speed = Speed(step_cache=threshold, step_cache_steps=(0, 1))
    settings = Reconstruction(start="inverted", reference="shared", guidance_steps=(0, 1))
    edited = edit_with(model, lambda level: trajectory[level], edits, schedule, settings)
    spent, model.forwards, model.speed = model.forwards, before, Speed()
    counts = [spent.plain, spent.injected, spent.skipped]
    return {"edits, step cache": edited.latents, "step cache, forwards": torch.tensor(counts)}


def _edits_with_masks(
    model: NamedModel, trajectory: Tensor, edits: list[Edit], schedule: Schedule
) -> dict[str, Tensor]:
    """An edit with a given mask, one with a mask that is found, and one without; and the found."""
    kept = (noise(8, len(trajectory[0]), 1, *trajectory.shape[-2:]) > 0).float()
    found = AutoMask(frozenset({STEPS}))
    settings = Reconstruction(start="inverted")
    before, model.forwards = model.forwards, ForwardCounter()
    masks = [GivenMask(kept), found, None]
    edited = edit_with(
        model, lambda level: trajectory[level], edits, schedule, settings, masks=masks
    )
    model.forwards = before
    weights = found.weights()
    assert weights is not None
    return {"edits, masks": edited.latents, "mask that was found": weights}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gathered(group: TokenGroup) -> dict[str, Tensor]:
    """What a group gathers beside tokens: rank r gives r + 1 values, in every dtype."""
    counts = [rank + 1 for rank in range(group.ranks)]
    answers = {
        str(dtype): group.gather_values(noise(group.rank, counts[group.rank]).to(dtype), counts)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    }
    objects = group.gather_objects({"rank": group.rank})
    answers["objects"] = torch.tensor([value["rank"] for value in objects])
    answers["the kernel of the least sum"] = torch.tensor(_least_sum(group))
    try:
        group.exchange(7, 1)
        refused = False
    except ValueError:
        refused = True
    answers["one token refused"] = torch.tensor(refused)
    return answers


def _least_sum(group: TokenGroup) -> bool:
    """Whether this rank takes the kernel that is the fastest on all, though not on the first."""

    def steady(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        return sdpa(q, k, v)

    def seconds(kernel: Kernel, _: Shape) -> float:
        return 2.0 if kernel is steady else [1.0, 10.0][group.rank > 0]

    shape = Shape(2, 4, 8, 16, torch.float32, torch.device("cpu"))
    kernels = {"quick at first": sdpa, "steady": steady}
    return fastest(kernels, shape, "auto", group.gather_objects, seconds) is steady


def ring_order() -> Tensor:
    """Whose keys torch's ring attention hands over, step by step."""
    from torch.distributed import get_rank
    from torch.distributed.tensor.experimental._attention import _templated_ring_attention
    from yunchang.globals import PROCESS_GROUP

    seen: list[float] = []

    def record(query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        seen.append(key.flatten()[0].item())
        return query, query.sum(-1)

    own = torch.full((1, 1, 2, 4), float(get_rank(PROCESS_GROUP.RING_PG)))
    _templated_ring_attention(PROCESS_GROUP.RING_PG, 1, record, own, own, own)
    return torch.tensor(seen)


if __name__ == "__main__":
    main()
