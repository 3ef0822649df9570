"""The vocabulary: a tokenizer that makes words of words, and fits the text encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.folder.configuration import Configuration
from pipeline.model.folder.vocabulary import check_vocabulary, encodes_words
from pipeline.model.text_encoder import encode_prompt
from tests.small_models import (
    EXTRA_IDS,
    PIECES,
    T5_ROWS,
    change_json,
    write_checkpoint,
    write_json,
    write_tokenizer,
)

SPIECE = "tokenizer/spiece.model"
CONFIG = "tokenizer/tokenizer_config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 791656\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 5b checkpoint whose tokenizer has the files of the published one."""
    return write_checkpoint(tmp_path_factory.mktemp("pieces") / "5b", "5b", pieces=True)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A folder with such a tokenizer alone."""
    write_tokenizer(tmp_path / "pieces" / "tokenizer")
    return tmp_path / "pieces"


@pytest.fixture
def serialised(whole: Path, tmp_path: Path) -> Path:
    """The same tokenizer as transformers saves it."""
    from transformers import AutoTokenizer

    saved = tmp_path / "serialised"
    AutoTokenizer.from_pretrained(whole / "tokenizer").save_pretrained(saved / "tokenizer")
    assert not (saved / SPIECE).exists()
    return saved


def check(folder: Path, rows: int = T5_ROWS) -> None:
    tokenizer = json.loads((folder / CONFIG).read_text())
    check_vocabulary(folder, Configuration({}, {}, {}, {"vocab_size": rows}, tokenizer))


def refused(folder: Path, answer: str, rows: int = T5_ROWS) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=answer):
        check(folder, rows)


# A whole one


def test_the_published_files_make_embeddings_that_differ(whole: Path) -> None:
    info = open_checkpoint(str(whole))
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    assert type(tokenizer).__name__ == "T5Tokenizer"
    assert len(tokenizer) == PIECES + EXTRA_IDS
    red, green = (encode_prompt(tokenizer, encoder, f"a {c} cube", 20) for c in ("red", "green"))
    assert (red - green).abs().max() > 0.1


def test_a_vocabulary_that_is_checked_is_the_one_that_transformers_reads(whole: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(whole / "tokenizer")
    ours = SentencePieceProcessor(model_file=str(whole / SPIECE))
    text = "a red cube on a green table"
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)


def test_the_fingerprint_changes_with_the_words(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    model = SentencePieceProcessor(model_file=str(copy / SPIECE))
    word = next(w for w in map(model.id_to_piece, range(PIECES)) if w.isalpha() and len(w) == 2)
    data = (copy / SPIECE).read_bytes()
    (copy / SPIECE).write_bytes(data.replace(b"\n\2" + word.encode(), b"\n\2qz", 1))
    assert open_checkpoint(str(copy)).fingerprint != open_checkpoint(str(whole)).fingerprint


@pytest.mark.parametrize("rows", [PIECES + EXTRA_IDS, T5_ROWS, PIECES + EXTRA_IDS + 256])
def test_rows_that_no_entry_has_are_fine(pieces: Path, serialised: Path, rows: int) -> None:
    check(pieces, rows)
    check(serialised, rows)


def test_a_tokenizer_of_bytes_needs_no_vocabulary(checkpoints: dict[str, Path]) -> None:
    check(checkpoints["5b"], 384)
    config = json.loads((checkpoints["5b"] / CONFIG).read_text())
    assert config["tokenizer_class"] == "ByT5Tokenizer"
    refused(checkpoints["5b"], "has 384 entries .* has vocab_size 383", 383)


# One that would make <unk> of words


def test_a_tokenizer_without_its_vocabulary_is_refused(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / SPIECE).unlink()
    with pytest.raises(UnsupportedCheckpoint) as error:
        open_checkpoint(str(copy))
    text = str(error.value)
    assert f"{SPIECE} is missing (tokenizer/ holds added_tokens.json, " in text
    assert "every prompt would be encoded as <unk>" in text
    assert "copy it from the base model (zai-org/CogVideoX-5b)" in text


def test_a_pointer_to_a_vocabulary_is_refused(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    (copy / SPIECE).write_text(POINTER)
    with pytest.raises(UnsupportedCheckpoint, match=f"{SPIECE}: it is a pointer of Git LFS"):
        open_checkpoint(str(copy))


def test_what_transformers_saves_of_a_tokenizer_without_words_is_refused(
    pieces: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    (pieces / SPIECE).unlink()
    saved = tmp_path / "saved" / "tokenizer"
    empty = AutoTokenizer.from_pretrained(pieces / "tokenizer")
    assert set(empty("red cube", add_special_tokens=False).input_ids) <= {2, 3}
    empty.save_pretrained(saved)
    refused(saved.parent, r"tokenizer.json encodes no words \(\d+ entries\): every prompt")


@pytest.mark.parametrize(
    ("entries", "ids", "encodes"),
    [
        (["<unk>", "red"], {"red": [1]}, True),
        (["<unk>", "red", "▁green"], {"red": [0], "green": [1, 2]}, True),
        (["<unk>", "red"], {"red": [0]}, False),
        (["<unk>", "red"], {"red": [1, 0]}, False),
        (["<unk>", "red"], {"red": []}, False),
        (["<unk>", "▁", "<extra_id_0>", "!"], {}, False),
    ],
)
def test_words_are_encoded_where_one_comes_out_known(
    entries: list[str], ids: dict[str, list[int]], encodes: bool
) -> None:
    assert encodes_words(entries, ids.__getitem__, 0) == encodes


def test_a_tokenizer_that_never_meets_its_words_is_refused(tmp_path: Path) -> None:
    """Its vocabulary is whole; what it does to a text before makes it useless."""
    copy = Path(shutil.copytree(open_checkpoint("embedded").path, tmp_path / "copy"))
    change_json(copy / "tokenizer/tokenizer.json", normalizer={"type": "Prepend", "prepend": "x"})
    with pytest.raises(UnsupportedCheckpoint, match="every prompt would be encoded as <unk>"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.9])
def test_part_of_a_vocabulary_is_refused(pieces: Path, part: float) -> None:
    data = (pieces / SPIECE).read_bytes()
    (pieces / SPIECE).write_bytes(data[: int(part * len(data))])
    refused(pieces, "spiece.model")


def test_a_vocabulary_that_ends_between_two_words_is_refused(pieces: Path) -> None:
    """It is a whole model of fewer words, which sentencepiece opens."""
    data = (pieces / SPIECE).read_bytes()
    end = 0
    for _ in range(PIECES // 2):  # each piece: a tag, a length below 128, so many bytes
        assert data[end] == 0x0A
        end += 2 + data[end + 1]
    (pieces / SPIECE).write_bytes(data[:end])
    refused(pieces, f"has {PIECES // 2} entries and {CONFIG} numbers .* expected {PIECES} entries")


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Unigram"', "[]"])
def test_part_of_a_serialised_vocabulary_is_refused(serialised: Path, content: str) -> None:
    (serialised / "tokenizer/tokenizer.json").write_text(content)
    refused(serialised, "tokenizer.json (is no|holds a)")


# One of another model


@pytest.mark.parametrize("rows", [32128, PIECES + EXTRA_IDS - 1, PIECES + EXTRA_IDS + 257])
def test_a_vocabulary_of_another_size_is_refused(pieces: Path, serialised: Path, rows: int) -> None:
    answer = f"has {PIECES + EXTRA_IDS} entries .* has vocab_size {rows}; expected at most 256"
    refused(pieces, f"spiece.model {answer}", rows)
    refused(serialised, f"tokenizer.json {answer}", rows)


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "does not read tokenizer/spiece.model"),
        ({"tokenizer_class": None}, "tokenizer_class None, which does not read"),
    ],
)
def test_a_class_that_does_not_read_the_vocabulary_is_refused(
    pieces: Path, values: dict[str, Any], answer: str
) -> None:
    change_json(pieces / CONFIG, **values)
    refused(pieces, f"{answer}.*expected T5Tokenizer|{answer}")


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
@pytest.mark.parametrize("kind", ["pieces", "serialised"])
def test_a_vocabulary_in_another_order_is_refused(
    role: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """Llama's has 32000 pieces too."""
    folder = request.getfixturevalue(kind)
    tokenizer = json.loads((folder / CONFIG).read_text())
    encoder = {"vocab_size": T5_ROWS, "pad_token_id": 0, "eos_token_id": 1}
    check_vocabulary(folder, Configuration({}, {}, {}, encoder, tokenizer))
    encoder[f"{role}_id"] = 2
    with pytest.raises(UnsupportedCheckpoint, match=f"has '<unk>' as entry 2; .* {role}_id 2"):
        check_vocabulary(folder, Configuration({}, {}, {}, encoder, tokenizer))


def test_a_vocabulary_of_another_kind_of_model_is_refused(serialised: Path) -> None:
    content = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}
    write_json(serialised / "tokenizer/tokenizer.json", content)
    refused(serialised, "holds a WordLevel model .* needs a Unigram model")
