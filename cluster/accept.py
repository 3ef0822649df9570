"""The rules of `accept`: which edits are good enough, by their numbers.

A rule is `NAME OP NUMBER`, such as `background_psnr_db >= 30`. The name is a number of a result:

    scores.frames.background_psnr_db    the column, with dots to what is inside of it
    frames.background_psnr_db           without `scores.`
    frames_background_psnr_db           with `_` for each dot
    background_psnr_db                  the last part alone, where no other column ends so

An edit is accepted where every rule holds. A score that is missing rejects.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from pipeline.records import EditResult, EditSpec, VideoSpec, without_none
from pipeline.scores import Scores
from pipeline.settings import ScoreSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.job import Job

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
KINDS = tuple(field.name for field in fields(Scores))
"""The kinds of scores, each a record of `Scores` and the setting of `score` that turns it on."""
OLDER = {
    "scores.clip.text": "clip_text",
    "scores.clip.frames": "clip_frames",
    "scores.dino.source": "dino_source",
}
"""Columns that versions before kept these scores in."""
NOT_MEASURED = ": not measured"
NO_SCORE = ": no score"
"""What follows a rule's text in `rejected_for` where its number is missing: because nobody measured
the kind, or because measuring gave none."""

_HOLDS, _FAILS, _NO_SCORE, _NOT_MEASURED = range(4)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_NAME = re.compile(r"[^\W\d][\w.-]*")
_SIGNS = re.compile(r"[<>=!]+")
_EXPECTED = "expected a name, one of >= <= > < == !=, and a number, as `background_psnr_db >= 30`"
_MEANT = {"=": "==", "=>": ">=", "=<": "<=", "<>": "!=", "===": "==", "!": "!=", "!==": "!="}


class WrongRule(ValueError):
    """A rule that cannot be read; the text says why, and what was expected."""


def measured_kinds(score: ScoreSettings) -> tuple[str, ...]:
    """The kinds of scores that a job measures."""
    return tuple(kind for kind in KINDS if getattr(score, kind))


def rules_of(job: Job) -> Rules:
    """The rules of a job. They may name numbers of its manifest too, which travel to the results.

    Raises:
        WrongRule: with every rule that is wrong, a line each.
    """
    more = numbers_beside(job.files.schema) if job.accept else ()
    return Rules.parse(job.accept, kinds=measured_kinds(job.score), more=more)


def numbers_beside(schema: pa.Schema) -> list[str]:
    """The columns with numbers that a manifest or results have beside those that we declare."""
    import pyarrow as pa

    ours = {field.name for record in (EditResult, VideoSpec, EditSpec) for field in fields(record)}
    return [
        field.name
        for field in schema
        if field.name not in ours | {*OLDER.values()}
        and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        text: as its user wrote it, with single spaces.
        column: what it looks at, with dots; a number of the results.
    """

    text: str
    column: str
    op: str
    number: float

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The number of a row that it looks at."""
        value = _look_up(row, self.column)[0]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and not math.isnan(value) else None

    def outcome(self, row: Mapping[str, Any]) -> int:
        value = self.value(row)
        if value is not None:
            return _HOLDS if OPERATORS[self.op](value, self.number) else _FAILS
        return _NO_SCORE if _look_up(row, self.column)[1] else _NOT_MEASURED

    def outcomes(self, table: pa.Table) -> np.ndarray:
        """`outcome` of every row, [n] int8."""
        values, measured = _look_up_all(table, self.column)
        holds = OPERATORS[self.op](values, self.number)
        missing = np.where(measured, _NO_SCORE, _NOT_MEASURED)
        found = np.where(np.isnan(values), missing, np.where(holds, _HOLDS, _FAILS))
        return found.astype(np.int8)

    def reason(self, outcome: int) -> str:
        """What `rejected_for` says of an outcome that rejects."""
        return self.text + {_NO_SCORE: NO_SCORE, _NOT_MEASURED: NOT_MEASURED}.get(outcome, "")


@dataclass(frozen=True)
class Verdicts:
    """What the rules say of many rows.

    Args:
        decided: whether a row is of an edit that was made; the others have no verdict. [n]
        outcomes: of each rule, 0 where it holds; [rules, n].
    """

    rules: Rules
    decided: np.ndarray
    outcomes: np.ndarray

    @property
    def accepted(self) -> np.ndarray:
        """[n]; of use where `decided`."""
        good = (self.outcomes == _HOLDS).all(axis=0)
        return np.asarray(self.decided & good & bool(self.rules.rules))

    @property
    def rejects(self) -> np.ndarray:
        """Whether a rule rejects a row, [rules, n]."""
        return np.asarray((self.outcomes != _HOLDS) & self.decided)

    @property
    def without_score(self) -> np.ndarray:
        """Whether it does because its number is missing, [rules, n]."""
        return np.asarray((self.outcomes >= _NO_SCORE) & self.decided)

    def columns(self) -> tuple[pa.Array, pa.Array]:
        """The columns `accepted` and `rejected_for`."""
        import pyarrow as pa

        rejects, rules = self.rejects, self.rules.rules
        undecided = ~self.decided if rules else np.ones(len(self.decided), bool)
        accepted = pa.array(self.accepted, pa.bool_(), mask=undecided)
        ends = np.concatenate([[0], np.cumsum(rejects.sum(axis=0))]).astype(np.int32)
        rows, which = np.nonzero(rejects.T)
        known = pa.array(
            [rule.reason(outcome) for rule in rules for outcome in range(4)], pa.string()
        )
        texts = known.take(pa.array(which * 4 + self.outcomes[which, rows], pa.int64()))
        return accepted, pa.ListArray.from_arrays(pa.array(ends, pa.int32()), texts)


@dataclass(frozen=True)
class Rules:
    """The rules of a job, in its order."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(
        cls,
        texts: Iterable[str],
        *,
        kinds: Collection[str] | None = None,
        more: Iterable[str] = (),
    ) -> Rules:
        """Read rules.

        Args:
            kinds: the kinds of scores that are measured; by default a rule may name all.
            more: names of further columns with numbers: those that came with the manifest.

        Raises:
            WrongRule: with every rule that is wrong, a line each.
        """
        rules, problems = [], []
        for text in texts:
            try:
                rules.append(_parse(text, kinds, tuple(more)))
            except WrongRule as error:
                problems.append(str(error))
        if problems:
            raise WrongRule("\n".join(problems))
        return cls(tuple(rules))

    def verdict(self, row: Mapping[str, Any]) -> tuple[bool | None, tuple[str, ...]]:
        """Whether an edit is accepted, and the rules that do not hold.

        Args:
            row: of the results, as plain values by name (`dataclasses.asdict`, or from Arrow).

        Returns:
            None without rules, and of an edit that was not made.
        """
        if not self.rules or row.get("status", "ok") != "ok":
            return None, ()
        found = [(rule, rule.outcome(row)) for rule in self.rules]
        reasons = tuple(rule.reason(outcome) for rule, outcome in found if outcome != _HOLDS)
        return not reasons, reasons

    def verdicts(self, table: pa.Table) -> Verdicts:
        """`verdict` of every row of a table of results."""
        decided = np.ones(table.num_rows, bool)
        if "status" in table.column_names:
            import pyarrow.compute as pc

            is_ok = pc.fill_null(pc.equal(table["status"], "ok"), False)
            decided = is_ok.to_numpy(zero_copy_only=False)
        outcomes = [rule.outcomes(table) for rule in self.rules]
        shape = (len(self.rules), table.num_rows)
        return Verdicts(self, decided, np.array(outcomes, np.int8).reshape(shape))

    def columns(self) -> list[str]:
        """The columns of the results that the rules look at, at their top."""
        names = {rule.column.partition(".")[0] for rule in self.rules}
        names |= {OLDER[rule.column] for rule in self.rules if rule.column in OLDER}
        return sorted(names)


def _parse(text: str, kinds: Collection[str] | None, more: Sequence[str]) -> Rule:
    def wrong(why: str) -> WrongRule:
        return WrongRule(f"rule {text!r}: {why}")

    if not isinstance(text, str):
        raise wrong(_EXPECTED)
    signs = _SIGNS.findall(text)
    if re.search(r"\b(and|or|not)\b|&&|\|\|", text) or len(signs) > 1:
        raise wrong("one comparison a rule, please: all rules of a list must hold")
    if not signs:
        raise wrong(_EXPECTED)
    op = signs[0]
    if op not in OPERATORS:
        raise wrong(f"{op!r} compares nothing; " + _meant(op))
    name, _, number = (part.strip() for part in text.partition(op))
    if _is_number(name) and _NAME.fullmatch(number):
        raise wrong(f"the name comes first: `{number} {_turned(op)} {name}`")
    if not name:
        raise wrong(f"no name before {op}; {_EXPECTED}")
    if not _NAME.fullmatch(name) and name not in more:
        raise wrong(f"{name!r} is no name; {_EXPECTED}")
    column = _column(name, more, wrong)
    of_scores, _, inside = column.partition("scores.")
    kind = inside.partition(".")[0]
    if kinds is not None and kind and not of_scores and kind not in kinds:
        raise wrong(f"{column} is not measured: turn on score.{kind}")
    return Rule(f"{name} {op} {number}", column, op, _number(number, op, wrong))


def _number(text: str, op: str, wrong: Callable[[str], WrongRule]) -> float:
    if not text:
        raise wrong(f"no number after {op}")
    if _is_number(text):
        value = float(text)
        if math.isfinite(value):  # 1e999 is not
            return value
    if (first := text.split(maxsplit=1)[0]) != text and _is_number(first):
        raise wrong(f"{text!r} is no number: leave away what follows {first}")
    raise wrong(f"{text!r} is no number; expected one such as 30 or 0.1")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _meant(op: str) -> str:
    return f"did you mean {_MEANT[op]!r}?" if op in _MEANT else "expected >= <= > < == or !="


def _turned(op: str) -> str:
    return op.translate(str.maketrans("<>", "><"))


def _column(name: str, more: Sequence[str], wrong: Callable[[str], WrongRule]) -> str:
    """The column that a name means."""
    numbers, others = _declared()
    if name in numbers or name in more:
        return name
    if name in others:
        raise wrong(f"{name!r} is no number, and rules compare numbers")
    if found := _short(numbers).get(name, []):
        if len(found) == 1:
            return found[0]
        names = " or ".join(one.removeprefix("scores.") for one in found)
        raise wrong(f"{name!r} may be {names}: write which")
    if name in _short(others):
        raise wrong(f"{name!r} is no number, and rules compare numbers")
    known = {one.lower(): one for one in [*_short(numbers), *numbers, *more]}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {known[near[0]]!r}?" if near else "docs/scores.md lists what there is"
    raise wrong(f"no number {name!r} in the results; {hint}")


@cache
def _declared() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The numbers of a result row, and its other values, as names with dots."""
    numbers: list[str] = []
    others: list[str] = []
    for name, kind in _leaves(EditResult):
        (numbers if kind in (int, float) else others).append(name)
    return tuple(numbers), tuple(others)


def _leaves(record: type, above: str = "") -> Iterator[tuple[str, Any]]:
    kinds = get_type_hints(record)
    for field in fields(record):
        kind = without_none(kinds[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _leaves(kind, f"{above}{field.name}.")
        else:
            yield above + field.name, kind


@cache
def _short(columns: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns that a shorter name may mean. A name with more of its parts goes first."""
    found: dict[str, list[str]] = {}
    ways: tuple[Callable[[str], str], ...] = (
        lambda name: name.removeprefix("scores."),
        lambda name: name.removeprefix("scores.").replace(".", "_"),
        lambda name: name.replace(".", "_"),
        lambda name: name.rsplit(".", 1)[-1],
    )
    for way in ways:
        now: dict[str, list[str]] = {}
        for column in columns:
            now.setdefault(way(column), []).append(column)
        found = now | found
    return found


def _look_up(row: Mapping[str, Any], column: str) -> tuple[Any, bool]:
    """A value of a row, and whether the record that holds it is there."""
    value: Any = row
    for part in column.split(".") if column not in row else [column]:
        record = value
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if record is None:
            break
    if value is None and column in OLDER and row.get(OLDER[column]) is not None:
        return row[OLDER[column]], True
    return value, record is not None


def _look_up_all(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """`_look_up` of every row: float64 [n], nan for none; and bool [n]."""
    values, measured = _flat(table, column)
    if column in OLDER and OLDER[column] in table.column_names:
        older, _ = _flat(table, OLDER[column])
        measured = measured | ~np.isnan(older)
        values = np.where(np.isnan(values), older, values)
    return values, measured


def _flat(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = table.num_rows
    nothing = np.full(rows, np.nan)
    parts = [column] if column in table.column_names else column.split(".")
    if parts[0] not in table.column_names:
        return nothing, np.full(rows, len(parts) == 1)
    values, there = table[parts[0]], np.ones(rows, bool)
    for part in parts[1:]:
        there = there & values.is_valid().to_numpy(zero_copy_only=False)
        if not pa.types.is_struct(values.type) or values.type.get_field_index(part) < 0:
            return nothing, there
        values = pc.struct_field(values, part)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return nothing, there
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(there, numbers, np.nan), there
