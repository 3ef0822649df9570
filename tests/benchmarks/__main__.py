"""`make bench`: everything that measures; each benchmark writes its table beside itself."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PRINTED = ("storage", "exchange")


def main() -> None:
    for name in PRINTED:
        table = subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        (HERE / f"{name}.md").write_text(table)
        print(table)
    # These write their tables themselves, and exit with 1 where a target is missed.
    edits = ["edits", "--table", str(HERE / "edits.md")]
    missed = [
        name
        for name, *options in (["cost"], ["round_trip"], edits)
        if subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}", *options], check=False
        ).returncode
    ]
    if missed:
        sys.exit(f"missed a target or failed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
