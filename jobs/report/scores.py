"""What the report shows of an edit beyond its making: scores, verdict, mask, candidates.

Results of earlier versions have fewer of these columns, or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import KINDS, Rule, Rules, WrongRule
from pipeline.redaction import redacted

Row = Mapping[str, Any]
Verdict = tuple[bool | None, tuple[str, ...]]
NO_VERDICT: Verdict = (None, ())
COLUMNS = ("scores", "accepted", "rejected_for")
"""The columns that are read of every row."""
MODELS = {"clip": "CLIP", "dino": "DINO", "judge": "Judge"}


def link(path: str | None, root: str) -> str | None:
    """A path in an output folder as the page links to it."""
    return None if path is None else f"{root}/{quote(path)}"


def key_of(column: str) -> str:
    """The report's key for a number of the results, which has dots: `judge_follows`, `flicker`."""
    if column.startswith("scores."):
        return column.removeprefix("scores.").replace(".", "_")
    return column.removeprefix("metrics.")


def score_numbers(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The columns of all scores by the report's keys; those that are no numbers too."""
    found = {}
    for kind, column in _inside(table, "scores").items():
        if kind in KINDS and pa.types.is_struct(column.type):
            for field in column.type:
                found[key_of(f"scores.{kind}.{field.name}")] = pc.struct_field(column, field.name)
    return found


def verdicts(table: pa.Table) -> list[Verdict]:
    """Of each row whether it is accepted, and the rules that do not hold."""
    if not {"accepted", "rejected_for"} <= {*table.column_names}:
        return [NO_VERDICT] * table.num_rows
    accepted, reasons = table["accepted"].to_pylist(), table["rejected_for"].to_pylist()
    return [(one, tuple(why or ())) for one, why in zip(accepted, reasons, strict=True)]


def thresholds(texts: Iterable[str], numbers: Iterable[str]) -> list[dict[str, Any]]:
    """Rules as the page draws them: text, key, sign and number; without those it cannot read.

    Args:
        numbers: the keys that edits have numbers for.
    """
    found, numbers = [], list(numbers)
    for text in texts:
        try:
            found.append(Rules.parse([text], more=numbers).rules[0])
        except WrongRule:  # the rules of another version: the page informs, and shows the rest
            continue
    return [_threshold(rule) for rule in found]


def _threshold(rule: Rule) -> dict[str, Any]:
    return {"text": rule.text, "key": key_of(rule.column), "op": rule.op, "number": rule.number}


def beyond(row: Row, root: str) -> dict[str, Any]:
    """What an edit's card holds beside its clip, prompt and numbers; only what there is.

    Args:
        root: the output folder, as the page links to it.
    """
    found = {
        "instruction": row.get("instruction"),
        "mask": link(row.get("mask"), root),
        "accepted": row.get("accepted"),
        "rejected": list(row.get("rejected_for") or ()),
        "chosen": row.get("candidate") if row.get("candidates") else None,
        "candidates": [_candidate(row, one, root) for one in row.get("candidates") or ()],
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def facts(row: Row) -> dict[str, Any]:
    """What the scores of an edit say in words, by name."""
    found: dict[str, Any] = {"Round": row.get("round") or None}
    for kind, scores in (row.get("scores") or {}).items():
        if not scores:
            continue
        name = MODELS.get(kind, kind.capitalize())
        found[f"{name}'s reason"] = redacted(scores.get("reason"))
        found[f"{name} model"] = scores.get("model")
        found[f"Not scored, {name}"] = redacted(scores.get("error"))
    return found


def _candidate(row: Row, one: Row, root: str) -> dict[str, Any]:
    """A candidate as the large view lists it, with its numbers by the report's keys."""
    output = one["output"]
    if output is None and one["number"] == row.get("candidate"):
        output = row["output"]  # it became the edit
    numbers = {
        key_of(f"{above}{name}"): float(f"{value:.6g}")
        for above, record in _records(one)
        for name, value in (record or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        "number": one["number"],
        "changes": _in_words(one["changes"]),
        "clip": link(output, root),
        "code": one["error_code"],
        "error": redacted(one["error"]),
        "numbers": numbers,
    }


def _records(one: Row) -> list[tuple[str, Row | None]]:
    scores = one.get("scores") or {}
    return [("metrics.", one.get("metrics")), *((f"scores.{k}.", scores[k]) for k in scores)]


def _in_words(changes: str | None) -> str:
    """Changes, which are JSON, as `start 0.5, guidance_scale 8`; as they are if they are not."""
    try:
        values = json.loads(changes or "{}")
        return redacted(", ".join(f"{name} {_short(value)}" for name, value in values.items()))
    except (ValueError, AttributeError):
        return redacted(str(changes))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _inside(table: pa.Table, name: str) -> dict[str, pa.ChunkedArray]:
    """The fields of a struct as columns; none where the table lacks it."""
    if name not in table.column_names or not pa.types.is_struct(table[name].type):
        return {}
    return {field.name: pc.struct_field(table[name], field.name) for field in table[name].type}
