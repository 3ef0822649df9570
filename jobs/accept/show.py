"""What `retake accept` prints: each rule and how many edits it rejects."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.accept import Decided
from jobs.errors import counted

HEADS = ("rejects", "alone", "no score")


def lines_of(found: Decided, *, dry_run: bool) -> Iterator[str]:
    """The table of the rules, and what came of all of them."""
    texts = [rule.text for rule in found.rules.rules]
    columns = (found.rejects, found.alone, found.without_score)
    wide = max(map(len, ("rule", *texts)))
    yield f"{'rule':<{wide}}" + "".join(f"  {head:>8}" for head in HEADS)
    for place, text in enumerate(texts):
        yield f"{text:<{wide}}" + "".join(f"  {int(column[place]):>8}" for column in columns)
    share = f" ({found.accepted / found.edits:.1%})" if found.edits else ""
    yield f"accepted {found.accepted} of {counted(found.edits, 'edit')}{share}"
    if found.not_made:
        yield f"{counted(found.not_made, 'edit')} not made, and so without a verdict"
    written = "would change; nothing was written" if dry_run else "changed"
    yield f"{counted(found.changed, 'verdict')} {written}"
