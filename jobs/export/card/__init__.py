"""The card of an export, `README.md`: what it is, how it was made, and what is known of its pairs.

It is Markdown with a header in YAML, as the Hugging Face Hub has them. It holds no location, no
prompt (but what `--where` names) and no secret: it may be published. The numbers are of all pairs
that were exported; what the rules rejected is of all edits of the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from jobs.errors import counted
from jobs.export.card.made import how_made
from jobs.export.card.numbers import acceptance, counts, scores
from jobs.export.card.opening import HOW_TO_OPEN
from pipeline.redaction import redacted, redacted_values

if TYPE_CHECKING:
    from jobs.export.formats import Whole
    from jobs.export.target import Target

NAME = "README.md"
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
"""The Hub's names for sizes, and what is below each."""

LIMITS = """\
## Known limits

- The edits were made by a model, which can fail without notice: an edit may show only a part of its
  prompt, change what it should keep, or flicker. Scores and rules find some of these.
- Scores are of models and of frames, not of people. How far they agree with people was not measured
  here.
- Prompts and instructions are those of the job's manifest; nobody has checked them.
- A pair is no evidence of what happened: the edit shows what was not filmed.
- The rights in the sources, and what their owners allow, are for who publishes this to know.
"""


def write_card(whole: Whole, target: Target, about: Mapping[str, Any] | None = None) -> None:
    """Write the card.

    Args:
        about: more of the header: what a format's loader reads there.
    """
    target.put(NAME, card(whole, about or {}).encode())


def card(whole: Whole, about: Mapping[str, Any]) -> str:
    """The text of the card. Arguments as of `write_card`."""
    found = counts(whole)
    licence = whole.settings.license
    parts = [
        f"---\n{yaml.safe_dump(_header(whole, found.pairs, about), sort_keys=False)}---",
        "# Pairs of videos and their edits",
        f"{counted(found.pairs, 'pair')} of a video and an edit of it, from "
        f"{counted(found.sources, 'video')}; each with its prompts"
        f"{', its instruction' if found.instructions else ''}"
        f"{', the mask that it was made with' if found.masks else ''} and its scores. Written by "
        "`retake export`.",
        HOW_TO_OPEN[whole.settings.format],
        found.as_text(),
        how_made(whole),
        scores(whole),
        acceptance(whole),
        "## Licence\n\n"
        + (licence or "None was given. `retake export … --license NAME` writes it here."),
        LIMITS,
    ]
    return redacted("\n\n".join(part.strip() for part in parts if part) + "\n")


def _header(whole: Whole, pairs: int, about: Mapping[str, Any]) -> dict[str, Any]:
    size = next((name for limit, name in SIZES if pairs < limit), "n>100M")
    return {
        **_licence(whole.settings.license),
        "task_categories": ["video-to-video"],
        "tags": ["video-editing", "retake"],
        "size_categories": [size],
        **redacted_values(dict(about)),
    }


def _licence(name: str) -> dict[str, str]:
    """The Hub takes short names; another one is `other`, with its name beside."""
    if not name:
        return {}
    if name == name.lower() and all(one.isalnum() or one in "-." for one in name):
        return {"license": name}
    return {"license": "other", "license_name": name}
