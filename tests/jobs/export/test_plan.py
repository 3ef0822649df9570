"""The plan of an export: every pair once, shards as large as was asked for, sides by source."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jobs.export.plan import key_of, place_of, plan_shards, split_of

SIZES = st.lists(st.integers(0, 50), max_size=60)


@given(SIZES, st.integers(0, 60), st.integers(1, 120), st.integers(1, 10))
def test_each_pair_is_in_one_shard_of_its_split_and_no_shard_is_too_large(
    sizes: list[int], train: int, most_bytes: int, most_pairs: int
) -> None:
    splits = ["train"] * min(train, len(sizes))
    splits += ["validation"] * (len(sizes) - len(splits))
    shards = plan_shards(sizes, splits, most_bytes, most_pairs)
    places = [place for one in shards for place in range(one.start, one.stop)]
    assert places == list(range(len(sizes)))
    for one in shards:
        assert {one.split} == set(splits[one.start : one.stop])
        assert one.bytes == sum(sizes[one.start : one.stop])
        assert one.stop - one.start <= most_pairs
        assert one.bytes <= most_bytes or one.stop - one.start == 1
    for one, following in pairwise(shards):
        fuller = one.bytes + sizes[following.start]
        assert (
            one.split != following.split
            or fuller > most_bytes
            or one.stop - one.start == most_pairs
        ), "a shard is closed only when it is full"


@given(SIZES, st.integers(1, 120), st.data())
def test_what_is_left_after_some_shards_is_planned_as_before(
    sizes: list[int], most_bytes: int, data: st.DataObject
) -> None:
    splits = ["train"] * len(sizes)
    whole = plan_shards(sizes, splits, most_bytes)
    done = data.draw(st.integers(0, len(whole)))
    start = whole[done].start if done < len(whole) else len(sizes)
    rest = plan_shards(sizes[start:], splits[start:], most_bytes)
    assert [(one.start + start, one.stop + start) for one in rest] == [
        (one.start, one.stop) for one in whole[done:]
    ]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True), st.floats(0, 1))
def test_a_larger_part_for_validation_takes_nothing_out_of_it(
    sources: list[str], part: float
) -> None:
    before = {s for s in sources if split_of(place_of(s), part / 2) == "validation"}
    after = {s for s in sources if split_of(place_of(s), part) == "validation"}
    assert before <= after


def test_the_part_of_sources_for_validation_is_the_one_that_was_asked_for() -> None:
    sides = [split_of(place_of(f"/clips/{n}.mp4"), 0.05) for n in range(20_000)]
    assert 0.045 < sides.count("validation") / len(sides) < 0.055
    assert {split_of(place_of("a"), 0.0), split_of(place_of("a"), 1.0)} == {"train", "validation"}


def test_a_source_has_one_place_however_it_is_spelled() -> None:
    assert place_of("/clips/a.mp4") == place_of("/clips/./x/../a.mp4")
    assert place_of("/clips/a.mp4") != place_of("/clips/b.mp4")


@given(st.lists(st.tuples(st.text(), st.text()), max_size=40, unique=True))
def test_keys_are_safe_short_and_of_one_pair(ids: list[tuple[str, str]]) -> None:
    keys = [key_of(video, edit) for video, edit in ids]
    assert len(set(keys)) == len(ids)
    for key in keys:
        assert len(key) <= 78
        assert all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
        assert key[0].isalnum()


def test_keys_stay_as_they_are() -> None:
    assert key_of("clip.1", "red ring") == "clip_1-red_ring-" + key_of("clip.1", "red ring")[-12:]
    assert key_of("clip.1", "red ring") != key_of("clip_1", "red ring")
    assert key_of("a", "b") == "a-b-e25cdb81e3f1"
