"""A judge that runs here: any image-text-to-text model that transformers opens.

Safetensors only, and no code from its folder, as for every model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.quality.fingerprints import WrongModel, model_fingerprint
from pipeline.quality.judge.answer import BadAnswer, NoAnswer
from pipeline.quality.judge.question import Question

MOST_TOKENS = 512
"""Of an answer. What is asked for has under 100."""


@dataclass
class LocalModel:
    """A model and its processor, which are loaded by the first question.

    Args:
        location: a folder or Hub name.
        device: a torch device.
        deadline_s: seconds that an answer may take; looked at between tokens.
    """

    location: str
    device: str
    deadline_s: float
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False)
    _broken: NoAnswer | None = field(default=None, repr=False)
    _identity: str = field(default="", repr=False)

    def check(self) -> None:
        """Look at the model without its weights.

        Raises:
            WrongModel: it cannot be opened, or is of another kind.
        """
        _check(self.location)

    def name(self) -> str:
        """As the settings name it."""
        return self.location

    def identity(self) -> str:
        """What stands for its files. Raises WrongModel where there are none."""
        if not self._identity:
            self._identity = model_fingerprint(self.location)
        return self._identity

    def answer(self, asked: Question) -> str:
        """Greedy decoding of the model's answer.

        Raises:
            NoAnswer: the model does not load, or is too slow.
            BadAnswer: it goes on and on.
        """
        model, processor = self._open()
        began = time.monotonic()
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [_part(one) for one in asked]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, dtype=model.dtype)  # of floats alone
        tokens = model.generate(
            **inputs, do_sample=False, max_new_tokens=MOST_TOKENS, max_time=self.deadline_s
        )[0, inputs["input_ids"].shape[1] :]
        seconds = time.monotonic() - began
        if seconds > self.deadline_s:
            raise NoAnswer(
                f"judge {self.location}: no answer in {self.deadline_s:g} s; a higher "
                "score.judge_deadline_s or fewer score.judge_frames help"
            )
        if len(tokens) >= MOST_TOKENS:
            raise BadAnswer(f"it is cut off after {MOST_TOKENS} tokens")
        text: str = processor.decode(tokens, skip_special_tokens=True)
        return text

    def _open(self) -> tuple[Any, Any]:
        """The model and its processor. What failed once is not tried again for each pair."""
        if self._broken:
            raise self._broken
        if self._loaded is None:
            try:
                self._loaded = _load(self.location, self.device)
            except (OSError, ValueError, ImportError, RuntimeError) as error:
                self._broken = NoAnswer(f"judge {self.location}: {_first_line(error)}")
                raise self._broken from error
        return self._loaded


def _check(location: str) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KINDS,
    )

    if location.startswith(("/", ".")) and not Path(location).is_dir():
        raise WrongModel(
            f"{location}: there is no such folder; expected one that transformers opens, a name on "
            "the Hugging Face Hub, or the URL of a server, such as http://host:8000/v1"
        )
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise WrongModel(
            f"{location}: not a model that transformers can open: {_first_line(error)}"
        ) from error
    if config.model_type not in KINDS:
        raise WrongModel(
            f"{location}: a model of type {config.model_type}; expected one that transformers "
            "opens with AutoModelForImageTextToText"
        )


def _load(location: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(location, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(
        location, trust_remote_code=False, use_safetensors=True, dtype="auto"
    )
    return model.eval().to(device), processor


def _part(one: Any) -> dict[str, Any]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    return {"type": "image", "image": one}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
