"""Processes that Ray finds no place for are named, each once."""

from cluster.waiting import EVERY_S, LONG_S, Waiting

EDITING, CHECK = "MapWorker(MapBatches(EditVideos))", "MapWorker(MapBatches(CheckRows))"


def test_what_waits_for_long_is_named_once_and_what_found_a_place_is_not() -> None:
    waiting = {"a": EDITING, "b": EDITING, "c": CHECK}
    watch = Waiting(lambda: waiting, asked=0.0)
    notes = {}
    for tenth in range(1, 60):
        now = tenth * EVERY_S
        if found := watch.note(now):
            notes[now] = found[0]
        if tenth == 3:
            del waiting["c"]
        if tenth == 20:
            waiting["d"] = CHECK
    first, second = EVERY_S + LONG_S, 21 * EVERY_S + LONG_S
    assert notes.keys() == {first, second}
    assert notes[first].startswith("Ray has found no place for some processes in 120 s: 2 x Edit")
    assert "1 x CheckRows" in notes[second]
    assert "2 x" not in notes[second]


def test_ray_is_asked_now_and_then_and_a_head_that_does_not_answer_is_no_failure() -> None:
    asked: list[float] = []

    def ask() -> dict[str, str]:
        asked.append(1)
        raise ConnectionError("the head is busy")

    watch = Waiting(ask, asked=0.0)
    assert [watch.note(now) for now in range(int(3 * EVERY_S))] == [()] * int(3 * EVERY_S)
    assert len(asked) == 2
