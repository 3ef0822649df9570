"""The writer of results: a thread that stores a run's rows as they come, whatever storage does.

Rows go into small files every few seconds, so that a killed driver loses those of its last seconds
at most. Small files are put together while the run goes on (`merging.py`), so there are never more
than some hundred. While storage takes nothing (an outage, a full disk) the rows are kept and tried
again.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from cluster.events.record import Happened, Note, ignore
from cluster.job import CannotRun
from cluster.results.merging import Merging
from cluster.results.parts import FOLDER
from cluster.results.schema import join_tables, to_parquet
from pipeline.storage import Folder, explain

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH_S = 5.0
"""Rows are stored within this time: what a killed driver loses is made again."""
SOONER_ROWS = 10_000
"""So many rows are stored at once."""
FULL_ROWS = 100_000
FULL_BYTES = 64 << 20
"""With more rows waiting than either no new work should be taken."""
PAUSES_S = (0.5, 30.0)
"""Between two tries: the first pause, which doubles, and the longest one."""


class ResultsNotStored(CannotRun):
    """Storage has taken no results for as long as the job waits."""


class ResultWriter:
    """Stores the rows of one run, in a thread of its own.

    Args:
        output: the folder whose `results/` the rows go to.
        run: names the files; sorts after the names of all earlier runs.
        patience_s: so long storage may fail before `check` and `close` raise.
        before: called before each change of the folder, in the thread; what it raises ends the
            thread, and `check` and `close` raise it.
        note: gets what happens to the results.
    """

    def __init__(
        self,
        output: Folder,
        run: str,
        patience_s: float,
        before: Callable[[], None] = lambda: None,
        note: Note = ignore,
    ) -> None:
        self._before, self._note = before, note
        self._output, self._run, self._patience_s = output, run, patience_s
        self._lock = threading.Condition()
        self._waiting: list[pa.Table] = []
        self._rows_wait = self._bytes_wait = 0  # of them; `full` is asked several times a second
        self._first_wait: float | None = None  # when the oldest waiting row came
        self._trouble: _Trouble | None = None
        self._broken: BaseException | None = None  # a fault of ours, for which no patience helps
        self._given_up = self._closing = False
        self._rescued = ""  # where the rows are, once storage was given up
        self._files = 0
        self._merging = Merging(output, run)
        self._thread = threading.Thread(target=self._work, name="results", daemon=True)
        self._thread.start()

    def add(self, table: pa.Table) -> None:
        """Take rows; they are stored within `FLUSH_S` where storage takes them."""
        if not table.num_rows:
            return
        with self._lock:
            self._waiting.append(table)
            self._rows_wait += table.num_rows
            self._bytes_wait += table.nbytes
            self._first_wait = self._first_wait or time.monotonic()
            if self._rows_wait >= SOONER_ROWS:
                self._lock.notify_all()

    @property
    def full(self) -> bool:
        """Whether so many rows wait that no new work should be taken."""
        with self._lock:
            return self._rows_wait >= FULL_ROWS or self._bytes_wait >= FULL_BYTES

    @property
    def unstored(self) -> int:
        """Rows that storage has not taken yet."""
        with self._lock:
            return self._rows_wait

    @property
    def note(self) -> str | None:
        """A sentence while storage does not take the rows; None while it does."""
        with self._lock:
            if not (trouble := self._trouble):
                return None
            return (
                f"results cannot be stored since {trouble.clock}: {self._where}: {trouble.text}. "
                f"{self._rows()} kept and tried again; the job ends in "
                f"{max(0, round(trouble.since + self._patience_s - time.monotonic()))} s otherwise"
            )

    def check(self) -> None:
        """Raise where the rows could not be stored.

        Raises:
            ResultsNotStored: storage took none for `patience_s`.
        """
        with self._lock:
            self._raise()

    def hurry(self, patience_s: float) -> None:
        """Be patient for at most so long from now on."""
        with self._lock:
            since = time.monotonic() - self._trouble.since if self._trouble else 0.0
            self._patience_s = min(self._patience_s, since + patience_s)

    def close(self) -> None:
        """Store the rest, with the same patience, and stop the thread.

        Raises:
            ResultsNotStored: storage took none for `patience_s`. The rows are then in a file on
                this machine, which the message names.
        """
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.2)  # a signal is handled between two
        with self._lock:
            self._raise()

    @property
    def _where(self) -> str:
        return f"{self._output.uri}/{FOLDER}"

    def _rows(self) -> str:
        rows = self._rows_wait
        return f"{rows} row{'s are' if rows != 1 else ' is'}"

    def _raise(self) -> None:
        if self._broken:
            raise self._broken
        if self._given_up and self._trouble:
            self._rescued = self._rescued or _rescue(self._waiting, self._run, self._where)
            raise ResultsNotStored(
                f"results cannot be stored: {self._where}: {self._trouble.text}. It was tried for "
                f"{self._patience_s:g} s (cluster.storage_patience_s). {self._rows()} "
                f"{self._rescued}. Repair the storage, or make room on it, and run the same "
                "command again to go on"
            )

    def _work(self) -> None:
        try:
            while self._wait_for_rows():
                self._store_all()
                self._before()
                if joined := self._merging.merge():
                    self._note(Happened.RESULTS_JOINED, counts={"files": joined})
            self._before()
            self._merging.finish()
        except BaseException as error:
            with self._lock:
                self._broken = error

    def _wait_for_rows(self) -> bool:
        """Wait until rows are to be stored; False where no more come."""
        with self._lock:
            while True:
                rows = self._rows_wait
                left = FLUSH_S * 0.8  # the rest is for storing them
                if self._first_wait is not None:
                    left -= time.monotonic() - self._first_wait
                if self._closing or rows >= SOONER_ROWS or (rows and left <= 0):
                    return rows > 0 and not self._given_up
                self._lock.wait(max(left, 0.01) if rows else FLUSH_S * 0.2)

    def _store_all(self) -> None:
        """Store what waits, once storage takes it; or give up."""
        pause_s, longest_s = PAUSES_S
        name = f"{FOLDER}/{self._run}-{self._files:06d}.parquet"
        with self._lock:
            taken = list(self._waiting)
        # Each try writes the same: one that storage carries out after it was given up, however
        # late, takes no row away.
        data = to_parquet(join_tables(taken))
        while True:
            self._before()
            try:
                self._output.write(name, data)
                break
            except Exception as error:  # each storage has its own kinds of failure
                if not self._may_try_again(error, name):
                    return
            with self._lock:
                self._lock.wait_for(lambda: self._closing, pause_s * random.uniform(0.5, 1.0))
            if self._closing:
                time.sleep(min(pause_s, PAUSES_S[0]))
            pause_s = min(2 * pause_s, longest_s)
        self._files += 1
        rows = sum(table.num_rows for table in taken)
        self._merging.written(name, rows)
        with self._lock:
            del self._waiting[: len(taken)]
            self._rows_wait -= rows
            self._bytes_wait -= sum(table.nbytes for table in taken)
            self._first_wait = time.monotonic() if self._waiting else None
            trouble, self._trouble = self._trouble, None
        if trouble:
            seconds = round(time.monotonic() - trouble.since, 3)
            self._note(Happened.STORAGE_BACK, seconds=seconds)
        self._note(Happened.RESULTS_STORED, counts={"rows": rows})

    def _may_try_again(self, error: Exception, name: str) -> bool:
        """Keep what went wrong; whether there is patience left."""
        text = explain(error, self._output.full_uri(name), "written").text
        with self._lock:
            now = time.monotonic()
            since, clock = now, datetime.now().strftime("%H:%M")
            if self._trouble:
                since, clock = self._trouble.since, self._trouble.clock
            else:
                self._note(Happened.STORAGE_TROUBLE, message=f"{self._where}: {text}")
            self._trouble = _Trouble(since, clock, text)
            self._given_up = now - since >= self._patience_s
            return not self._given_up


class _Trouble:
    """Since when storage takes no rows, and why.

    Args:
        since: of the monotonic clock; `clock` is the same for people.
    """

    def __init__(self, since: float, clock: str, text: str) -> None:
        self.since, self.clock, self.text = since, clock, text


def _rescue(tables: list[pa.Table], run: str, where: str) -> str:
    """Put rows that storage does not take into a file on this machine.

    Args:
        where: the folder that they are for.

    Returns:
        Where they are, as the end of a sentence.
    """
    try:
        with tempfile.NamedTemporaryFile(
            prefix=f"{run}-rescued-", suffix=".parquet", delete=False
        ) as file:
            file.write(to_parquet(join_tables(tables)))
    except OSError as error:
        return f"lost, so the edits are made again; nor does this machine take a file: {error}"
    return f"kept in {file.name}: copy that file to {where}, or the edits are made again"
