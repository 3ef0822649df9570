"""One judge for all pairs: asks, reads the answer, asks once more, and never raises for a pair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pipeline.quality.fingerprints import WrongModel
from pipeline.quality.judge.answer import BadAnswer, NoAnswer, read_answer
from pipeline.quality.judge.endpoint import Endpoint, is_url
from pipeline.quality.judge.local import LocalModel
from pipeline.quality.judge.question import Question, again, fingerprint, question
from pipeline.redaction import log_error, redacted
from pipeline.scores import JudgeScores
from pipeline.settings import ScoreSettings

if TYPE_CHECKING:
    from torch import Tensor

MOST_ASKED = 2
"""Times that one pair is asked about where the answer is not what was asked for."""


class SourceAndEdit(Protocol):
    """What the judge looks at of a pair (`pipeline.quality.scoring.Pair`).

    Args:
        source, edit: uint8 [F, H, W, 3], RGB.
        prompt, source_prompt: what they show; the source's may be empty or None.
        instruction: what a person would ask for; may be empty or None.
    """

    @property
    def source(self) -> Tensor: ...
    @property
    def edit(self) -> Tensor: ...
    @property
    def prompt(self) -> str: ...
    @property
    def source_prompt(self) -> str | None: ...
    @property
    def instruction(self) -> str | None: ...


class Asked(Protocol):
    """A model that answers questions about images, wherever it runs."""

    def name(self) -> str:
        """The model's name, for results. Raises NoAnswer where a server must be asked for it."""
        ...

    def identity(self) -> str:
        """What stands for the model and its weights. Raises NoAnswer as `name`."""
        ...

    def answer(self, asked: Question) -> str:
        """The answer in words. Raises NoAnswer."""
        ...


@dataclass(frozen=True)
class Judge:
    """A model, and how many frames of each clip it is shown.

    Args:
        model: answers.
        frames: evenly chosen of source and edit, each.
    """

    model: Asked
    frames: int

    @classmethod
    def load(cls, settings: ScoreSettings, device: str = "cpu") -> Judge:
        """The judge that the settings name. A local model's weights are loaded by the first
        question; a server is asked nothing yet.

        Raises:
            WrongModel: the settings name none, or a folder without an image-text-to-text model, or
                something that is no URL.
        """
        model = _named(settings, device)
        if isinstance(model, LocalModel):
            model.check()
        return cls(model, settings.judge_frames)

    def fingerprint(self) -> str:
        """16 hex digits for the model, the prompt and how it is asked, without loading weights.

        A server without `judge_model` is asked for its models, once.

        Raises:
            WrongModel: the server does not answer that.
        """
        return _fingerprint(self.model, self.frames)

    def score(self, pair: SourceAndEdit) -> JudgeScores:
        """What the judge says of a pair; where it says nothing of use, `error` says why.

        The fingerprint is left out where asking again in another run may help: the server was not
        there, or late.
        """
        try:
            return self._score(pair)
        except NoAnswer as error:
            return JudgeScores(error=str(error))
        except Exception as error:  # one pair must not end the scoring of the others
            log_error(error)
            return JudgeScores(error=redacted(f"judge: {type(error).__name__}: {error}"))

    def _score(self, pair: SourceAndEdit) -> JudgeScores:
        known = JudgeScores(
            model=redacted(self.model.name()),
            fingerprint=fingerprint(self.model.identity(), self.frames),
        )
        asked = question(
            pair.source,
            pair.edit,
            self.frames,
            pair.prompt,
            pair.source_prompt or "",
            pair.instruction or "",
        )
        wrong = ""
        for _ in range(MOST_ASKED):
            try:
                scores = read_answer(self.model.answer(again(asked, wrong) if wrong else asked))
                return replace(scores, model=known.model, fingerprint=known.fingerprint)
            except BadAnswer as error:
                wrong = str(error)
            except NoAnswer as error:
                lasting = known.fingerprint if error.final else None
                return replace(known, fingerprint=lasting, error=str(error))
        return replace(
            known,
            error=redacted(f"judge: no answer of {MOST_ASKED} could be used; the last: {wrong}"),
        )


def fingerprint_of(settings: ScoreSettings) -> str:
    """The fingerprint of the judge that the settings name, without importing torch.

    Raises:
        WrongModel: there is no such folder, Hub name or server.
    """
    return _fingerprint(_named(settings, "cpu"), settings.judge_frames)


def _named(settings: ScoreSettings, device: str) -> Endpoint | LocalModel:
    if settings.judge is None:
        raise WrongModel("score.judge: expected a folder, a Hub name or a URL; it is not set")
    limit = settings.judge_deadline_s
    if is_url(settings.judge):
        return Endpoint.at(settings.judge, settings.judge_model, deadline_s=limit)
    return LocalModel(settings.judge, device, limit)


def _fingerprint(model: Asked, frames: int) -> str:
    try:
        return fingerprint(model.identity(), frames)
    except NoAnswer as error:
        raise WrongModel(f"score.judge: {error}") from error
