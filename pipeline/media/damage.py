"""What counts as damage in a file that FFmpeg goes on decoding.

FFmpeg fills what is missing from a frame with what was there before, and marks packets whose data
is incomplete. A mark is enough to refuse a file, with one exception: MPEG-TS counts its pieces, and
where two whole recordings were joined the count starts anew although nothing is missing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

EBML_BOXES = {b"\x1aE\xdf\xa3", b"\x18S\x80g"}  # Matroska's header and segment
MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"sidx", b"mfra"}
STRANGERS = {
    b"<!doctype html": "a web page (has the link to the video expired?)",
    b"<html": "a web page (has the link to the video expired?)",
    b"<?xml": "XML, such as a storage answers in place of a file",
    b"{": "JSON, such as a server answers in place of a file",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    b"par1": "a Parquet file, as a manifest is",
    b"pk\x03\x04": "a ZIP archive (unpack it)",
    b"\x1f\x8b": "a gzip archive (unpack it)",
}
TS_PAYLOAD = 188
TS_LENGTHS = (188, 192, 204)  # as broadcast, with a time before (Blu-ray), with parity behind
RIFF_HEAD = 8
"""Bytes of the head of an AVI, which some writers count as a part of its content."""
LONGEST_FRAME = 64 * 1024 * 1024
"""Bytes after which the search for the end of a frame in MPEG-TS is given up."""


def named(head: bytes) -> str:
    """What a file is that FFmpeg does not know, by its first bytes, for the message about it."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in STRANGERS.items():
        if text.startswith(start):
            return what
    if head[4:8] in MP4_BOXES:
        return "an MP4 without its index (moov): its recording or upload was never finished"
    return "one of a kind that FFmpeg does not know"


def is_cut_off(file: BinaryIO) -> bool:
    """Whether the outermost boxes of an MP4, Matroska or AVI reach past the end of the file."""
    size = file.seek(0, io.SEEK_END)
    position = 0
    for _ in range(10_000):  # no real file has more, and a crafted one shall not keep us busy
        file.seek(position)
        head = file.read(16).ljust(16, b"\0")
        length = _box_length(head)
        if length is None:
            return False
        position += length
        if position >= size:
            return position - size > (RIFF_HEAD if head[:4] == b"RIFF" else 0)
    return False


def _box_length(head: bytes) -> int | None:
    """The length of the box that starts with these 16 bytes, itself included, if it tells one."""
    if head[:4] == b"RIFF":
        content = int.from_bytes(head[4:8], "little")
        return None if content == 0xFFFFFFFF else RIFF_HEAD + content  # all ones: unknown
    if head[:4] in EBML_BOXES:
        # The first bit that is set tells how many bytes the number has; all ones: unknown.
        digits = 9 - head[4].bit_length()
        unknown = (1 << 7 * digits) - 1
        content = int.from_bytes(head[4 : 4 + digits], "big") & unknown
        return None if content == unknown else 4 + digits + content
    if head[4:8] in MP4_BOXES:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        return length if length >= 8 else None
    return None


def joined_at(file: BinaryIO, position: int) -> int | None:
    """Where an MPEG-TS goes on with another recording, the frame before being whole.

    Decoders of some codecs (HEVC) do not notice the end of a frame that is missing, so the pieces
    of the stream are looked at themselves: the last piece of a frame is filled up to its length,
    and the first one after it says that it begins something.

    Args:
        file: left at the position that it has.
        position: of the first piece of a frame of the stream, somewhat before the place.

    Returns:
        the position of the first piece of the other recording; None where a piece is missing or
        damaged, or nothing is out of order.
    """
    here = file.tell()
    try:
        before: _Piece | None = None
        for piece in _pieces(file, position):
            if piece.damaged:
                return None
            if before is not None and not piece.follows(before):
                whole = before.filled and piece.begins
                return piece.position if whole else None
            before = piece
        return None
    finally:
        file.seek(here)


class _Piece:
    """One packet of MPEG-TS that has a payload (ISO/IEC 13818-1, 2.4.3).

    Attributes:
        position: where FFmpeg says that it is.
        damaged: the receiver could not repair it.
        begins: a frame begins with it.
        filled: its payload was too short, so something ended with it.
    """

    def __init__(self, position: int, data: bytes) -> None:
        self.position = position
        self.damaged = bool(data[1] & 0x80)
        self.begins = bool(data[1] & 0x40)
        self.filled = bool(data[3] & 0x20) and _is_filled(data[4:])
        self._count = data[3] & 0x0F

    def follows(self, before: _Piece) -> bool:
        return self._count == (before._count + 1) % 16


def _is_filled(field: bytes) -> bool:
    """Whether an adaptation field is longer than what it has to say."""
    length = field[0]
    if length == 0:  # one byte was too many
        return True
    flags = field[1]
    content = 1 + 6 * bool(flags & 0x10) + 6 * bool(flags & 0x08) + bool(flags & 0x04)
    for optional in (0x02, 0x01):  # private data, extension: each with its length before it
        if flags & optional:
            content += 1 + field[1 + content]
    return length > content


def _pieces(file: BinaryIO, position: int) -> Iterator[_Piece]:
    """The packets with a payload of the stream that the packet at `position` is of."""
    file.seek(position)
    head = file.read(TS_LENGTHS[-1] * 2)
    starts = [
        (offset, length)
        for length in TS_LENGTHS
        for offset in (0, 4)
        if head[offset : offset + 1] == head[offset + length : offset + length + 1] == b"\x47"
    ]
    if not starts:
        return
    offset, length = starts[0]  # a time may come first, and counts as part of the piece
    stream: int | None = None
    for at in range(position + offset, position + LONGEST_FRAME, length):
        file.seek(at)
        data = file.read(TS_PAYLOAD)
        if len(data) < TS_PAYLOAD or data[0] != 0x47:
            return
        number = int.from_bytes(data[1:3], "big") & 0x1FFF
        stream = number if stream is None else stream
        if number == stream and data[3] & 0x10:
            yield _Piece(at - offset, data)
