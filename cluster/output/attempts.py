"""What is known of a request's tries, stored outside of the process that makes them.

A request that kills its group's owner, or the whole node, takes every count with it that lives
there. So a record is stored before a group is asked, and removed after any orderly end; one that is
left tells of a try that nobody saw the end of.

    attempts/<request>/<run>-<id>.beside      asked, perhaps beside another request
    attempts/<request>/<run>-<id>.alone       asked beside no other: what it kills is its own doing
    attempts/<request>/<run>-<id>.suspect     left by an earlier run; it may have been another's
    attempts/<request>/<run>-<id>.charged     a try that failed, with its ending

Each request has a folder, which only the one that works on it writes to. No failure of storage gets
out of here: a request is worked on without its record then.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.errors import ErrorCode
from pipeline.records import from_dict
from pipeline.redaction import log_error, redacted
from pipeline.storage import Folder

ATTEMPTS = "attempts"
State = Literal["beside", "alone", "suspect", "charged"]
NOT_SEEN = (
    "the process that owns its rank group, or its node, ended while it was worked on, as where the "
    "memory of the node is full"
)
"""The ending of a try whose end nobody saw."""
AFTER = "best with a smaller clip or more memory for the node, where that was the reason"
LINE = 300
"""Characters of a try's ending in a list of them."""


@dataclass(frozen=True)
class Try:
    """One time that a group was asked.

    Args:
        run: the run that asked.
        node: where.
        at: when; UTC, ISO 8601.
        code, ending: how it failed, once that is known; secrets are taken out of the text.
        what: for people who look at the file.
    """

    run: str
    node: str = ""
    at: str = ""
    code: ErrorCode = ErrorCode.RANK_DIED
    ending: str = NOT_SEEN
    what: str = ""

    def __post_init__(self) -> None:
        for name in ("ending", "what"):  # an ending may be what a library said of a location
            object.__setattr__(self, name, redacted(getattr(self, name)))

    def line(self) -> str:
        first = next(iter(self.ending.splitlines()), "")[:LINE]
        return f"{self.at}, run {self.run}, node {self.node}: {first}"


class Attempts:
    """The records of one run.

    Args:
        output: the output folder.
        run: its name.
    """

    def __init__(self, output: Folder, run: str) -> None:
        self.output, self.run = output, run

    def of(self, request: str, what: str = "") -> History:
        """What is known of a request.

        Args:
            request: what `digest` gives.
            what: for people who look at the records.
        """
        history = History(self.output, self.run, f"{ATTEMPTS}/{request}", what)
        with _unharmed():
            history.read()
        return history

    def alone(self) -> int:
        """How many tries that went alone are on record, with a known end or without."""
        names: Sequence[str] = ()
        with _unharmed():
            names = self.output.list(ATTEMPTS)
        ours = [name for name in names if _run(name) == self.run]
        return len({_id(name) for name in ours if _state(name) in ("alone", "charged")})


@dataclass
class History:
    """What is known of the tries of one request.

    Attributes:
        charged: the tries that failed, and were its own doing.
        suspect: a try of it was left: it may bring down all that is beside it.
        alone: the next try goes beside no other request.
    """

    output: Folder
    run: str
    folder: str
    what: str = ""
    charged: list[Try] = field(default_factory=list)
    suspect: bool = False
    alone: bool = False
    _names: set[str] = field(default_factory=set)
    _open: tuple[str, Try] | None = None

    def read(self) -> None:
        """Learn what is stored. A try of this run that went alone and has no end is charged."""
        self._names = set(self.output.list(self.folder))
        charged = {_id(name) for name in self._names if _state(name) == "charged"}
        self.alone = bool(self._names)
        for name in sorted(self._names):
            if _state(name) == "charged":
                self.charged.append(_read(self.output, name))
            elif _id(name) not in charged:
                self.suspect = True
                if _state(name) == "alone" and _run(name) == self.run:
                    self._charge(name, _read(self.output, name))

    @property
    def takes_its_owner_along(self) -> bool:
        """Whether a try of it may have ended its group's owner, or its node."""
        return self.suspect or any(one.ending == NOT_SEEN for one in self.charged)

    def begin(self) -> None:
        """Store that the group is asked now; once for each try."""
        if self._open is not None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        one = Try(self.run, socket.gethostname(), now, what=self.what)
        state: State = "alone" if self.alone else "beside"
        name = f"{self.folder}/{self.run}-{time.time_ns():x}{uuid.uuid4().hex[:6]}.{state}"
        self._open = name, one
        with _unharmed():
            self._names.add(name)
            self.output.write(name, _data(one))

    def failed(self, code: ErrorCode, ending: str, *, charged: bool) -> None:
        """The try failed; nothing where it had not begun. The next one goes alone.

        Args:
            charged: whether it failed by its own doing, and not by that of a request beside it.
        """
        if self._open is None:
            return
        (name, one), self._open = self._open, None
        self.alone = True
        if charged:
            with _unharmed():
                self._charge(name, replace(one, code=code, ending=ending))
        else:
            self._remove(name)

    def answered(self) -> None:
        """The request has its answer: nothing of it is kept."""
        self._open = None
        for name in sorted(self._names):
            self._remove(name)
        if self.output.is_local:
            with suppress(OSError):  # another try's record is in it
                os.rmdir(self.output.path(self.folder))

    def text(self) -> str:
        """What is known of the tries that failed; the last one's ending comes first."""
        tries = self.charged
        times = f"{len(tries)} time{'s' * (len(tries) != 1)}"
        after = f", {AFTER}" * (tries[-1].code == ErrorCode.RANK_DIED)
        text = f"{tries[-1].ending} (tried {times}; --retry-quarantined tries it again{after})"
        if len(tries) == 1:
            return text
        return "\n".join([text, "the tries:", *(one.line() for one in tries)])

    def _charge(self, name: str, one: Try) -> None:
        self.charged.append(one)
        charged = _renamed(name, "charged")
        self._names.add(charged)
        self.output.write(charged, _data(one))
        self._remove(name)

    def _remove(self, name: str) -> None:
        with _unharmed():
            self.output.remove(name)
            self._names.discard(name)


def digest(*parts: Any) -> str:
    """The name of a request: a hash of what it is."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def settle(
    output: Folder, run: str, *, stopped: Collection[str] = (), forget: bool = False
) -> Sequence[str]:
    """Judge what earlier runs have left, before a run begins. Only the one writer may call it.

    A run that died left a record of each request that its groups worked on. Where that is a single
    one, it may have been the reason, and is charged; else nobody can tell which it was, and all
    go alone once.

    Args:
        run: the one that begins; its own records are left as they are.
        stopped: runs that a person or the system stopped, where no request was the reason.
        forget: give every request another chance, those that were quarantined too.

    Returns:
        The requests that were charged.
    """
    charged = []
    with _unharmed():
        names = output.list(ATTEMPTS)
        if forget:
            remove(output, [name for name in names if _run(name) != run])
            return []
        left: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name in names:
            if _state(name) in ("beside", "alone") and _run(name) != run:
                left[_run(name)][name.split("/")[1]].append(name)
        for earlier, requests in left.items():
            blamed = len(requests) == 1 and earlier not in stopped
            charged += list(requests) if blamed else []
            for request in requests.values():
                for place, name in enumerate(sorted(request)):
                    _settle(output, name, "charged" if blamed and not place else "suspect")
    return charged


def forgive(output: Folder, run: str) -> None:
    """Remove the records of a run's open tries, once no group of it works any more.

    For where the driver itself has ended groups at work.
    """
    with _unharmed():
        names = output.list(ATTEMPTS)
        remove(output, [n for n in names if _run(n) == run and _state(n) in ("beside", "alone")])


def remove_scratch(output: Folder) -> None:
    """Remove what killed owners left half written, once no group works any more."""
    with _unharmed():
        remove(output, output.list(ATTEMPTS, scratch=True))


def remove(output: Folder, names: Collection[str]) -> None:
    """Remove records, and what folders are empty then."""
    for name in names:
        output.remove(name)
    if output.is_local:
        for folder in {name.rpartition("/")[0] for name in names}:
            with suppress(OSError):
                os.rmdir(output.path(folder))


def _settle(output: Folder, name: str, state: State) -> None:
    """Give a record another state; a killed run leaves it as it was, or in both."""
    output.write(_renamed(name, state), output.read(name))
    output.remove(name)


def _read(output: Folder, name: str) -> Try:
    """A record; one that cannot be read, as a killed node leaves it, still tells of a try."""
    try:
        return from_dict(Try, json.loads(output.read(name)))
    except Exception:
        return Try(_run(name))


def _data(one: Try) -> bytes:
    return json.dumps(asdict(one)).encode()


def _state(name: str) -> str:
    return name.rpartition(".")[2]


def _id(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _run(name: str) -> str:
    return _id(name).rpartition("-")[0]


def _renamed(name: str, state: State) -> str:
    return f"{name.rpartition('.')[0]}.{state}"


@contextmanager
def _unharmed() -> Iterator[None]:
    """Go on whatever storage does; the process' log tells it."""
    try:
        yield
    except Exception as error:  # each storage has its own kinds of failure
        log_error(error)
