"""What an export's card says of how its pairs were made: from the resolved job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from jobs.accept.remembered import rules_in
from jobs.spec import ABOUT, read_resolved
from pipeline.redaction import redacted, redacted_values

if TYPE_CHECKING:
    from jobs.export.formats import Whole

SETTINGS = ("seed", "precision", "video", "inversion", "reconstruction", "score")
"""Of the job file, what changes the edits or is measured of them; not where it lies. Its rules
may not be those that decided."""


def how_made(whole: Whole) -> str:
    """A section of the card; the last run's settings, which older edits may differ from."""
    job = read_resolved(whole.output)
    about = job.get(ABOUT)
    about = about if isinstance(about, Mapping) else {}
    checkpoint = [("Checkpoint", _name(job["checkpoint"]))] if job.get("checkpoint") else []
    models = [(f"Model of `scores.{kind}`", name) for kind, name in _models(whole)]
    lines = [
        "## How it was made",
        "",
        "Each video was inverted once with CogVideoX, and each edit made from that trajectory by "
        "denoising with another prompt."
        if job
        else "The job's folder has no `job.yaml`, which would say it.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {_cell(value)} |"
        for name, value in (*checkpoint, *_versions(about), *models, *_asked(whole))
    ]
    if job:
        settings = yaml.safe_dump(_settings(whole, job), sort_keys=False, allow_unicode=True)
        lines += ["", "The settings of the last run:", "", "```yaml", settings.strip(), "```"]
    return "\n".join(lines)


def _settings(whole: Whole, job: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: job[name] for name in SETTINGS if job.get(name) not in (None, [], {})}
    score = kept.get("score")
    if isinstance(score, Mapping):
        kept["score"] = {
            name: _name(value) if isinstance(value, str) else value for name, value in score.items()
        }
    if rules := rules_in(whole.output, job):
        kept["accept"] = list(rules)
    values: dict[str, Any] = redacted_values(kept)
    return values


def _versions(about: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    prints = about.get("fingerprints")
    if isinstance(prints, Mapping):
        rows += [(f"Fingerprint of the {name}", value) for name, value in prints.items()]
    versions = about.get("versions")
    if isinstance(versions, Mapping):
        rows.append(("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return rows


def _models(whole: Whole) -> list[tuple[str, str]]:
    found = []
    for kind in ("clip", "dino", "judge"):
        query = f"SELECT DISTINCT scores.{kind}.model AS m FROM exported WHERE m IS NOT NULL"
        names = sorted(_name(name) for (name,) in whole.database.execute(query).fetchall())
        found += [(kind, ", ".join(names))] if names else []
    return found


def _asked(whole: Whole) -> list[tuple[str, str]]:
    settings = whole.settings
    rows = [("Exported as", settings.format)]
    if settings.where:
        rows.append(("Only where", f"`{settings.where}`"))
    if settings.all:
        rows.append(("Rules", "not applied: `--all`"))
    return rows


def _name(location: Any) -> str:
    """A checkpoint or model without where it lies: a folder's name, or a name on the Hub."""
    text = str(location)
    if text.lower().startswith(("http://", "https://")):
        return "a server"
    if "://" in text:
        return text.rstrip("/").rpartition("/")[2]
    return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", ".")) else text


def _cell(value: Any) -> str:
    return redacted(" ".join(str(value).split())).replace("|", "\\|")
