"""What the nodes answered, judged and put into words: what stops the job, and what is worth saying.

What this package requires decides: a version that it does not support, and one that is missing,
stops the job. So does other code of the package itself: the driver and the ranks would not
understand each other. Two versions of another package that are both supported do work, but edits
that one node makes may differ a little from those of another: that is a warning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

OTHER_EDITS = "edits made there may differ a little; install the same on all nodes"
COMPARED: Mapping[str, str] = {
    **dict.fromkeys(("torch", "diffusers", "transformers", "xfuser", "av"), OTHER_EDITS),
    "pyarrow": "rows that travel between them may be refused; install the same on all nodes",
}
"""Packages of which another version that is supported is a warning, with what may come of it."""
NODES_NAMED = 6
LINES = 20


@dataclass(frozen=True)
class AskedNode:
    """A node that may get actors of the job.

    Args:
        id: Ray's.
        host, address: its name and its IP address.
        gpus: as Ray counts them.
    """

    id: str
    host: str
    address: str
    gpus: int = 0


@dataclass(frozen=True)
class Answer:
    """What a node answered.

    Args:
        installed: as `node.installed` gives it; None where not even that came.
        problems: what each check that ended has found; None where all is well.
        ending: how the process on the node ended, where it did before all checks had.
    """

    installed: Mapping[str, Any] | None = None
    problems: Mapping[str, str | None] = field(default_factory=dict)
    ending: str = ""


@dataclass(frozen=True)
class Here:
    """The driver's side of the comparison.

    Args:
        installed: as `node.installed` gives it.
        requires: the versions that this package supports, by package, as `>=2.6`; "" for any.
        subjects: what the message names, by check: `output s3://bucket/made`.
    """

    installed: Mapping[str, Any]
    requires: Mapping[str, str]
    subjects: Mapping[str, str]


def read_answer(printed: str, ending: str) -> Answer:
    """The answer in what the process on the node has printed, beside what libraries print."""
    found: Mapping[str, Any] | None = None
    problems: dict[str, str | None] = {}
    for line in printed.splitlines():
        if not line.startswith('{"check": '):
            continue
        with suppress(ValueError):  # a line that was cut off
            values = json.loads(line)
            if values["check"] == "package":
                found = values["found"]
            else:
                problems.setdefault(values["check"], values["problem"])
    return Answer(found, problems, ending or ("" if found else "it printed no answer"))


def problems_of(answer: Answer, here: Here, asked: Iterable[str]) -> list[str]:
    """What stops the job on a node.

    Args:
        asked: the checks that the node was asked for.
    """
    if answer.installed is None:
        return [answer.ending]
    found = [*_package_problems(answer.installed, here), *_missing(answer.installed, here)]
    for check, problem in answer.problems.items():
        if problem is not None:
            found.append(f"{here.subjects[check]}: {problem}")
    if answer.ending:
        unanswered = [check for check in asked if check not in answer.problems]
        about = ", ".join(here.subjects[check] for check in unanswered)
        found.append(f"{answer.ending}{f', before it had checked {about}' if about else ''}")
    return found


def warnings_of(answer: Answer, here: Here) -> list[str]:
    """What may go otherwise on a node than on the others."""
    if answer.installed is None:
        return []
    mine, theirs = here.installed["packages"], answer.installed["packages"]
    differing: dict[str, list[str]] = {}
    for name, may_come in COMPARED.items():
        one, other = mine.get(name), theirs.get(name)
        if one and other and _public(one) != _public(other):
            text = f"{name} {_public(other)} ({_public(one)} on this machine)"
            differing.setdefault(may_come, []).append(text)
    return [f"{', '.join(packages)}: {may_come}" for may_come, packages in differing.items()]


def _package_problems(there: Mapping[str, Any], here: Here) -> list[str]:
    """What is wrong with this package on a node."""
    mine = here.installed
    install = f"Install retake {mine['version']} there"
    if there["version"] is None:
        return [
            f"the package retake cannot be imported there ({there['place']}): {there['error']}. "
            f"{install}, or send the job with `retake submit`, which takes it along"
        ]
    if there["version"] != mine["version"]:
        return [
            f"retake {there['version']} is installed there, in {there['place']}; this machine has "
            f"{mine['version']}. {install}, or the node's version here"
        ]
    if there["code"] != mine["code"]:
        return [
            f"retake {there['version']} in {there['place']} there has other code than the one in "
            f"{mine['place']} on this machine. Install the same one in both places"
        ]
    return []


def _missing(there: Mapping[str, Any], here: Here) -> list[str]:
    """Packages that a node lacks, or has in a version that this package does not support."""
    if there["version"] is None:
        return []  # whoever installs this package there gets them too
    absent: list[str] = []
    other: dict[str, str] = {}
    for name, mine in here.installed["packages"].items():
        theirs, required = there["packages"].get(name), here.requires.get(name, "")
        if mine and not theirs:
            absent.append(f"{name}{required or f'=={mine}'}")
        elif theirs and theirs != mine and _refused(theirs, required):
            other[f"{name}{required}"] = f"{name} {theirs} (expected {required})"
        elif name == "ray" and mine and theirs and mine != theirs:
            other[f"ray=={mine}"] = f"ray {theirs} (expected {mine}, as on this machine)"
    found = []
    if absent:
        found.append(f"packages are missing there: {_pip_install(absent)}")
    if other:
        found.append(
            f"there are versions that retake does not work with: {', '.join(other.values())}: "
            f"{_pip_install(other)}"
        )
    return found


def _pip_install(packages: Iterable[str]) -> str:
    quoted = " ".join(f"'{one}'" if set(one) & set("<>*,") else one for one in packages)
    return f"`pip install {quoted}`"


def _public(version: str) -> str:
    """A version without the name of its build: GPU nodes have another build of torch."""
    return version.partition("+")[0]


def _refused(version: str, required: str) -> bool:
    """Whether a version is none of those that are required."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return Version(_public(version)) not in SpecifierSet(required, prereleases=True)
    except InvalidVersion:  # someone's own build
        return False


def message(found: Mapping[AskedNode, Sequence[str]], nodes: int) -> str:
    """One message of all that stops a job.

    Args:
        found: the problems of each node that has any.
        nodes: how many were asked.
    """
    lines = grouped(found)
    of_all = "the only node" if nodes == 1 else f"{len(found)} of {nodes} nodes"
    more = [f"  and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return "\n".join(
        [f"the job cannot run on {of_all} of the cluster; nothing was started:"]
        + [f"  {line}" for line in lines[:LINES]]
        + more
    )


def grouped(found: Mapping[AskedNode, Sequence[str]]) -> list[str]:
    """A line for each text, after the names of the nodes that it is true of."""
    names = names_of(found)
    having: dict[str, list[str]] = {}
    for node, texts in found.items():
        for text in texts:
            having.setdefault(text, []).append(names[node])
    return [f"{listed(nodes)}: {text}" for text, nodes in having.items()]


def names_of(nodes: Iterable[AskedNode]) -> dict[AskedNode, str]:
    """Host and address of each; with Ray's id where several nodes share them."""
    nodes = list(nodes)
    shared = Counter((node.host, node.address) for node in nodes)
    return {
        node: f"{node.host} ({node.address})"
        if shared[node.host, node.address] == 1
        else f"{node.host} ({node.address}, node {node.id[:8]})"
        for node in nodes
    }


def listed(names: Sequence[str]) -> str:
    """Names in a row; of very many the first ones."""
    more = len(names) - NODES_NAMED
    return ", ".join(names[:NODES_NAMED]) + (f" and {more} more nodes" if more > 0 else "")
