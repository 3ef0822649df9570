"""What a job scores, checked before anything starts: without torch, and without a server asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from jobs.jobfile.paths import SCORE_MODELS
from pipeline.quality.fingerprints import TYPES, WrongModel, fingerprints
from pipeline.quality.judge.endpoint import is_url
from pipeline.settings import ScoreSettings


def model_folders(score: ScoreSettings) -> dict[str, str]:
    """The models by the setting that names them, but for a judge that is a server."""
    named = {name: getattr(score, name) for name in SCORE_MODELS if getattr(score, name)}
    return {name: place for name, place in named.items() if not (name == "judge" and is_url(place))}


def score_problems(score: ScoreSettings) -> list[str]:
    """What is wrong with the section `score`, a line each."""
    found = []
    if score.judge_model and not (score.judge and is_url(score.judge)):
        judge = f"score.judge is {score.judge!r}" if score.judge else "score.judge is not set"
        found.append(
            f"score.judge_model: is the name of a model at a server, and {judge}; set score.judge "
            "to the server's URL, such as http://host:8000/v1, or leave out score.judge_model"
        )
    for name, place in model_folders(score).items():
        if problem := _problem(name, place):
            found.append(f"score.{name}: {problem}")
    return found


def wanted_scores(score: ScoreSettings, note: Callable[[str], None]) -> dict[str, str]:
    """The fingerprint of each kind of score that edits of earlier runs should have.

    Args:
        note: gets why a kind has none: a server that does not answer now. Edits without scores of
            this kind wait for the next run.
    """
    try:
        return fingerprints(score)
    except WrongModel as error:
        note(f"score: {error}. Edits of earlier runs get no scores by it in this run")
    apart = ScoreSettings(frames=score.frames, clip=score.clip, dino=score.dino)
    try:
        return fingerprints(apart)
    except WrongModel:
        return fingerprints(ScoreSettings(frames=score.frames))


def _problem(name: str, place: str) -> str:
    """What is wrong with a model's folder; a name on the Hub is looked up by who scores."""
    folder = Path(place)
    if not folder.is_dir():
        if not folder.is_absolute():
            return ""
        return (
            f"{place}: there is no such folder; expected one that transformers opens, or a name "
            "on the Hugging Face Hub"
        )
    try:
        kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    except FileNotFoundError:
        return f"{place}: has no config.json; expected a folder that transformers opens"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{place}/config.json: names no model type: {type(error).__name__}: {error}"
    if name in TYPES and kind not in TYPES[name]:
        return f"{place}: a model of type {kind}; expected {' or '.join(TYPES[name])}"
    return ""
