"""What 10^6 videos take: each module of this folder measures one thing and prints its table.

    python -m tests.benchmarks.scale

writes `tests/benchmarks/scale.md`.
"""

import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
MEASURED = tuple(
    path.stem for path in sorted(HERE.glob("*.py"), reverse=True) if not path.stem.startswith("_")
)


def main() -> None:
    parts = [f"`python -m tests.benchmarks.scale`, {platform.machine()}, {date.today()}.\n"]
    for name in MEASURED:
        module = f"tests.benchmarks.scale.{name}"
        parts.append(subprocess.check_output([sys.executable, "-m", module], text=True))
        print(parts[-1])
    (HERE.parent / "scale.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
