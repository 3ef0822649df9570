"""Which rules an output folder was decided by: its job's, or those that `retake accept` was given.

The job that a run wrote stays as the run wrote it. Other rules stand in a file of their own, which
goes when the job's rules decide again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jobs.errors import JobError
from jobs.jobfile.reading import read_values
from jobs.spec import RESOLVED, read_resolved
from pipeline.storage import Folder

NAME = "accept.yaml"
ABOUT = "# The rules that `retake accept` decided by, instead of those of job.yaml.\n"


def rules_in(output: Folder, job: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The texts of the rules that the results of a folder were last decided by.

    Args:
        job: the values of its job, where they are known.

    Raises:
        JobError: a file is no list of rules, or cannot be read.
    """
    if not output.exists(NAME):
        return rules_of_job(output, job)
    return _texts(read_values(output.full_uri(NAME)).get("accept"), output.full_uri(NAME))


def rules_of_job(output: Folder, job: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The texts of the rules of the job that a run wrote into its folder; empty for none."""
    values = read_resolved(output) if job is None else job
    return _texts(values.get("accept"), output.full_uri(RESOLVED))


def remember(output: Folder, rules: Sequence[str]) -> None:
    """Write down which rules decided."""
    if tuple(rules) != rules_of_job(output):
        text = yaml.safe_dump({"accept": list(rules)}, allow_unicode=True)
        output.write(NAME, f"{ABOUT}{text}".encode())
    elif output.exists(NAME):
        output.remove(NAME)


def _texts(values: object, where: str) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise JobError(f"{where}: accept is {values!r}; expected a list of rules")
    return tuple(values)
