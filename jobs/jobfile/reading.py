"""Reading a job file: from its bytes, wherever they are, to plain values.

What is no job file is refused with what it is, and YAML that cannot be read with the line, the
column and what to write there.
"""

from __future__ import annotations

import codecs
import mimetypes
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import JobError
from pipeline.locations import expanded, is_web, unknown_protocol
from pipeline.storage import explain, is_folder, open_file

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
"""Values of a job file with its aliases written out: nine lines can stand for 10^9."""
WHOLE = "expected keys and values, at least `manifest` and `output`"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_values(path: str) -> dict[str, Any]:
    """The values of a job file.

    Args:
        path: a local path or fsspec URI.

    Raises:
        JobError: it cannot be read, is no YAML, or holds no keys and values.
    """
    values = parse_yaml(_text(_bytes(path), path), f"job file {path}")
    if isinstance(values, dict):
        return values
    if isinstance(values, str) and (joined := re.search(r"(\w+):(\S+)", values)):
        raise JobError(
            f"job file {path}: {joined[0]!r} has no space after its colon; write "
            f"`{joined[1]}: {joined[2]}`"
        )
    found = {type(None): "empty", list: "a list", str: "a text"}.get(type(values), "one value")
    way_out = "; `retake init` writes a job file to start from" if values is None else _kind(path)
    raise JobError(f"job file {path}: is {found}; {WHOLE}{way_out}")


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text: plain values only, whatever its tags ask for.

    Raises:
        JobError: where it is not valid, a key stands in it twice, or its aliases make it huge.
    """
    try:
        return _loaded(text)
    except yaml.MarkedYAMLError as error:
        raise JobError(f"{source}: {_problem(error, text)}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "values are nested too deep" if isinstance(error, RecursionError) else str(error)
        raise JobError(f"{source}: is not valid YAML: {reason}") from None


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > MOST_NODES:
            raise yaml.YAMLError(
                f"its aliases (*name) stand for more than {MOST_NODES} values; write out what is "
                "meant"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node comes to where each alias is written out; at most `MOST_NODES` + 1.

    Raises:
        YAMLError: it holds itself.
    """
    if node in known:
        if not known[node]:
            raise yaml.YAMLError(
                "a value holds itself by an alias (*name); write out what is meant"
            )
        return known[node]
    known[node] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    count = 1
    for one in inner:
        for part in one if isinstance(one, tuple) else (one,):
            count += _nodes(part, known)
    known[node] = min(count, MOST_NODES + 1)
    return known[node]


def _bytes(path: str) -> bytes:
    source = f"job file {path}"
    if protocol := unknown_protocol(path):
        raise JobError(
            f"{source}: its protocol {protocol!r} is unknown; expected a path, or a URI of one "
            "that fsspec knows, such as s3, gs or https"
        )
    place = expanded(path)
    if "://" not in place and Path(place).is_dir():
        inside = sorted(one.name for one in Path(place).glob("*.y*ml"))[:3]
        way_out = f"name the file in it: {', '.join(inside)}" if inside else "name a YAML file"
        raise JobError(f"{source}: is a folder; {way_out}")
    try:
        with Path(place).open("rb") if "://" not in place else open_file(place) as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        if is_web(place):
            raise JobError(f"{source}: {explain(error, place).text}") from error
        way_out = f"`retake init {path}` writes one to start from"
        raise JobError(f"{source}: cannot be read: No such file or directory; {way_out}") from None
    except Exception as error:  # each storage has its own kinds of failure
        if "://" in place and _is_remote_folder(place):
            raise JobError(f"{source}: is a folder; name the YAML file in it") from None
        if "://" in place:
            raise JobError(f"{source}: {explain(error, place).text}") from error
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise JobError(f"{source}: cannot be read: {reason}") from error
    return data


def _is_remote_folder(uri: str) -> bool:
    try:
        return is_folder(uri)
    except Exception:  # the first failure is the one to report
        return False


def _text(data: bytes, path: str) -> str:
    source, kind = f"job file {path}", _kind(path, data)
    if kind:
        raise JobError(f"{source}: is no job file{kind}")
    if len(data) > MOST_BYTES:
        raise JobError(f"{source}: is larger than 1 MB; expected a short YAML file")
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        wrong = f"line {line}: the byte {data[error.start : error.start + 1].hex()} is no UTF-8"
        raise JobError(f"{source}: is not text: {wrong}; save the file as UTF-8") from None
    if "\0" in text:
        raise JobError(f"{source}: is not text: it holds bytes of zero; save the file as UTF-8")
    return text


def _kind(path: str, data: bytes = b"") -> str:
    """What a file is that is no job file, and what to do with it; empty where it may be one."""
    guessed = mimetypes.guess_type(path)[0] or ""
    if data.startswith(b"PAR1"):
        return ": it is a Parquet file; name it as `manifest` in a job file"
    if data[4:8] == b"ftyp" or (guessed.startswith("video/") and b"\0" in data):
        return (
            ": it is a video; `retake manifest` lists videos in a manifest, and a job file names it"
        )
    if not data and re.search(r"\.(csv|tsv|json|jsonl)$", path, re.IGNORECASE):
        return "; to make a manifest of a table, `retake manifest`"
    return ""


class _Duplicate(yaml.MarkedYAMLError):
    """A key that stands twice in a mapping."""


class _Loader(yaml.SafeLoader):
    """YAML as PyYAML reads it, but that no value is lost or altered without a word.

    A key that stands twice is refused. Numbers of other bases are texts, which settings refuse:
    PyYAML reads `010` as 8, and `1:30` as 90.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":int", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[Hashable, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key:
                line = first.start_mark.line + 1
                raise _Duplicate(
                    problem=f"the key {key.value!r} stands in line {line} already; remove one",
                    problem_mark=key.start_mark,
                )
        return node


_INT = r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|nan)$"
for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _rule = re.compile(_pattern, re.IGNORECASE)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _rule, list("-+.0123456789"))


WAYS_OUT = (
    (r"found character '\\t'", "a tab; YAML indents with spaces: replace it"),
    (r"could not find expected ':'", "a key needs a colon and a space after it: `key: value`"),
    (r"expected <block end>", "the keys of a section need the same number of spaces before them"),
    (r"mapping values are not allowed", "a second colon in a line; a text that holds one needs "
     "quotes, and a section's keys a line each below its name"),
    (r"found character '(.)' that cannot start", "a text that begins with {0} needs quotes"),
    (r"found undefined alias", "a text that begins with * needs quotes"),
    (r"unknown escape|expected escape", "a backslash in double quotes; use single quotes"),
    (r"found unhashable key", "a key is a list or a mapping; expected a name, and quotes around a "
     "text that begins with {{ or ["),
    (r"determine a constructor for the tag '(.*)'", "the tag {0} is unknown; remove it"),
    (r"but found another document", "a second document begins; a job file holds one"),
    (r"expected '<document start>'", "the values ended above, and more follows; a job file is one "
     "mapping of keys and values"),
    (r"expected ',' or '([\]}])'", "a bracket is open; close it with {0}"),
    (r"expected the node content", "a value is missing here, or a bracket is open"),
    (r"found unexpected end of stream", "a quote is open; close it"),
    (r"sequence entries are not allowed", "a list begins here; write it in a line of its own, or "
     "as [first, last]"),
)  # fmt: skip
"""What PyYAML says, as a pattern, and what that means to who writes a job file."""


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    """A mistake in YAML: its line and column, what it is, and the line itself."""
    complaint = str(error.problem)
    mark = error.problem_mark or error.context_mark
    if "expected ':'" in complaint and error.context_mark:
        mark = error.context_mark  # where the key is: PyYAML notices at the next one
    for pattern, meaning in WAYS_OUT:
        if found := re.search(pattern, complaint):
            complaint = meaning.format(*found.groups())
            break
    if mark is None:
        return f"is not valid YAML: {complaint}"
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else ""
    shown = f"\n  {line[:80]}" if line else ""
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    kind = "" if isinstance(error, _Duplicate) else "is not valid YAML: "
    return f"{kind}{where}: {complaint}{shown}"
