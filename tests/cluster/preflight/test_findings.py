"""What the nodes answered, as what stops a job, what it warns of, and one message."""

import json
from typing import Any

import pytest

from cluster.preflight.findings import (
    Answer,
    AskedNode,
    Here,
    grouped,
    message,
    problems_of,
    read_answer,
    warnings_of,
)

PACKAGES = {"ray": "2.60.0", "torch": "2.13.0+cpu", "av": "18.1.0", "pyarrow": "21.0.0"}
MINE = {"version": "0.1.0", "code": "c0de", "place": "/here", "packages": PACKAGES}
SUBJECTS = {"output": "output /made", "decoding": "video decoding"}
HERE = Here(MINE, {"torch": ">=2.6", "av": ">=18", "ray": ">=2.55"}, SUBJECTS)


def there(packages: dict[str, str | None] | None = None, **values: Any) -> Answer:
    """The answer of a node that differs from this machine in what is given."""
    return Answer(MINE | {"place": "/there"} | values | {"packages": PACKAGES | (packages or {})})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (there(), None),
        (there({"torch": "2.13.0+cu130"}), None),
        (there({"torch": "2.9.1", "pyarrow": "17.0.0"}), None),
        (there(version="0.0.9", code="other"), "retake 0.0.9 is installed there, in /there"),
        (there(code="other"), "retake 0.1.0 in /there there has other code than the one in /here"),
        (
            there(version=None, code="", error="ModuleNotFoundError: No module named 'pipeline'"),
            "cannot be imported there (/there): ModuleNotFoundError: No module named 'pipeline'. "
            "Install retake 0.1.0 there",
        ),
        (there({"av": None}), "packages are missing there: `pip install 'av>=18'`"),
        (there({"pyarrow": None}), "packages are missing there: `pip install pyarrow==21.0.0`"),
        (
            there({"torch": "2.4.1+cu121"}),
            "torch 2.4.1+cu121 (expected >=2.6): `pip install 'torch>=2.6'`",
        ),
        (there({"ray": "2.59.0"}), "2.60.0, as on this machine): `pip install ray==2.60.0`"),
        (there({"torch": "a build of ours"}), None),
    ],
)
def test_a_version_stops_the_job_where_the_two_would_not_work_together(
    answer: Answer, expected: str | None
) -> None:
    found = problems_of(answer, HERE, SUBJECTS)
    assert len(found) == (expected is not None)
    assert all(str(expected) in one for one in found)


def test_a_node_without_the_package_is_not_asked_for_each_of_its_dependencies() -> None:
    nothing = dict.fromkeys(PACKAGES)
    (found,) = problems_of(there(nothing, version=None, error="none"), HERE, SUBJECTS)
    assert "pip install" not in found


def test_another_supported_version_is_a_warning_with_what_may_come_of_it() -> None:
    answer = there({"torch": "2.9.1+cu130", "av": "19.0.0", "pyarrow": "17.0.0"})
    assert warnings_of(answer, HERE) == [
        "torch 2.9.1 (2.13.0 on this machine), av 19.0.0 (18.1.0 on this machine): edits made "
        "there may differ a little; install the same on all nodes",
        "pyarrow 17.0.0 (21.0.0 on this machine): rows that travel between them may be refused; "
        "install the same on all nodes",
    ]
    assert warnings_of(there({"torch": "2.13.0+cu130"}), HERE) == []
    assert warnings_of(Answer(ending="no answer"), HERE) == []


def test_an_answer_is_read_from_between_what_libraries_print() -> None:
    lines = [
        "a library greets",
        json.dumps({"check": "package", "found": MINE}),
        '{"not": "ours"}',
        json.dumps({"check": "output", "problem": "its check gave no answer in 60 s"}),
        json.dumps({"check": "output", "problem": None}),  # it came after all, too late
        '{"check": "decoding", "prob',
    ]
    answer = read_answer("\n".join(lines), "the check ended with exit status -11")
    assert answer.installed == MINE
    assert answer.problems == {"output": "its check gave no answer in 60 s"}
    assert problems_of(answer, HERE, SUBJECTS) == [
        "output /made: its check gave no answer in 60 s",
        "the check ended with exit status -11, before it had checked video decoding",
    ]


@pytest.mark.parametrize(
    ("printed", "ending", "expected"),
    [("", "no answer in 70 s", "no answer in 70 s"), ("", "", "it printed no answer")],
)
def test_a_node_that_says_nothing_has_a_line_too(printed: str, ending: str, expected: str) -> None:
    assert problems_of(read_answer(printed, ending), HERE, SUBJECTS) == [expected]


def a_node(number: int, host: str = "", gpus: int = 0) -> AskedNode:
    return AskedNode(f"{number:040x}"[::-1], host or f"worker-{number}", f"10.0.0.{number}", gpus)


def test_nodes_with_the_same_problem_stand_in_one_line() -> None:
    one, two, three = a_node(1), a_node(2), a_node(3)
    found = {one: ["no wheel"], two: ["not shared"], three: ["no wheel", "too old"]}
    assert message(found, 5) == (
        "the job cannot run on 3 of 5 nodes of the cluster; nothing was started:\n"
        "  worker-1 (10.0.0.1), worker-3 (10.0.0.3): no wheel\n"
        "  worker-2 (10.0.0.2): not shared\n"
        "  worker-3 (10.0.0.3): too old"
    )
    assert message({one: ["no wheel"]}, 1).startswith("the job cannot run on the only node of")


def test_nodes_that_share_a_machine_are_told_apart_by_their_ids() -> None:
    nodes = [AskedNode("a" * 56, "host", "10.0.0.1"), AskedNode("b" * 56, "host", "10.0.0.1")]
    assert grouped({node: ["x"] for node in nodes}) == [
        "host (10.0.0.1, node aaaaaaaa), host (10.0.0.1, node bbbbbbbb): x"
    ]


def test_the_message_of_a_large_cluster_stays_short() -> None:
    nodes = [a_node(number) for number in range(100)]
    same = message({node: ["not shared"] for node in nodes}, 100)
    assert same.endswith("worker-5 (10.0.0.5) and 94 more nodes: not shared")
    each = message({node: [f"its own {node.host}"] for node in nodes}, 100)
    assert each.count("\n") == 21
    assert each.endswith("and 80 more")
