"""Which programs measure: those that `make bench` runs, in its order, and those beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A program that measures.

    Args:
        name: of its module in `tests.benchmarks`; for those beside `make bench` the whole module.
        what: it measures, for the documentation.
        minutes: that it takes on two idle cores, for the documentation; after four times as many
            `make bench` ends it.
    """

    name: str
    what: str
    minutes: float

    @property
    def module(self) -> str:
        return self.name if "." in self.name else f"tests.benchmarks.{self.name}"


BENCHMARKS = (
    Program(
        "cost",
        "edits of one video, 1, 4 and 8 of them: the script's plan against ours, in counted "
        "forwards and as a ratio of times",
        5,
    ),
    Program(
        "speedups",
        "step cache, compiled blocks, fp8 weights and SageAttention against the plain run: dB, the "
        "judge's verdict on the trained model, and seconds",
        4,
    ),
    Program(
        "masks",
        "the background of edits with a given and with an automatic mask against none, what was "
        "asked for, and what keeps the background from the VAE's own: dB, the judge's verdict, "
        "counted forwards",
        8,
    ),
    Program(
        "speed_of_light",
        "the rate of a whole job over that of the bare functions in a loop on the same cores",
        6,
    ),
    Program(
        "start_up",
        "seconds from the command to the first finished edit of the demo, by phase",
        1.5,
    ),
    Program(
        "verdicts",
        "what rules on frame measures accept, against the judge of the drawn world: precision and "
        "recall, by setting and by fault",
        10,
    ),
    Program(
        "candidates",
        "what a further candidate costs, and how many shapes the best of four gets right",
        10,
    ),
    Program(
        "orchestration",
        "rows a second and the driver's memory, with ranks that answer at once",
        6,
    ),
)
"""What `make bench` runs, one after the other. Each keeps to `figures.py`."""

SEPARATE = (
    Program(
        "tests.benchmarks.edits",
        "edits of held-out drawn clips by the real job, judged in pixels, one row for each "
        "setting; the defaults are chosen from it (`edits.md`)",
        240,
    ),
    Program(
        "tests.faults.soak",
        "the time to go on after each kind of fault; a part of `make soak` "
        "(`tests/faults/recovery.md`)",
        40,
    ),
    Program(
        "tests.benchmarks.scale",
        "what 10^6 videos take: time to know what is pending, results, the driver's time and "
        "memory for a row (`scale.md`)",
        10,
    ),
    Program(
        "tests.benchmarks.round_trip",
        "what inverting a clip and coming back costs, beside what the VAE alone costs "
        "(`round_trip.md`)",
        10,
    ),
    Program(
        "tests.benchmarks.busy",
        "how busy rank groups are in the real graph of Ray Data, with ranks that sleep for the "
        "counted work (`busy.md`)",
        4,
    ),
    Program(
        "tests.benchmarks.storage",
        "what storing and reading trajectories costs beside the model (`storage.md`)",
        2,
    ),
    Program(
        "tests.benchmarks.exchange",
        "the bytes that a rank sends in one step, against the formula of Ulysses and ring "
        "(`exchange.md`)",
        3,
    ),
    Program(
        "tests.benchmarks.gpu",
        "one GPU with a published architecture and random weights "
        "(`results/<model>_<hardware>_<date>.md`)",
        10,
    ),
)
"""What is run by itself: for hours, for another kind of machine, or for a table of its own."""
