"""The tables of the documentation that repeat declarations, made from the declarations.

    python -m docs.tables

A page holds `<!-- table: CLASS -->` and `<!-- end -->`; what stands between them is replaced by a
table of the class's fields: name, type, default, and the text of its docstring's `Args:` section.
Of an enumeration whose values are tuples the table has a row for each.
The sources are parsed, not imported, so this needs no packages. `<!-- table: METRICS -->` is for
the metrics that a run exports.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from cluster.metrics import declared as metrics
from jobs.jobfile.docstrings import argument_texts

ROOT = Path(__file__).parent.parent
PAGES = ("docs/guide.md", "docs/watching.md", "docs/planning.md", "docs/scores.md")
SOURCES = (
    "jobs/spec.py",
    "pipeline/settings/__init__.py",
    "pipeline/settings/reconstruction.py",
    "cluster/settings.py",
    "pipeline/records.py",
    "pipeline/scores.py",
    "cluster/events/record.py",
    "jobs/summary/record.py",
    "cluster/estimate/record.py",
)
PREFIXES = {
    "VideoSettings": "video.",
    "Inversion": "inversion.",
    "Reconstruction": "reconstruction.",
    "Variation": "reconstruction.candidates.",
    "TrajectorySettings": "trajectory.",
    "Speed": "speed.",
    "Limits": "limits.",
    "ScoreSettings": "score.",
    "ScoringSettings": "cluster.scoring.",
    "FrameScores": "scores.frames.",
    "ClipScores": "scores.clip.",
    "DinoScores": "scores.dino.",
    "JudgeScores": "scores.judge.",
    "ClusterSettings": "cluster.",
    "GroupSettings": "cluster.inversion.",
    "PromptSettings": "cluster.prompts.",
    "Forwards": "forwards.",
    "Timings": "timings.",
    "Metrics": "metrics.",
}
"""What stands before a field's name in a job file, or in a column of the results."""
STRUCTS = ("EditSpec", "Forwards", "Timings", "Metrics", "Candidate")
STRUCTS += ("Scores", "FrameScores", "ClipScores", "DinoScores", "JudgeScores")
STRUCTS += (
    "RuleCount",
    "ScoreWork",
    "CodeCount",
    "SlowEdit",
    "Stage",
    "Throughput",
    "Totals",
)  # of the summary
STRUCTS += ("Against", "Compared", "ClipSize", "Flops", "StorageParts", "GpuPlan", "MemoryParts")
STRUCTS += ("Rate", "StagePlan")  # of a plan
RECORDS = dict.fromkeys(STRUCTS, "struct")
PLAIN = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
OTHER = {"ErrorCode": "error code", "datetime": "time, UTC", "Variation": "variations"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class NoSuchTable(Exception):
    """A page asks for a class that is not declared, or a declaration lacks a text."""


@dataclass(frozen=True)
class Field:
    """A field of a record or of the settings.

    Args:
        name: as declared.
        kind: its type, in words.
        default: as a job file writes it; None where the field is required.
        text: what the docstring says of it.
        is_section: whether it holds settings that have a table of their own.
    """

    name: str
    kind: str
    default: str | None
    text: str
    is_section: bool = False


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled_in(path.read_text()))


def filled_in(page: str) -> str:
    """A page with the tables between its markers made anew."""
    classes = declared()

    def replaced(found: re.Match[str]) -> str:
        name = found.group(2)
        if name == "METRICS":
            return f"{found.group(1)}\n{table_of_metrics()}\n{found.group(3)}"
        if name not in classes:
            raise NoSuchTable(f"there is no class {name}; known are {', '.join(sorted(classes))}")
        rows = members(classes[name])
        made = table_of_members(rows) if rows else table(name, fields_of(classes[name]))
        return f"{found.group(1)}\n{made}\n{found.group(3)}"

    return MARKED.sub(replaced, page)


def table(name: str, fields: list[Field]) -> str:
    """The Markdown table of a class; neighbours that differ in nothing but the name share a row."""
    rows: list[tuple[list[str], Field]] = []
    for field in fields:
        same = rows and rows[-1][1] == Field(rows[-1][1].name, *list(vars(field).values())[1:])
        if field.is_section:
            continue
        if same:
            rows[-1][0].append(field.name)
        else:
            rows.append(([field.name], field))
    lines = ["| name | type | default | |", "|---|---|---|---|"]
    for names, field in rows:
        shown = ", ".join(f"`{PREFIXES.get(name, '')}{one}`" for one in names)
        default = "required" if field.default is None else f"`{field.default}`"
        cells = [shown, field.kind, default, field.text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def members(declaration: ast.ClassDef) -> list[list[str]]:
    """The values of an enumeration: its members that are tuples of texts."""
    values = (node.value for node in declaration.body if isinstance(node, ast.Assign))
    return [list(ast.literal_eval(one)) for one in values if isinstance(one, ast.Tuple)]


def table_of_members(rows: list[list[str]]) -> str:
    """The Markdown table of an enumeration: name, level and text of each."""
    lines = ["| event | level | |", "|---|---|---|"]
    lines += [f"| `{name}` | {level} | {text} |" for name, level, text in rows]
    return "\n".join(lines) + "\n"


def table_of_metrics() -> str:
    """The Markdown table of what a run exports."""
    lines = ["| metric | kind | unit | tags | |", "|---|---|---|---|---|"]
    for metric in metrics.METRICS:
        tags = ", ".join(f"`{tag}`" for tag in metric.tags)
        cells = [f"`{metric.exported}`", metric.kind, metric.unit, tags, f"{metric.text}."]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def declared() -> dict[str, ast.ClassDef]:
    """The classes of the sources, by name."""
    return {
        node.name: node
        for source in SOURCES
        for node in ast.parse((ROOT / source).read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def aliases() -> dict[str, ast.expr]:
    """The names that the sources give to types, as `Fraction = Annotated[...]`."""
    return {
        node.targets[0].id: node.value
        for source in SOURCES
        for node in ast.parse((ROOT / source).read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def fields_of(declaration: ast.ClassDef) -> list[Field]:
    """The fields of a class with their texts, those that it inherits behind its own.

    Raises:
        NoSuchTable: a field that a user can set has no text.
    """
    texts = argument_texts(ast.get_docstring(declaration) or "")
    classes, known = declared(), aliases()
    fields = []
    for node in declaration.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name.startswith("_"):
            continue
        section = _called(node.value) in PREFIXES and _called(node.value) not in RECORDS
        if name not in texts and not section:
            raise NoSuchTable(f"{declaration.name}.{name}: `Args:` says nothing of it")
        kind = kind_in_words(node.annotation, known)
        fields.append(Field(name, kind, default_of(node.value), texts.get(name, ""), section))
    bases = [classes[base] for base in map(ast.unparse, declaration.bases) if base in classes]
    return fields + [field for base in bases for field in fields_of(base)]


def default_of(value: ast.expr | None) -> str | None:
    """A default as YAML writes it; None where there is none."""
    if value is None:
        return None
    if _called(value):
        return "{}"
    default = ast.literal_eval(value)
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, tuple):
        return str([int(x) if float(x).is_integer() else x for x in default])
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) or '""'


def kind_in_words(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """A type as a reader of a table needs it: what is allowed, not how Python says it."""
    if isinstance(node, ast.BinOp):
        sides = [side for side in (node.left, node.right) if not _is_none(side)]
        return " or ".join(kind_in_words(side, known) for side in sides)
    if isinstance(node, ast.Subscript):
        return _subscript_in_words(node, known)
    name = node.id if isinstance(node, ast.Name) else ast.unparse(node)
    if name in known:
        return kind_in_words(known[name], known)
    return PLAIN.get(name) or OTHER.get(name) or RECORDS.get(name) or name


def _subscript_in_words(node: ast.Subscript, known: dict[str, ast.expr]) -> str:
    outer = ast.unparse(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        return ", ".join(f"`{ast.literal_eval(value)}`" for value in inner)
    if outer == "Annotated":
        bounds = [bound for note in inner[1:] for bound in _bounds(note)]
        return " ".join([kind_in_words(inner[0], known), ", ".join(bounds)]).strip()
    if outer == "tuple" and ast.unparse(inner[-1]) == "...":
        return f"list of {kind_in_words(inner[0], known)}"
    if outer == "tuple":
        return f"[{', '.join(kind_in_words(part, known) for part in inner)}]"
    return ast.unparse(node)


def _bounds(note: ast.expr) -> list[str]:
    """`Ge(1)` and `Field(ge=1)` as `≥ 1`."""
    if not isinstance(note, ast.Call):
        return []
    given = [(keyword.arg or "", keyword.value) for keyword in note.keywords]
    given += [(ast.unparse(note.func).lower(), value) for value in note.args]
    return [f"{BOUNDS[name]} {ast.literal_eval(value)}" for name, value in given if name in BOUNDS]


def _called(value: ast.expr | None) -> str:
    return ast.unparse(value.func) if isinstance(value, ast.Call) else ""


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


if __name__ == "__main__":
    main()
