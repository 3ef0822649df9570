"""What the driver knows of lost blocks, and when waves bring nothing."""

import gc
import logging
import weakref
from pathlib import Path

from cluster.driver.lost import FUTILE_WAVES, LOGGER, Futile, lost_blocks
from cluster.output.attempts import Attempts
from pipeline.errors import ErrorCode
from pipeline.storage import Folder


class Actor:
    """It lives as long as somebody can reach it."""


def fails(actor: Actor) -> None:
    raise ValueError("gone")


def test_a_lost_block_is_counted_with_its_reason_and_holds_no_actor() -> None:
    actor = Actor()
    there = weakref.ref(actor)
    with lost_blocks() as lost:
        try:
            fails(actor)
        except ValueError:
            logging.getLogger(LOGGER).exception("a block")
        del actor
        gc.collect()
        assert (lost.count, lost.why) == (1, "ValueError: gone")
        assert there() is None


def test_waves_that_bring_nothing_are_too_many_in_the_end(tmp_path: Path) -> None:
    futile = Futile(Attempts(Folder(str(tmp_path)), "r1"))
    waves = [*[False] * (FUTILE_WAVES - 1), True, *[False] * FUTILE_WAVES]
    assert [futile.one_too_many(one) for one in waves] == [*[False] * (len(waves) - 1), True]


def test_a_wave_in_which_a_try_counts_is_not_for_nothing(tmp_path: Path) -> None:
    attempts = Attempts(Folder(str(tmp_path)), "r1")
    earlier = Attempts(Folder(str(tmp_path)), "r0").of("row")
    earlier.begin()
    earlier.failed(ErrorCode.RANK_DIED, "died", charged=True)
    futile = Futile(attempts)
    for wave in range(FUTILE_WAVES + 3):
        attempts.of("row").begin()  # and its owner ends
        assert not futile.one_too_many(False), wave
    left = [futile.one_too_many(False) for _ in range(FUTILE_WAVES)]
    assert left == [*[False] * (FUTILE_WAVES - 1), True]
