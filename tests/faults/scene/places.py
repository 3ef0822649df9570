"""Where a run stores what it makes, looked at from outside: past any fault and any cache."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Place(Protocol):
    """An output folder."""

    uri: str

    def versions(self) -> Mapping[str, str]:
        """All files by name, also hidden ones; the version of each changes when it is written."""
        ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class LocalPlace:
    folder: Path

    @property
    def uri(self) -> str:
        return str(self.folder)

    def versions(self) -> Mapping[str, str]:
        found = {}
        for at, _, names in os.walk(self.folder):
            for name in names:
                path = Path(at, name)
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    found[str(path.relative_to(self.folder))] = f"{stat.st_mtime_ns}-{stat.st_size}"
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@dataclass(frozen=True)
class S3Place:
    """Args:
    uri: as the run has it.
    client: boto's, of the server itself.
    """

    uri: str
    client: object

    @property
    def _bucket_and_prefix(self) -> tuple[str, str]:
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/"

    def versions(self) -> Mapping[str, str]:
        bucket, prefix = self._bucket_and_prefix
        found = {}
        pages = self.client.get_paginator("list_objects_v2")  # type: ignore[attr-defined]
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for one in page.get("Contents", ()):
                version = f"{one['ETag']}-{one['LastModified'].timestamp()}"
                found[one["Key"].removeprefix(prefix)] = version
        return found

    def read(self, name: str) -> bytes:
        bucket, prefix = self._bucket_and_prefix
        got = self.client.get_object(Bucket=bucket, Key=prefix + name)  # type: ignore[attr-defined]
        return bytes(got["Body"].read())

    def unfinished_uploads(self) -> list[str]:
        bucket, _ = self._bucket_and_prefix
        answer = self.client.list_multipart_uploads(Bucket=bucket)  # type: ignore[attr-defined]
        return [one["Key"] for one in answer.get("Uploads", ())]


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own at a folder, which can be filled; False where none is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
