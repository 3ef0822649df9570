"""The form of a manifest: a row is a `VideoSpec`, an element of its `edits` an `EditSpec`."""

from __future__ import annotations

import pyarrow as pa

from pipeline.records import EditSpec, VideoSpec, arrow_schema, arrow_type

SCHEMA = arrow_schema(VideoSpec)
EDIT = arrow_type(EditSpec)
EDIT_FIELDS = tuple(field.name for field in EDIT)
MEANING = {
    "video": "string, the path or URI of the video file",
    "edits": f"{SCHEMA.field('edits').type}; only `prompt` is needed",
}
"""What the two columns hold that a manifest must have."""
OF_OPTIONAL = {
    "mask": "string, the path or URI of a mask; rename the column if it holds something else"
}
"""The same of others, where that says more than their types."""


def fits(found: pa.DataType, wanted: pa.Field) -> bool:
    """Whether values of `found` can be used; the row check looks at each value again."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return wanted.name not in ("video", "prompt")
    if is_string(wanted.type):
        return is_string(found)
    # a whole number may come as a float: pandas stores it so when some are missing
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def is_string(found: pa.DataType) -> bool:
    return str(found) in ("string", "large_string", "string_view")


def is_list(found: pa.DataType) -> bool:
    return isinstance(found, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
