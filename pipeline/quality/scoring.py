"""The scores of an edit: every measure that a job asks for, by the one function that computes them.

The stage of a job and `retake metrics` both call `Scorer.score`. A measure that fails is a record
with `error`: it never takes the other measures with it, nor the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline.quality import frames
from pipeline.quality.fingerprints import WrongModel, of_measures
from pipeline.quality.similarity import ClipModel, ImageModel
from pipeline.redaction import log_error, redacted
from pipeline.scores import ClipScores, DinoScores, FrameScores, JudgeScores, Scores
from pipeline.settings import ScoreSettings

if TYPE_CHECKING:
    from pipeline.quality.judge import Judge

KINDS = tuple(field.name for field in fields(Scores))
RECORDS = {"frames": FrameScores, "clip": ClipScores, "dino": DinoScores, "judge": JudgeScores}


@dataclass(frozen=True)
class Pair:
    """An edit with its source, as they are measured.

    Args:
        source, edit: their frames as stored, uint8 [F, H, W, 3], RGB.
        mask: the mask as it was used, float32 [F, H, W], 0 to 1; None without one.
        prompt: of the edit.
        source_prompt: of the source; None where it has none.
        instruction: what a person would ask for; None where the edit has none.
    """

    source: Tensor
    edit: Tensor
    mask: Tensor | None = None
    prompt: str = ""
    source_prompt: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Scorer:
    """Everything that a job measures, opened.

    Args:
        settings: what is measured.
        device: of the models; frames are measured on the CPU.
        known: the fingerprint of each kind that is measured; empty while a judge's server that is
            to name its model does not answer.
        clip, dino, judge: the models; None for what is not asked for.
    """

    settings: ScoreSettings
    device: str
    known: dict[str, str]
    clip: ClipModel | None = None
    dino: ImageModel | None = None
    judge: Judge | None = None

    @classmethod
    def load(cls, settings: ScoreSettings, device: str = "cpu") -> Scorer:
        """Open the models that some settings ask for.

        A judge's server that is away now is asked again later: the other kinds go on without it.

        Args:
            device: a torch device.

        Raises:
            WrongModel: one cannot be opened, or is of another kind; the text names it.
        """
        known = of_measures(settings)
        clip = ClipModel.load(settings.clip, device) if settings.clip else None
        dino = ImageModel.load(settings.dino, device) if settings.dino else None
        judge = None
        if settings.judge:
            from pipeline.quality.judge import Judge

            judge = Judge.load(settings, device)
            known["judge"] = _of_now(judge)
        return cls(settings, device, known, clip, dino, judge)

    def fingerprints(self) -> dict[str, str]:
        """What stands for each kind that is measured: model, settings, and our own code."""
        if self.judge and not self.known["judge"]:
            self.known["judge"] = _of_now(self.judge)
        return dict(self.known)

    def lacking(self, known: Scores) -> list[str]:
        """The kinds that some scores lack, or have of another fingerprint.

        While nobody can say what the judge's is, what it said before stays.
        """
        has = {kind: getattr(getattr(known, kind), "fingerprint", None) for kind in KINDS}
        return [
            kind
            for kind, wanted in self.fingerprints().items()
            if not has[kind] or (wanted and has[kind] != wanted)
        ]

    def score(self, pair: Pair, kinds: Collection[str] | None = None) -> Scores:
        """Measure a pair.

        Args:
            kinds: of those that the settings ask for; all by default.
        """
        asked = [kind for kind in self.known if kinds is None or kind in kinds]
        return Scores(**{kind: self._score(kind, pair) for kind in asked})

    def _score(self, kind: str, pair: Pair) -> Any:
        measures: dict[str, Callable[[Pair], Any]] = {
            "frames": self._frames,
            "clip": self._clip,
            "dino": self._dino,
            "judge": self._judge,
        }
        try:
            return measures[kind](pair)
        except Exception as error:
            # No fingerprint: memory or a server may do better in the next run, which tries again.
            log_error(error)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return RECORDS[kind](error=redacted(text).rstrip(": ")[:500])

    def _frames(self, pair: Pair) -> FrameScores:
        found = frames.measure(pair.source, pair.edit, pair.mask)
        return FrameScores(**found, fingerprint=self.known["frames"])

    def _clip(self, pair: Pair) -> ClipScores:
        assert self.clip
        found = self.clip.score(pair.source, pair.edit, pair.prompt, pair.source_prompt)
        return ClipScores(**found, model=self.settings.clip, fingerprint=self.known["clip"])

    def _dino(self, pair: Pair) -> DinoScores:
        assert self.dino
        found = self.dino.score(pair.source, pair.edit)
        return DinoScores(**found, model=self.settings.dino, fingerprint=self.known["dino"])

    def _judge(self, pair: Pair) -> JudgeScores:
        assert self.judge
        return self.judge.score(pair)


def _of_now(judge: Judge) -> str:
    """A judge's fingerprint; empty where its server does not answer."""
    try:
        return judge.fingerprint()
    except WrongModel:  # each pair's scores say why
        return ""
