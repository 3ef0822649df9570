"""`make soak`: hundreds of faults at drawn moments, for half an hour or more.

    python -m tests.faults.soak

Rounds of a job each, on storage and clusters in turn, until the minutes are over and the faults are
enough. All is drawn from one seed: the same seed draws the same rounds. What happened goes to a log
that grows as it happens; a soak that was killed goes on with the round after its last whole one.

    SOAK_SEED=14        what all is drawn from
    SOAK_MINUTES=30     at least so long, and
    SOAK_FAULTS=200     at least so many faults
    SOAK_FOLDER=build/soak    the log `events.jsonl` and the table `recovery.md`
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.campaign import drawn_moments
from tests.faults.record import Log, table
from tests.faults.scene.stage import Setting, staged

FAULTS_OF_A_ROUND = 24
SETTINGS = (
    Setting("local", workers=3, layout="pair", videos=40, edits=3, steps=40),
    Setting("s3", workers=3, layout="shared", videos=40, edits=3, steps=40),
    Setting("disk", workers=0, layout="shared", videos=40, edits=3, steps=40),
    Setting("s3", workers=0, layout="pair", videos=40, edits=3, steps=40),
)
"""The rounds, in turn."""


def main() -> int:
    seed = int(os.environ.get("SOAK_SEED", "14"))
    seconds = 60 * float(os.environ.get("SOAK_MINUTES", "30"))
    faults = int(os.environ.get("SOAK_FAULTS", "200"))
    folder = Path(os.environ.get("SOAK_FOLDER", "build/soak"))
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "events.jsonl")
    done = [event for event in log.events() if event["event"] == "round ended"]
    if done and done[-1]["seed"] != seed:
        print(f"{log.path} is of the seed {done[-1]['seed']}; give SOAK_FOLDER another folder")
        return 2
    for number in _rounds(log, seconds, faults, len(done)):
        setting = SETTINGS[number % len(SETTINGS)]
        print(f"round {number}: {setting}", flush=True)
        began = time.monotonic()
        problems = _round(setting, seed + number, log, number)
        took = round(time.monotonic() - began, 1)
        log.add("round ended", number=number, seed=seed, took_s=took, problems=len(problems))
        print(*problems, f"{took} s, {len(problems)} problems", sep="\n", flush=True)
        (folder / "recovery.md").write_text(report(log.events(), seed))
    print(report(log.events(), seed))
    return 1 if any(event["event"] == "problem" for event in log.events()) else 0


def _rounds(log: Log, seconds: float, faults: int, first: int) -> Any:
    """The numbers of the rounds that are still to come."""
    number = first
    while True:
        events = log.events()
        took = sum(event["took_s"] for event in events if event["event"] == "round ended")
        brought = sum(1 for event in events if event["event"] == "fault")
        if took >= seconds and brought >= faults:
            return
        yield number
        number += 1


def _round(setting: Setting, seed: int, log: Log, number: int) -> list[str]:
    log.add("round", number=number, seed=seed, setting=setting)
    with staged(setting, seed, log) as campaign:
        moments = drawn_moments(campaign.scene, FAULTS_OF_A_ROUND, setting.videos * setting.edits)
        return campaign.go(moments)


def report(events: list[dict[str, Any]], seed: int) -> str:
    """What happened, in Markdown."""
    counts = Counter(event["event"] for event in events)
    minutes = sum(event["took_s"] for event in events if event["event"] == "round ended") / 60
    problems = [event["text"] for event in events if event["event"] == "problem"]
    lines = [
        f"Seed {seed}: {counts['fault']} faults in {minutes:.0f} minutes, "
        f"{counts['round ended']} jobs, {counts['run']} runs, {len(problems)} problems.",
        "",
        table(events),
        *[f"- {' '.join(text.split())[:300]}" for text in problems],
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    # Its own seed for whatever libraries draw in this process.
    random.seed(0)
    sys.exit(main())
