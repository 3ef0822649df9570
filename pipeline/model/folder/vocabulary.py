"""The vocabulary of a checkpoint's tokenizer: there, whole, of the text encoder's size.

Without its vocabulary transformers builds a tokenizer that makes `<unk>` of every word, and says
nothing: all prompts are then equal. The libraries below transformers read the files here:
sentencepiece for `spiece.model`, tokenizers for `tokenizer.json`. Their imports take milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.configuration import (
    TEXT_ENCODER,
    TOKENIZER,
    Configuration,
    download_hint,
    read_json,
)

PIECES = "tokenizer/spiece.model"
SERIALISED = "tokenizer/tokenizer.json"
T5_CLASSES = ("T5Tokenizer", "T5TokenizerFast")
BYTES_CLASS = "ByT5Tokenizer"
"""A tokenizer of bytes: it needs no vocabulary."""
SPECIAL = {"<pad>", "</s>", "<unk>"}

EXTRA_IDS = {BYTES_CLASS: 125, **dict.fromkeys(T5_CLASSES, 100)}
"""The entries `<extra_id_*>` that a tokenizer adds where its configuration does not say."""
SPARE = 256
"""So many rows of an embedding may belong to no entry: sizes are rounded up (32100 to 32128)."""
TRIED_WORDS = 50


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer's file holds.

    Args:
        file: its name in the checkpoint's folder.
        entries: the entries, by their ids.
        unknown: the id of what is not in it; None where everything can be encoded.
        encode: the ids of a text.
    """

    file: str
    entries: Sequence[str]
    unknown: int | None
    encode: Callable[[str], Sequence[int]]


def check_vocabulary(folder: Path, config: Configuration) -> None:
    """Check that the tokenizer has a whole vocabulary, which fits the text encoder.

    Raises:
        UnsupportedCheckpoint: with the file, what was found and what was expected.
    """
    kind = str(config.tokenizer.get("tokenizer_class"))
    extra = _extra_entries(kind, config.tokenizer)
    rows = int(config.text_encoder["vocab_size"])
    if kind == BYTES_CLASS:
        return _check_size(TOKENIZER, 256 + len(SPECIAL | extra), rows)
    if (folder / SERIALISED).is_file():
        vocabulary = _read_serialised(folder, kind)
    elif kind in T5_CLASSES and (folder / PIECES).is_file():
        vocabulary = _read_pieces(folder)
    else:
        raise UnsupportedCheckpoint(_no_vocabulary(folder, kind))
    if not encodes_words(vocabulary.entries, vocabulary.encode, vocabulary.unknown):
        raise UnsupportedCheckpoint(
            f"{vocabulary.file} encodes no words ({len(vocabulary.entries)} entries): every prompt "
            f"would be encoded as <unk>. Fetch it again{download_hint(folder)}"
        )
    _check_special_ids(vocabulary, config)
    _check_added_ids(vocabulary, config.tokenizer)
    _check_size(vocabulary.file, len({*vocabulary.entries, *extra}), rows)
    return None


def encodes_words(
    entries: Iterable[str], encode: Callable[[str], Sequence[int]], unknown: int | None
) -> bool:
    """Whether a tokenizer makes of its own words anything but the entry for unknown ones."""
    words = (entry.strip("▁ ") for entry in entries)
    tried = islice((w for w in words if w.isalpha() and not w.startswith("<")), TRIED_WORDS)
    return any(ids and unknown not in ids for ids in map(encode, tried))


def _no_vocabulary(folder: Path, kind: str) -> str:
    if not (folder / PIECES).is_file():
        found = sorted(path.name for path in (folder / "tokenizer").iterdir())
        return (
            f"{PIECES} is missing (tokenizer/ holds {', '.join(found)}); without its vocabulary "
            "every prompt would be encoded as <unk>. Expected spiece.model or tokenizer.json: copy "
            f"it from the base model (zai-org/CogVideoX-5b){download_hint(folder)}"
        )
    return (
        f"{TOKENIZER} has tokenizer_class {kind}, which does not read {PIECES}; expected "
        "T5Tokenizer. Take both files from one model"
    )


def _read_pieces(folder: Path) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(folder / PIECES))
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsupportedCheckpoint(
            f"{PIECES} ({(folder / PIECES).stat().st_size:,} bytes) is no SentencePiece model, or "
            f"not all of one. Fetch it again{download_hint(folder)}"
        ) from error
    entries = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    return Vocabulary(PIECES, entries, pieces.unk_id(), pieces.encode)


def _read_serialised(folder: Path, kind: str) -> Vocabulary:
    from tokenizers import Tokenizer

    model = read_json(folder, SERIALISED).get("model")
    model = model if isinstance(model, Mapping) else {}
    if kind in T5_CLASSES and model.get("type", "Unigram") != "Unigram":
        raise UnsupportedCheckpoint(
            f"{SERIALISED} holds a {model['type']} model and {TOKENIZER} has tokenizer_class "
            f"{kind}, which needs a Unigram model. Take both files from one model"
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / SERIALISED))
    except Exception as error:  # tokenizers raises plain Exception
        raise UnsupportedCheckpoint(
            f"{SERIALISED} is no tokenizer: {error}. Fetch it again{download_hint(folder)}"
        ) from error
    by_id = sorted((i, entry) for entry, i in tokenizer.get_vocab(with_added_tokens=True).items())
    unknown = model.get("unk_id")
    if unknown is None:
        unknown = tokenizer.token_to_id(str(model.get("unk_token") or "<unk>"))
    return Vocabulary(
        SERIALISED,
        [entry for _, entry in by_id],
        unknown,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )


def _extra_entries(kind: str, tokenizer: Mapping[str, Any]) -> set[str]:
    """The entries that transformers adds to those of the vocabulary's file."""
    count = tokenizer.get("extra_ids", EXTRA_IDS.get(kind, 0))
    named = {f"<extra_id_{i}>" for i in range(int(count or 0))}
    return named | {_text(token) for token in _added(tokenizer).values()}


def _added(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    added = tokenizer.get("added_tokens_decoder")
    return added if isinstance(added, Mapping) else {}


def _text(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, Mapping) else str(token)


def _check_special_ids(vocabulary: Vocabulary, config: Configuration) -> None:
    """The end of a text and the padding stand where the text encoder learned them.

    Other families have as many entries as T5 in another order.
    """
    for role in ("pad_token", "eos_token"):
        number, token = config.text_encoder.get(f"{role}_id"), config.tokenizer.get(role)
        if not isinstance(number, int) or not 0 <= number < len(vocabulary.entries) or not token:
            continue
        if (found := vocabulary.entries[number]) != _text(token):
            raise UnsupportedCheckpoint(
                f"{vocabulary.file} has {found!r} as entry {number}; {TEXT_ENCODER} has "
                f"{role}_id {number}, which {TOKENIZER} calls {_text(token)!r}. Take the tokenizer "
                "and the text encoder of one model"
            )


def _check_added_ids(vocabulary: Vocabulary, tokenizer: Mapping[str, Any]) -> None:
    """The tokens that the configuration adds are numbered from the end of the vocabulary."""
    known = set(vocabulary.entries)
    ids = [int(i) for i, token in _added(tokenizer).items() if _text(token) not in known]
    if ids and min(ids) != len(vocabulary.entries):
        raise UnsupportedCheckpoint(
            f"{vocabulary.file} has {len(vocabulary.entries)} entries and {TOKENIZER} numbers the "
            f"tokens after them from {min(ids)}; expected {min(ids)} entries: the file is not "
            "whole or of another model. Fetch both from one model"
        )


def _check_size(file: str, entries: int, rows: int) -> None:
    if not rows - SPARE <= entries <= rows:
        raise UnsupportedCheckpoint(
            f"{file} has {entries} entries with those that the tokenizer adds; {TEXT_ENCODER} has "
            f"vocab_size {rows}; expected at most {SPARE} fewer and none more. Take the tokenizer "
            "and the text encoder of one model"
        )
