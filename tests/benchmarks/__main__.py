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
    for name in ("cost", "round_trip"):
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True)
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.edits", "--table", str(HERE / "edits.md")],
        check=True,
    )


if __name__ == "__main__":
    main()
