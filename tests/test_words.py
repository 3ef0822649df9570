"""One word for each thing: the private words that we replaced do not come back.

Identifiers, strings, comments and docstrings count, in any case and with plural or tense as the
table says. `_` and capitals inside a name end a word: `owed_edits` and `OwedEdits` hold `owed`.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "cluster", "jobs")
SUFFIXES = {".py", ".js", ".css", ".html"}
PAGES = ("README.md", "CHANGELOG.md", "docs/*.md")


@dataclass(frozen=True)
class Word:
    """A word that we no longer use.

    Args:
        pattern: a regular expression of whole words; a space stands for any gap between two words,
            the end of a comment's line included.
        instead: what to write.
        names_only: it is good English in a text, and no name for a thing of ours.
        under: the folders that it is looked for in; everywhere by default.
    """

    pattern: str
    instead: str
    names_only: bool = False
    under: tuple[str, ...] = ("",)


WORDS = (
    Word("ow(e|es|ed)", "pending"),
    Word("travell?ers?", "passthrough (columns)"),
    Word("mend(s|ed|ing)?", "repair, repaired"),
    Word("unfit", "needs restart"),
    Word("meetings?", "rendezvous (file)"),
    Word("last words", "last log lines"),
    Word("walk(s|ed|ing)?", "denoise, denoising steps"),
    Word("(is|are|was|were|be|been|being|it|not) told", "reported, given, known"),
    Word("told", "reported", names_only=True),
    Word("said", "reported, message", names_only=True),
    Word(r"def know|(?<=\.)know(?=\()", "known prompts"),
    Word("attends(?! to)", "reference index"),
    Word("kept", "reference keys and values", names_only=True, under=("pipeline/model",)),
    Word("(half|halves)", "cfg_rank, cfg_ranks", names_only=True, under=("pipeline", "cluster")),
    Word(
        "(edit|positive|negative|reference|each|this|both) (half|halves)"
        "|halves of (classifier-free )?guidance|half of (the )?(branches|group)",
        "cfg rank, branch, prompt",
        under=("pipeline", "cluster", "README.md", "docs"),
    ),
)


@dataclass(frozen=True)
class Harmless:
    """A use of one of the words that stays.

    Args:
        pattern: a regular expression of the use, in the text as it stands.
        reason: why it is no private word there.
        under: the file or folder that it is allowed in; everywhere by default.
    """

    pattern: str
    reason: str
    under: str = ""


HARMLESS = (
    Harmless(r"\b(os|ast|fs)\.walk\b", "a function of a library"),
    Harmless(r"\btold apart\b", "plain English for: can be distinguished"),
    Harmless(r"\.half\(\)", "torch's cast to 16 bits"),
    Harmless(
        r"`\w+` (is|are) (now|called) `\w+`", "a renamed thing, for its users", "CHANGELOG.md"
    ),
)

GAP = r"[\s#*\"'_/]+"


@cache
def texts() -> dict[str, str]:
    """The text of each file that the words are looked for in, by its path."""
    code = (
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*"))
        if path.suffix in SUFFIXES
    )
    pages = (path for pattern in PAGES for path in sorted(ROOT.glob(pattern)))
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in (*code, *pages)}


def split(text: str) -> str:
    """A text whose names are parted into words; no line gets another number."""
    return re.sub(r"_|(?<=[a-z0-9])(?=[A-Z])", " ", text)


def names_of(text: str) -> str:
    """The names in Python source, each on its line."""
    lines = [""] * (text.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            lines[token.start[0] - 1] += f"{token.string} , "
    return "\n".join(lines)


def without_harmless(path: str, text: str) -> str:
    for use in HARMLESS:
        if path.startswith(use.under):
            text = re.sub(use.pattern, lambda m: re.sub(r"[^\n]", "-", m.group()), text)
    return text


def found(path: str, text: str) -> Iterator[str]:
    """The uses of words of the table in a text: place, what stands there, what to write."""
    text = without_harmless(path, text)
    for word in WORDS:
        if not path.startswith(word.under) or (word.names_only and not path.endswith(".py")):
            continue
        looked_at = split(names_of(text) if word.names_only else text)
        pattern = rf"(?<![^\W_])({word.pattern.replace(' ', GAP)})(?![^\W_])"
        for match in re.finditer(pattern, looked_at, re.IGNORECASE):
            line = looked_at.count("\n", 0, match.start()) + 1
            use = " ".join(match.group().split())
            yield f"{path}:{line}: {use!r}: write {word.instead}"


@pytest.mark.parametrize("room", [*PACKAGES, "the pages"])
def test_no_private_word_is_left_in(room: str) -> None:
    pages = room not in PACKAGES
    wrong = [
        use
        for path, text in texts().items()
        if pages == path.endswith(".md") and (pages or path.startswith(f"{room}/"))
        for use in dict.fromkeys(found(path, text))
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    "text",
    [
        "owed_edits = 1",
        "class Owed: ...",
        "def count_owed(): ...",
        "# nothing is owed",
        "def travellers(table): ...",
        "# whatever can be mended",
        "UNFIT = 'unfit'",
        "MEETING = 'RETAKE_MEETING'",
        "error = 'its last words: none'",
        "# its last\n# words",
        "WALKS = 3",
        "# two edits walk in lockstep",
        "'the walked steps'",
        "# four walks",
        "self.halves = 2",
        "def half(self): ...",
        "mine = halves[self.group.half]",
        "# the negative half is computed once",
        "attends = [0]",
        "plan.kept = {}",
        "Kept = dict",
        "# the driver is told",
        "# it is\n    # told twice",
        "told = True",
        "process.know([''])",
        "def know(self, prompts): ...",
        "said = str(error)",
    ],
)
def test_it_finds(text: str) -> None:
    assert list(found("pipeline/model/example.py", text))


@pytest.mark.parametrize(
    "text",
    [
        "for folder, _, names in os.walk(root): ...",
        "for node in ast.walk(tree): ...",
        "# half an hour, half a pixel, and the first half of the steps",
        "# the stored trajectories are kept",
        "# the edit branch attends to the reference",
        "known = set()",
        "# which protocols fsspec knows",
        "# told apart by a digest",
        "error = 'the message said so'",
        "weights = model.half()",
        "allowed = showed = followed = 1",
        "recommended = amended = 1",
        "sidewalk = 1",
    ],
)
def test_it_leaves_plain_english_alone(text: str) -> None:
    assert not list(found("pipeline/model/example.py", text))


def test_a_renamed_thing_may_be_named_in_the_changelog() -> None:
    text = "- `count_owed` is now `count_pending`.\n"
    assert not list(found("CHANGELOG.md", text))
    assert list(found("README.md", text))
