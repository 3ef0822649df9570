"""MPEG-TS by hand: what no muxer writes, and what gets lost on the air."""

from __future__ import annotations

LENGTH = 188


def packets(data: bytes) -> list[bytes]:
    return [data[at : at + LENGTH] for at in range(0, len(data), LENGTH)]


def stream_of(packet: bytes) -> int:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF


def frames_of(data: bytes, stream: int = 256) -> list[list[int]]:
    """The numbers of the packets of each frame of a stream."""
    frames: list[list[int]] = []
    for number, packet in enumerate(packets(data)):
        if stream_of(packet) == stream:
            if packet[1] & 0x40:
                frames.append([])
            frames[-1].append(number)
    return frames


def without(data: bytes, *lost: int) -> bytes:
    """A file without some of its packets."""
    return b"".join(packet for number, packet in enumerate(packets(data)) if number not in lost)


def joined(*parts: bytes, stream: int = 256) -> bytes:
    """Recordings one after the other, as cat does it, the count never going on by chance."""
    whole, count = b"", 0
    for part in parts:
        count += 5
        for packet in packets(part):
            numbered = bytearray(packet)
            if stream_of(packet) == stream:
                numbered[3] = numbered[3] & 0xF0 | count % 16
                count += 1
            whole += numbered
    return whole


def as_programs(*files: bytes) -> bytes:
    """Files of one program each as one file of several. Their streams must differ in number."""
    maps = [_program_map(data) for data in files]
    rest = b"".join(
        packet for data in files for packet in packets(data) if stream_of(packet) not in (0, 17)
    )
    return _program_table(maps) + rest


def with_times(data: bytes) -> bytes:
    """As Blu-ray has it: 4 bytes of time before each packet."""
    return b"".join(bytes(4) + packet for packet in packets(data))


def _program_map(data: bytes) -> int:
    """The stream of the one program map that a file's table of programs names."""
    table = next(packet for packet in packets(data) if stream_of(packet) == 0)
    return int.from_bytes(table[15:17], "big") & 0x1FFF


def _program_table(maps: list[int]) -> bytes:
    programs = b"".join(
        (number + 1).to_bytes(2, "big") + (0xE000 | stream).to_bytes(2, "big")
        for number, stream in enumerate(maps)
    )
    body = (0xB000 | (9 + len(programs))).to_bytes(2, "big") + b"\0\1\xc1\0\0" + programs
    section = b"\0" + body
    section += _checksum(section).to_bytes(4, "big")
    return (b"\x47\x40\x00\x10\x00" + section).ljust(LENGTH, b"\xff")


def _checksum(data: bytes) -> int:
    """CRC-32 as MPEG has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value
