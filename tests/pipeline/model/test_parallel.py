from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.model.group import OneRank
from pipeline.model.parallel.degrees import Degrees
from pipeline.model.parallel.group import real_places, split_evenly, start
from pipeline.model.transformer.batch import split_branches
from tests.pipeline.model.parallel_rank import AT_ONCE, COMPILED, GROUPS, SIZES, answers_file, noise
from tests.small_models import FAMILIES

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 240
ALL_DEGREES = [degrees for _, degrees in GROUPS]
RINGS = [degrees for degrees in ALL_DEGREES if degrees.ring > 1]

Answers = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What every rank of every group computed; the processes are gone when it is there."""
    folder = tmp_path_factory.mktemp("ranks")
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.model.parallel_rank", folder],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = program.communicate(timeout=DEADLINE_S)
        assert program.returncode == 0, output
        yield folder
    finally:
        end_session(program)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Answers:
    answers: Answers = torch.load(folder / "alone.pt")
    return answers


@pytest.mark.distributed
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_a_group_computes_what_one_rank_computes(
    folder: Path, alone: Answers, degrees: Degrees, family: str, size: str
) -> None:
    names = [name for name in alone if name.startswith(f"{family}, {size}, ")]
    assert len(names) == 8 + 4 * (family == "5b")  # with a step cache and with masks, too
    for answers in ranks_of(folder, degrees):
        for name in names:
            largest = alone[name].abs().max()
            assert (answers[name] - alone[name]).abs().max() <= 1e-5 * largest, name


@pytest.mark.distributed
@pytest.mark.parametrize("at_once", AT_ONCE)
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_a_group_that_takes_a_batch_in_parts_predicts_what_one_rank_predicts(
    folder: Path, alone: Answers, degrees: Degrees, at_once: int
) -> None:
    names = [name for name in alone if name.endswith(f", {at_once} at once")]
    assert len(names) == len(FAMILIES) * len(SIZES)
    for answers in ranks_of(folder, degrees):
        for name in names:
            largest = alone[name].abs().max()
            assert (answers[name] - alone[name]).abs().max() <= 2e-6 * largest, name


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_every_rank_of_a_group_has_the_same_latents_bit_for_bit(
    folder: Path, alone: Answers, degrees: Degrees
) -> None:
    first, *others = ranks_of(folder, degrees)
    for answers in others:
        for name in alone:
            if name in first:
                assert torch.equal(answers[name], first[name]), name


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_a_group_counts_the_forwards_of_one_rank(
    folder: Path, alone: Answers, degrees: Degrees
) -> None:
    for answers in ranks_of(folder, degrees):
        for name in (name for name in alone if name.endswith("forwards")):
            assert answers[name].tolist() == alone[name].tolist()


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", COMPILED, ids=str)
def test_a_group_with_compiled_blocks_predicts_what_one_rank_predicts(
    folder: Path, alone: Answers, degrees: Degrees
) -> None:
    expected = alone["compiled blocks"]
    for answers in ranks_of(folder, degrees):
        difference = (answers["compiled blocks"] - expected).abs().max()
        assert difference <= 2e-6 * expected.abs().max()
        # One branch at once, and where a rank has two edit branches, two at once.
        assert answers["graphs"] == (2 if degrees.cfg == 2 else 4)
        assert answers["graph breaks"] == 0


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_the_ranks_of_a_group_skip_what_one_rank_skips(
    folder: Path, alone: Answers, degrees: Degrees
) -> None:
    names = [name for name in alone if name.endswith("step cache, forwards")]
    assert len(names) == len(SIZES)
    for answers in ranks_of(folder, degrees):
        for name in names:
            skipped = answers[name][2]
            assert answers[name].tolist() == alone[name].tolist()
            assert 0 < skipped < 5 + 4, "some of five branches and their four references"


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", RINGS, ids=str)
def test_ring_hands_over_the_keys_of_the_ranks_before_one_after_the_other(
    folder: Path, degrees: Degrees
) -> None:
    for rank, answers in enumerate(ranks_of(folder, degrees)):
        own = rank // degrees.ulysses
        expected = [(own - step) % degrees.ring for step in range(degrees.ring)]
        assert answers["ring order"].tolist() == expected


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_uneven_values_are_gathered_in_order_and_bit_for_bit(
    folder: Path, degrees: Degrees, dtype: torch.dtype
) -> None:
    gathered = ranks_of(folder, degrees)
    expected = torch.cat([noise(rank, rank + 1) for rank in range(len(gathered))]).to(dtype)
    for answers in gathered:
        assert answers[str(dtype)].dtype == dtype
        assert torch.equal(answers[str(dtype)], expected)


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_objects_are_gathered_in_the_order_of_the_ranks(folder: Path, degrees: Degrees) -> None:
    for answers in ranks_of(folder, degrees):
        assert answers["objects"].tolist() == list(range(degrees.ranks))


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_all_ranks_take_the_kernel_with_the_least_sum_of_times(
    folder: Path, degrees: Degrees
) -> None:
    for answers in ranks_of(folder, degrees):
        assert answers["the kernel of the least sum"].item()


@pytest.mark.distributed
@pytest.mark.parametrize("degrees", ALL_DEGREES, ids=str)
def test_fewer_tokens_than_ranks_are_refused(folder: Path, degrees: Degrees) -> None:
    for answers in ranks_of(folder, degrees):
        assert answers["one token refused"].item() == (degrees.token_ranks > 1)


@pytest.mark.distributed
def test_one_rank_imports_no_xfuser(alone: Answers) -> None:
    assert not alone["xfuser imported"].item()


def test_one_rank_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(start(), OneRank)


def test_degrees_that_are_not_the_started_ranks_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"ulysses 3 x ring 1 x cfg 1 makes 3 ranks.*is 4"):
        start(ulysses=3)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_no_rank_holds_two_tokens_more_than_another(ranks: int) -> None:
    for count in range(100):
        shares = split_evenly(count, ranks)
        assert sum(shares) == count
        assert len(shares) == ranks
        assert shares == sorted(shares, reverse=True)
        assert shares[0] - shares[-1] <= 1


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 2), (2, 1), (2, 2), (3, 1), (1, 5), (2, 3)])
def test_real_places_are_those_of_all_tokens_and_of_no_padding(ulysses: int, ring: int) -> None:
    degrees = Degrees(ulysses, ring)
    for text_tokens in range(1, 14):
        for video_tokens in range(degrees.token_ranks, 40):
            seen: list[int] = []
            for chunk in range(ring):
                sequence = exchanged(text_tokens, video_tokens, degrees, chunk)
                places = real_places(text_tokens, video_tokens, degrees, chunk)
                assert (places is None) == (0 not in sequence)
                seen += sequence if places is None else [sequence[place] for place in places]
            assert sorted(seen) == list(range(1, text_tokens + video_tokens + 1))


def test_an_edits_negative_branch_goes_to_the_first_cfg_rank_and_its_positive_to_the_next() -> None:
    branches = [Branch(torch.zeros(1), prompt) for prompt in ("worse", "a")]
    assert [[branch.prompt for branch in share] for share in split_branches(branches, 2)] == [
        ["worse"],
        ["a"],
    ]


def test_one_branch_is_computed_by_both_cfg_ranks() -> None:
    branches = [Branch(torch.zeros(1), "")]
    assert split_branches(branches, 2) == [branches]


@functools.cache
def ranks_of(folder: Path, degrees: Degrees) -> list[Answers]:
    return [torch.load(answers_file(folder, degrees, rank)) for rank in range(degrees.ranks)]


def exchanged(text_tokens: int, video_tokens: int, degrees: Degrees, chunk: int) -> list[int]:
    """A ring rank's sequence after the Ulysses exchange: tokens numbered from 1, padding 0."""
    sequence: list[int] = []
    for rank in range(chunk * degrees.ulysses, (chunk + 1) * degrees.ulysses):
        for first, count in ((1, text_tokens), (text_tokens + 1, video_tokens)):
            shares = split_evenly(count, degrees.token_ranks)
            start = first + sum(shares[:rank])
            own = list(range(start, start + shares[rank]))
            sequence += own + [0] * (shares[0] - shares[rank])
    return sequence


def end_session(program: subprocess.Popen[str]) -> None:
    try:
        os.killpg(program.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    program.wait()
