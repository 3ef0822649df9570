"""Single faults into a job: what each does, seen alone.

    python -m tests.faults SETTING "KIND,KIND" [SECONDS]

SETTING is the number of one of `tests.faults.soak.SETTINGS`; the kinds are those of
`tests.faults.injected.KINDS`, in their order; SECONDS is how long those last that do not kill.
SOAK_SEED draws whom they hit.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.faults.campaign import moments_of
from tests.faults.record import Log, table
from tests.faults.scene.stage import staged
from tests.faults.soak import SETTINGS


def main(setting: int, kinds: list[str], seconds: float | None) -> int:
    seed = int(os.environ.get("SOAK_SEED", "14"))
    chosen = replace(SETTINGS[setting], videos=6 + 4 * len(kinds))
    log = Log(Path(tempfile.mkdtemp(prefix="faults-log-")) / "events.jsonl")
    with staged(chosen, seed, log) as campaign:
        moments = moments_of(campaign.scene.draw, kinds, chosen.videos * chosen.edits)
        if seconds is not None:
            moments = [
                replace(moment, lasts_s=seconds) if moment.lasts_s else moment for moment in moments
            ]
        problems = campaign.go(moments)
    print(*log.events(), "", table(log.events()), *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    last = float(sys.argv[3]) if len(sys.argv) > 3 else None
    sys.exit(main(int(sys.argv[1]), sys.argv[2].split(","), last))
