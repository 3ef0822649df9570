"""One writer of an output folder at a time, by a lease that is renewed and taken over when stale.

A lease is a file `lease/<number>.json`, and the highest number holds the folder. Only its own
holder writes to a file, and a number is never made twice: `exclusive.create` gives it to one of
those that try. So whoever finds a higher number than its own has lost the folder, however long it
slept. The last file stays, as released, so that numbers go on rising.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cluster.job import CannotRun
from cluster.output.exclusive import create
from cluster.output.holder import Holder, now
from cluster.output.naming import after, newest_of, runs_with_results
from pipeline.storage import Folder, explain

FOLDER = "lease"
NAME = re.compile(r"lease/(\d{6,})\.json")
RENEW_S = 10.0
"""A holder says so often that it lives."""
STALE_S = 60.0
"""One that has not for so long is taken to be gone, unless it turns out to live."""
UNSURE_S = 30.0
"""Without a renewal for so long, a holder looks whether it still is one before it writes."""
CHECK_S = 10.0
"""It waits so long for storage to say so."""
SURE_S = 600.0
"""It waits so long before it deletes what another one may need."""
ASK_S = 1.0
"""One that waits looks so often."""
LOOKS = 50
"""So often a file that is listed may be gone when it is read."""


class LeaseHeld(CannotRun):
    """Another process writes to the output folder."""


class LeaseLost(CannotRun):
    """Another run took the output folder over while this one could not say that it lives."""


class LeaseUnsure(CannotRun):
    """Whether another run has taken the output folder over could not be found out."""


@contextmanager
def held(
    output: Folder,
    run: str,
    *,
    wait: bool = False,
    on_wait: Callable[[str], None] = lambda text: None,
    command: str = "retake run",
) -> Iterator[Lease]:
    """Hold an output folder, as the only one that writes to it.

    Args:
        run: the name of this run's results, if it sorts after those of all earlier runs; the lease
            has one that does. Empty for a command that makes none.
        wait: until the folder is free; else another holder is an error.
        on_wait: called with a sentence that says who is waited for, when that changes.
        command: what holds it, for others to read.

    Raises:
        LeaseHeld: another process holds it, and `wait` is off.
        LeaseLost: another one took it over, and the block did not notice.
        CannotRun: storage does not take the lease.
    """
    try:
        lease = _acquire(output, run, wait, on_wait, command)
    except CannotRun:
        raise
    except Exception as error:  # each storage has its own kinds of failure
        why = explain(error, f"{output.uri}/{FOLDER}", "written").text
        raise CannotRun(f"output {output.uri}: {FOLDER}/ {why}") from error
    try:
        yield lease
        lease.check()
    except KeyboardInterrupt:
        lease.stopping()
        raise
    finally:
        lease.release()


def holder_of(output: Folder) -> Holder | None:
    """Who holds an output folder; None where nobody does."""
    newest = _newest(output)
    holder = Holder.parse(newest.data) if newest else None
    return holder if holder and not holder.released else None


def runs_stopped_by_signal(output: Folder) -> frozenset[str]:
    """The names of earlier runs that Ctrl-C or SIGTERM ended: what they left says nothing."""
    newest = _newest(output)
    holder = Holder.parse(newest.data) if newest else None
    return frozenset(holder.runs_stopped()) if holder else frozenset()


def _clock() -> float:
    """Seconds that go on while the machine sleeps too, where it has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass
class Lease:
    """The hold of this process on an output folder. A thread renews it.

    Args:
        number: of its file.
        before: who held the folder before, where that one did not release it.
        notes: what a user should know of how it was taken.
    """

    output: Folder
    holder: Holder
    number: int
    before: Holder | None = None
    notes: tuple[str, ...] = ()
    _lost: str = ""
    _renewed: float = field(default_factory=_clock)
    _unsure_since: float | None = None
    _stopping: bool = False
    _ended: bool = False
    _tick: threading.Condition = field(default_factory=threading.Condition)
    _wake: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
        self._thread.start()

    @property
    def run(self) -> str:
        """The name of this run: it sorts after those of all earlier ones."""
        return self.holder.run

    @property
    def runs_stopped(self) -> frozenset[str]:
        """The names of earlier runs that Ctrl-C or SIGTERM ended."""
        return frozenset(self.holder.stopped)

    @property
    def sure(self) -> bool:
        """Whether no other process can have taken the folder over."""
        return not self._lost and _clock() - self._renewed < UNSURE_S

    def check(self, *, sure: bool = False) -> None:
        """Call it before each thing that two must not do: it costs nothing while renewals succeed.

        Else it waits up to `CHECK_S` until it knows more, and looks itself where another run can
        have come meanwhile. Where storage does not answer, what follows fails there too.

        Args:
            sure: wait up to `SURE_S` until it is known: what follows would harm another run.

        Raises:
            LeaseLost: another run has taken the folder over.
            LeaseUnsure: it is not known after `SURE_S`.
        """
        if self.sure:
            self._unsure_since = None
        elif not self._lost:
            since = _clock()
            self._unsure_since = self._unsure_since or since
            left = SURE_S if sure else self._unsure_since + CHECK_S - since
            with self._tick:
                self._wake.set()
                known = self._tick.wait_for(lambda: self.sure or bool(self._lost), max(0.0, left))
            if _clock() - self._renewed > STALE_S and not self._lost:
                # The thread may be held up by one request while storage answers every other.
                with suppress(Exception):
                    self._still_ours()
            if sure and not known and not self._lost:
                raise LeaseUnsure(
                    f"output {self.output.uri}: for {SURE_S:g} s its storage has not said whether "
                    "another run has taken it over"
                )
        if self._lost:
            raise LeaseLost(
                f"output {self.output.uri}: {self._lost}. This one could not say in time that it "
                "lives (it was stopped, or could not reach the storage), and writes nothing more. "
                "What it stored before stands; let the other one go on"
            )

    def stopping(self) -> None:
        """Note that a signal asked this run to end: what it leaves unfinished is nobody's fault."""
        self._stopping = True
        self._wake.set()

    def release(self) -> None:
        """Leave the folder to others. Storage that takes no note of it does not matter: it ages."""
        self._ended = True
        self._wake.set()
        if self._thread:
            self._thread.join(CHECK_S)

    def _renew_for_ever(self) -> None:
        while not self._lost:
            if not self._ended:
                self._wake.wait(RENEW_S)
            self._wake.clear()
            last = self._ended
            with suppress(Exception):  # storage may be away for a while; `sure` knows for how long
                self._renew(released=last)
            if last:
                return

    def _renew(self, released: bool) -> None:
        began = _clock()
        if self._still_ours():
            name = _name(self.number)
            try:
                self.output.write(name, self._record(released))
            except OSError:
                if not self.output.is_local or released:
                    raise
                os.utime(self.output.path(name))  # a full disk takes that
            self._still_ours()  # another one may have come between
        with self._tick:
            if not self._lost:
                self._renewed = began
            self._tick.notify_all()

    def _record(self, released: bool) -> bytes:
        return self.holder.as_json(renewed=now(), stopping=self._stopping, released=released)

    def _still_ours(self) -> bool:
        newest = _newest(self.output)
        if newest is None or newest.number < self.number:
            return True  # somebody tidied the folder up by hand: it is written again
        found = Holder.parse(newest.data)
        if newest.number == self.number and (found is None or found.token == self.holder.token):
            return True
        who = found.in_words() if found else f"somebody ({_name(newest.number)})"
        self._lost = f"{who} has taken it over"
        return False


@dataclass(frozen=True)
class _Found:
    """The newest file of a lease.

    Args:
        changed: when the file was written, where the file system says so and it is local.
    """

    number: int
    data: bytes
    changed: float = 0.0

    @property
    def age_s(self) -> float | None:
        """Seconds since its holder said that it lives; None where that cannot be read."""
        holder = Holder.parse(self.data)
        ages = [holder.age_s()] if holder else []
        ages += [time.time() - self.changed] if self.changed else []
        return min(ages, default=None)


def _newest(output: Folder) -> _Found | None:
    """The file of the present holder, or of the last one; None where there was none yet."""
    for tries in range(1, LOOKS + 1):
        numbers = _numbers(output)
        if not numbers:
            return None
        name = _name(numbers[-1])
        try:
            changed = os.stat(output.path(name)).st_mtime if output.is_local else 0.0
            return _Found(numbers[-1], output.read(name), changed)
        except FileNotFoundError:
            # Removed just now by the next holder, whose file is there; or a listing that is late.
            if tries == LOOKS:
                raise
            time.sleep(0.1)
    return None


def _numbers(output: Folder) -> list[int]:
    found = (NAME.fullmatch(name) for name in output.list(FOLDER))
    return sorted(int(match[1]) for match in found if match)


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def _acquire(
    output: Folder, run: str, wait: bool, on_wait: Callable[[str], None], command: str
) -> Lease:
    watch = _Watch(output, wait, on_wait)
    while True:
        newest = _newest(output)
        before = Holder.parse(newest.data) if newest else None
        note = watch.until_free(newest, before) if newest else ""
        if note is None:
            continue
        stopped = before.runs_stopped() if before else ()
        earlier = {before.run, before.latest} if before else set[str]()
        if run:
            run = after(run, earlier := earlier | runs_with_results(output))
        holder = Holder.this_process(run, command, stopped, newest_of({*earlier, run}))
        number = newest.number + 1 if newest else 1
        if not create(output, _name(number), holder.as_json()):
            continue
        if newest:
            _remove_up_to(output, newest)
        unreleased = before if before and not before.released else None
        lease = Lease(output, holder, number, unreleased, (note,) if note else ())
        lease.start()
        return lease


def _remove_up_to(output: Folder, taken: _Found) -> None:
    """Remove the files of holders before; one that woke up just now is given time to notice."""
    current = _read(output, taken.number)
    if current is not None and current != taken.data:
        time.sleep(2 * RENEW_S)
    for number in _numbers(output):
        if number <= taken.number:
            with suppress(Exception):  # it is only untidy
                output.remove(_name(number))


def _read(output: Folder, number: int) -> bytes | None:
    try:
        return output.read(_name(number))
    except FileNotFoundError:
        return None


@dataclass
class _Watch:
    """Looks at a holder until it is gone, if that is wanted.

    The clocks of two machines may differ: a holder is stale that does not change its file for long,
    by the clock of this machine. One whose own time is old already is only watched a little.
    """

    output: Folder
    wait: bool
    on_wait: Callable[[str], None]
    seen: _Found | None = None
    since: float = 0.0
    lives: bool = False
    reported: str = ""

    def until_free(self, newest: _Found, holder: Holder | None) -> str | None:
        """A note on how the folder became free, "" for no note; None: look again.

        Raises:
            LeaseHeld: it is not free, and is not waited for.
        """
        if holder and holder.released:
            return ""
        who = holder.in_words() if holder else f"somebody ({_name(newest.number)} is damaged)"
        if holder and holder.is_gone():
            return f"{who} has ended without a word; this run goes on from what it stored"
        if self.seen != newest:
            self.lives = self.seen is not None and self.seen.number == newest.number
            self.seen, self.since = newest, _clock()
        still = _clock() - self.since
        age = newest.age_s
        old = not self.lives and (age is None or age > STALE_S)
        if still > (2.5 * RENEW_S if old else STALE_S):
            return (
                f"{who} has given no sign of life for {max(age or 0.0, still):.0f} s; "
                "this run takes the output folder over"
            )
        if not old and not self.wait:
            seen_s = still if age is None or self.lives else max(0.0, age)
            raise LeaseHeld(_refusal(self.output, who, seen_s))
        gone = f"seems to be gone: it is watched for {2.5 * RENEW_S:g} s"
        how = gone if old else "writes to the output folder"
        self._say(f"waiting for {who}, which {how}")
        time.sleep(min(ASK_S, RENEW_S / 2))
        return None

    def _say(self, text: str) -> None:
        if text != self.reported:
            self.reported = text
            self.on_wait(text)


def _refusal(output: Folder, who: str, seen_s: float) -> str:
    return (
        f"output {output.uri}: {who} writes to it; it last gave a sign of life {seen_s:.0f} s ago. "
        "Two at once would do the same work and remove each other's files. Give --wait to begin "
        "when it has ended, or stop it first; if its machine is gone, the folder is free "
        f"{STALE_S:g} s after that sign"
    )
