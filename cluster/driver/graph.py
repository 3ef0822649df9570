"""The graph of a wave in Ray Data.

    encode prompts -> invert, reconstruct -> results               (shared)
    encode prompts -> invert -> fan out -> reconstruct -> results   (split)

Before the groups blocks hold one row, so that a finished video goes on at once and every actor of a
pool gets work.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray.data  # isort: skip
from ray.util.annotations import RayDeprecationWarning  # isort: skip

from cluster.accept import rules_of
from cluster.candidates.choice import Ranking
from cluster.job import Job
from cluster.layout.choice import Pool
from cluster.layout.placement import Placement
from cluster.layout.work import Amount
from cluster.stages import first_prompts
from cluster.stages.edit import EditVideos, ReconstructEdits
from cluster.stages.group import GroupStage, Report
from cluster.stages.invert import FanOut, InvertVideos
from cluster.stages.prompts import EncodePrompts
from cluster.stages.score import ScoreEdits
from pipeline.quality.judge.judge import MOST_ASKED

SLOT = {"num_cpus": 0.1}
"""What a stage without ranks takes: next to nothing."""
GROUP_STAGES: Mapping[str, type[GroupStage]] = {
    stage.name: stage for stage in (EncodePrompts, InvertVideos, ReconstructEdits, EditVideos)
}
ROWS_PER_PROMPT_BLOCK = 32
"""A block of many rows would hold the first video up until all of its prompts are encoded."""
ROWS_PER_SCORING_BLOCK = 4
"""What is lost with an actor that dies; scores are stored as blocks come."""
ROWS_OF_A_GROUP = 2
"""A group's owner takes so many at a time: while the accelerator works for one, the other is read,
or its edits are encoded, measured and written. See `rows_at_once`."""


def graph(
    job: Job,
    work: pa.Table,
    placement: Placement,
    report: Report,
    ready: first_prompts.Prepared | None = None,
    amount: Amount | None = None,
) -> ray.data.Dataset:
    """The lazy dataset of a wave's result rows.

    Args:
        work: the rows of the wave.
        ready: what is known of the first prompts, where that was looked at.
        amount: what is pending, where that is known.
    """
    ready = ready or first_prompts.Prepared()
    rows = ray.data.from_arrow(work)
    rows = rows.repartition(target_num_rows_per_block=ROWS_PER_PROMPT_BLOCK)
    for pool in placement.pools:
        at_once = rows_at_once(job, pool, amount)
        rows = _group_stage(rows, job, report, placement, pool, ready, at_once)
        if pool.stage == InvertVideos.name:
            rows = _stage(rows, FanOut, (job,))
        if pool is not placement.pools[-1]:
            rows = rows.repartition(target_num_rows_per_block=1)
    return rows


def scoring_graph(job: Job, rows: pa.Table, placement: Placement) -> ray.data.Dataset:
    """The lazy dataset of stored edits with their scores: an execution of its own.

    Args:
        rows: of the results.
    """
    # Blocks are given as they are: to split some would take a CPU that groups may hold.
    size = rows_per_scoring_block(job)
    blocks = [rows.slice(first, size) for first in range(0, rows.num_rows, size)]
    scorers = placement.scorers
    return _stage(
        ray.data.from_arrow(blocks),
        ScoreEdits,
        (
            job.editing.output,
            job.score,
            rules_of(job),
            scorers.device,
            placement.threads if placement.device == "gpu" else 1,
            None,
            Ranking.of(job),
        ),
        groups=max(1, min(scorers.actors, len(blocks))),
        batch_size=None,
        options=placement.scorer_options(),
    )


def rows_per_scoring_block(job: Job) -> int:
    """One where a row takes long: each of its candidates is measured, or a judge is asked."""
    slow = job.score.judge or job.editing.reconstruction.candidates
    return 1 if slow else ROWS_PER_SCORING_BLOCK


def longest_block_s(job: Job) -> float:
    """Seconds that a judge may take for a block by its deadline; 0 without one."""
    pairs = rows_per_scoring_block(job) * job.editing.reconstruction.tries
    return pairs * MOST_ASKED * job.score.judge_deadline_s if job.score.judge else 0.0


def rows_at_once(job: Job, pool: Pool, amount: Amount | None) -> int:
    """Rows that each group of a pool takes at a time.

    Ray Data gives rows to the groups that are ready. Where there are no more rows than groups, the
    first ones to load would take two each, and the last ones none.
    """
    if pool.stage == EncodePrompts.name:
        return 1
    if amount is None:
        return ROWS_OF_A_GROUP
    split = pool.stage == ReconstructEdits.name
    rows = amount.units(job.editing) if split else amount.videos
    return ROWS_OF_A_GROUP if rows > pool.groups else 1


def _group_stage(
    rows: ray.data.Dataset,
    job: Job,
    report: Report,
    placement: Placement,
    pool: Pool,
    ready: first_prompts.Prepared,
    at_once: int,
) -> ray.data.Dataset:
    """A stage with ranks."""
    stage, options = GROUP_STAGES[pool.stage], placement.options(pool)
    device = "gpu" if placement.on_gpus(pool) else "cpu"
    arguments: tuple[Any, ...] = (job, report, pool.shape, device, placement.threads)
    if stage is EncodePrompts:
        job = first_prompts.encoding(job, placement)
        # Several groups share the prompts out as their rows come: perhaps not all have one.
        arguments = (job, *arguments[1:], ready.missing and pool.groups == 1)
        options |= {"memory": ready.memory} if ready.memory else {}
    return _stage(
        rows,
        stage,
        arguments,
        groups=pool.groups,
        at_once=at_once,
        in_flight=2 if stage is EncodePrompts else at_once,
        # Ray Data wants a number where there are GPUs; the blocks are as large.
        batch_size=ROWS_PER_PROMPT_BLOCK if stage is EncodePrompts else 1,
        options=options,
    )


def _stage(
    rows: ray.data.Dataset,
    stage: type,
    arguments: tuple[Any, ...],
    *,
    groups: int = 1,
    at_once: int = 1,
    in_flight: int = 2,
    batch_size: int | None = 1,
    options: Mapping[str, Any] = SLOT,
) -> ray.data.Dataset:
    # With more in flight, rows would wait with a busy actor while another has none.
    actors = ray.data.ActorPoolStrategy(
        size=groups,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=at_once if at_once > 1 else None,
        enable_true_multi_threading=at_once > 1,
    )
    with warnings.catch_warnings():
        # Ray 2.60 has no named parameter for how often a task is tried again, and no setting of
        # its context: what is not said is -1, without end. 2.64 will take none that has no name,
        # so pyproject.toml asks for an earlier one.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return rows.map_batches(
            stage,
            fn_constructor_args=arguments,
            batch_size=batch_size,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=actors,
            # An actor that died is started again, but what it was at is not done again by Ray,
            # which would do so without end, and wait where the actor has no place: the next wave
            # has it.
            max_task_retries=0,
            **options,
        )
